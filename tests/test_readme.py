"""The commands of the README are commands that exist."""

import re
import shlex
from pathlib import Path

import pytest

from deephash_cli import checking, cli, verbs

README = Path(__file__).parent.parent / "README.md"
PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]
LINES = [
    shlex.split(line, comments=True)[1:]
    for page in PAGES
    for line in re.findall(r"^\$ (deephash .*)$", page.read_text(), re.M)
    if "hydra/launcher" not in line  # which need packages of their own
]


def test_there_are_commands():
    assert len(LINES) > 10


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_every_command_is_understood(words):
    verb, *rest = words
    assert verb in cli.VERBS
    if verb == "methods":
        assert set(rest) <= set(checking.choices("method"))
        return
    if verb in verbs.RUN:
        assert verbs.parser(verb).parse_intermixed_args(rest)
        return
    flags = [word for word in rest if word.startswith("-")]
    normal = [cli.normalize(word, verb) for word in rest]
    settings, _ = cli.take_dataset(verb, [word for word in normal if "=" in word and "<" not in word], None)
    assert set(flags) <= {"-m", "--help", "--cfg", "--check"}
    checking.check(verb, settings, None, multirun="-m" in flags)


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z]+):.*##", (README.parent / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^\$ make ([a-z]+)", README.read_text(), re.M)) <= set(targets)

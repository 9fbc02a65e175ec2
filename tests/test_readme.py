"""Check what README, CONTRIBUTING and docs/ name: commands, links and tests exist, and both front pages are short."""

import ast
import functools
import re
import shlex
from pathlib import Path

import pytest
from conftest import sampled

from deephash_cli import choices
from deephash_cli.cli import arguments, checking, launch, verbs

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [
    README,
    CONTRIBUTING,
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("**/*.md")),
]

# Commands that are not checked here: what a line contains or starts with, and the reason.
UNCHECKED = {
    "hydra/launcher": "Hydra's launchers are packages of their own, which the tests do not install",
    "method=mine": "tests/test_add_a_method.py checks it, with the files of that page",
    "method=dpsh,mine": "tests/test_add_a_method.py checks it, with the files of that page",
    "--config-dir my_conf": "tests/test_add_a_method.py checks it, with the files of that page",
}
OTHER_PROGRAMS = {
    "pip": "installs packages",
    "torchrun": "starts processes on several machines; the tests of several processes start it",
    "seq": "a loop of the shell over the shards of the deephash encode command above it",
    "sbatch": "needs Slurm",
    "psql": "needs a server; its files are those of deephash export",
    "OPENSEARCH=http://localhost:9200": "needs a server; its files are those of deephash export",
    "python": "runs a file that deephash export wrote, or a script of an experiment",
    ".venv/bin/pre-commit": "tests/test_add_a_method.py looks for its configuration",
}


def commands(page: Path) -> list[str]:
    """The lines of a page that start with a prompt; a line that ends in a backslash continues on the next."""
    return re.findall(r"^\$ (.*)$", page.read_text().replace("\\\n", " "), re.M)


def unchecked(command: str) -> list[str]:
    """The entries of the two lists above that a command meets."""
    program = command.split()[0]
    return [part for part in UNCHECKED if part in command] + [program] * (program in OTHER_PROGRAMS)


COMMANDS = [command for page in PAGES for command in commands(page)]
CHECKED = [command for command in COMMANDS if command.startswith("deephash ") and not unchecked(command)]
LINES = [*map(list, dict.fromkeys(tuple(shlex.split(command, comments=True)[1:]) for command in CHECKED))]  # each once


def test_there_are_commands():
    assert len(LINES) > 10
    assert len([line for line in LINES if line[0] == "train"]) > 10


def test_every_command_is_checked_or_named_as_unchecked():
    for command in COMMANDS:
        assert command.split()[0] in ("deephash", "make") or unchecked(command), command
    met = {part for command in COMMANDS for part in unchecked(command)}
    assert met == {*UNCHECKED, *OTHER_PROGRAMS}, "a reason that no command needs"


@pytest.mark.parametrize("words", sampled(LINES, 3), ids=" ".join)
def test_every_command_is_understood(words):
    verb, *rest = words
    assert verb in verbs.names()
    if verb == "methods":
        assert set(rest) <= set(choices.choices("method"))
        return
    if not verbs.is_composed(verb):
        assert arguments.parse(verb, rest)
        return
    flags = [word for word in rest if word.startswith("-")]
    normal = [arguments.normalize(word, verb) for word in rest]
    settings, _ = launch.take_datasets(
        verb, [word for word in normal if ("=" in word or verb == "data") and "<" not in word], None
    )
    assert set(flags) <= {"-m", "--help", "--cfg", "--check"}
    checking.check(verb, settings, None, multirun="-m" in flags)


@pytest.mark.parametrize(
    "recipe", sampled(sorted((ROOT / "experiments").glob("*/*/experiment/*.yaml")), 3), ids=lambda recipe: recipe.stem
)
def test_recipes_of_experiments_are_understood(recipe):
    folder = str(recipe.parent.parent)
    assert checking.check("train", [f"experiment={recipe.stem}"], folder, multirun=False).method == recipe.stem


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        assert set(re.findall(r"^\$ make ([a-z]+)", page.read_text(), re.M)) <= set(targets), page


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


def rows_about_reliability() -> list[str]:
    """Return the rows of all tables of docs/reliability.md, without their headings."""
    lines = (ROOT / "docs" / "reliability.md").read_text().splitlines()
    after = [*lines[1:], ""]
    headings = {line for line, below in zip(lines, after, strict=True) if below.startswith("| ---")}
    return [line for line in lines if line.startswith("| ") and not line.startswith("| ---") and line not in headings]


@functools.cache
def functions_of(file: str) -> set[str]:
    """The names of the functions of a file of tests."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_about_reliability_names_exists():
    rows = rows_about_reliability()
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert len(named) == row.count("tests/") > 0, row
        for file, name in named:
            assert name in functions_of(file), f"{file}::{name}"


def test_every_fault_is_in_the_page_about_reliability_once_and_those_in_part_are_counted():
    rows = rows_about_reliability()
    faults = [(match[1], "In part:" in row) for row in rows if (match := re.match(r"\| (\d+) \| .*\| .*\| ", row))]
    rules = [(match[1], "In part:" in row) for row in rows if (match := re.match(r"\| (S\d+) ", row))]
    assert [number for number, _ in faults] == [str(number) for number in range(1, 67)]
    assert [number for number, _ in rules] == [f"S{number}" for number in range(1, 14)]
    in_part = [", ".join(name for name, is_part in kind if is_part) for kind in (faults, rules)]
    named = [" and ".join(names.rsplit(", ", 1)) for names in in_part]
    whole = [sum(not is_part for _, is_part in kind) for kind in (faults, rules)]
    assert (
        f"{whole[0]} of the 66 faults and {whole[1]} of the 13 rules are covered; "
        f"in part are faults {named[0]}, and rules {named[1]}."
    ) in (ROOT / "docs" / "reliability.md").read_text()


@pytest.mark.parametrize(("page", "lines"), [(README, 150), (CONTRIBUTING, 80)], ids=["README", "CONTRIBUTING"])
def test_the_front_pages_are_short(page, lines):
    assert len(page.read_text().splitlines()) <= lines

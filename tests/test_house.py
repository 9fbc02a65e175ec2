"""The floor plan: which rooms there are, and that a verb, a target or a kind of index is one module and no list."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deephash_cli.choices import CONF_DIR, PACKAGE

SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {"cli", "commands", "inference", "training", "methods", "models", "runs", "data", "retrieval"}
LOOSE = {
    "cores",
    "files",
    "hiding",
    "names",
    "npy",
    "phases",
    "processes",
    "stopping",
    "schedules",
    "errors",
    "failures",
    "console",
    "cache",
    "choices",
    "__init__",
}
# Sentences that only their author could expand: None called nothing, and descriptions that continue the name above.
CRYPTIC = re.compile(r"nothing (if|where)|^\s+\w+: (Of|That of|As of|Those of|Whose) ", re.IGNORECASE | re.MULTILINE)


def test_there_are_nine_rooms_and_the_loose_files_of_the_plan():
    assert {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")} == ROOMS
    assert {file.stem for file in PACKAGE.glob("*.py")} == LOOSE


@pytest.mark.parametrize("word", ["utils", "util", "helpers", "common", "manager", "handler"])
def test_no_module_has_a_name_that_says_nothing(word):
    assert not [file for file in SOURCES if file.stem == word or file.parent.name == word]


def test_no_function_is_longer_than_a_page():
    long = [
        f"{file.relative_to(PACKAGE)}: {node.name}, {node.end_lineno - node.lineno + 1} lines"
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 80
    ]
    assert not long


def test_sentences_can_be_understood_alone():
    found = {file.relative_to(PACKAGE).as_posix(): CRYPTIC.search(file.read_text()) for file in SOURCES}
    assert {name: match[0] for name, match in found.items() if match} == {}


NEW = {
    "deephash_cli/commands/greet.py": """
def add_arguments(parser):
    parser.add_argument("name")

def run(parsed):
    print(f"hello {parsed.name} from {parsed.command}")
""",
    "deephash_cli/cli/help/greet.txt": "deephash greet <name>\n\nGreet somebody\n\nExamples:\n  deephash greet Ada\n",
    "deephash_cli/commands/count.py": 'def run(config):\n    print(f"counted to {config.k}")\n',
    "deephash_cli/cli/help/count.txt": "deephash count [k=3]\n\nCount to a number\n\nSettings:\n  k=3   how far\n",
    "conf/count.yaml": "defaults:\n  - _verb\n  - _self_\n\nk: 3\n",
    "deephash_cli/commands/export/codes/lengths.py": """
def write(source, folder):
    (folder / "lengths.txt").write_text(f"{source.database.n} codes of {source.bits} bits")
    return "nothing to check"
""",
    "deephash_cli/retrieval/indexes/coarse.py": """
FAISS_CLASS = "IndexBinaryFlat"
HAS_RADIUS = True
RANGES = {"step": (1, 5)}

def build(faiss, codes, bits, settings):
    inner = faiss.IndexBinaryFlat(8 * codes.shape[1])
    inner.add(codes)
    return inner, dict(settings)
""",
}
SCRIPT = """
import sys
import numpy as np
from deephash_cli.cli.main import run
from deephash_cli.retrieval.codes import CodeSet, pack
from deephash_cli.retrieval.codes_folder import save_codes

codes = pack(np.random.default_rng(0).random((9, 16)) < 0.5)
side = CodeSet(codes, 16, np.zeros((9, 1), np.uint8), [f"image {i}" for i in range(9)])
save_codes("codes", side, side, {})
for command in COMMANDS:
    print(">", *command, flush=True)
    print("exit code", run(command), flush=True)
"""
COMMANDS = [
    ["--help"], ["greet", "Ada"], ["greet"], ["greet", "--help"], ["count", "k=5"], ["count", "l=5"],
    ["export", "codes=codes", "to=lengths", "output=out"], ["index", "codes=codes", "kind=coarse"],
    ["index", "codes=codes", "kind=coarse", "coarse.step=9"],
]  # fmt: skip


def test_a_verb_a_target_and_a_kind_of_index_are_one_module_with_its_help_and_configuration(tmp_path):
    """In a copy of the package, where only files are added."""
    shutil.copytree(PACKAGE, tmp_path / "deephash_cli", ignore=shutil.ignore_patterns("__pycache__", "conf"))
    shutil.copytree(CONF_DIR, tmp_path / "conf")
    for name, content in NEW.items():
        (tmp_path / name).write_text(content)
    with (tmp_path / "conf" / "_index.yaml").open("a") as file:
        file.write("coarse:\n  step: 2\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nCOMMANDS = {COMMANDS!r}\n{SCRIPT}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    shown = result.stdout.split("\n> ")
    codes = [int(part.rsplit("exit code ", 1)[1]) for part in shown]
    assert codes == [0, 0, 2, 0, 0, 2, 0, 0, 2], result
    assert "greet    Greet somebody" in shown[0]
    assert "count    Count to a number" in shown[0]
    assert "hello Ada from deephash greet Ada" in shown[1]
    assert "deephash greet <name>" in shown[3]
    assert "counted to 5" in shown[4]
    assert Path("out/lengths.txt").read_text() == "9 codes of 16 bits"
    assert Path("codes/coarse.faiss").exists()
    assert "see deephash greet --help" in result.stderr
    assert "coarse.step must be a whole number, from 1 to 5, got 9" in result.stderr

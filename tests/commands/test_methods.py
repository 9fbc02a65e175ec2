"""``deephash methods``: the table and the pages, and that both agree with the sources."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import METHODS
from hydra.utils import get_class
from omegaconf import OmegaConf

from deephash_cli import choices
from deephash_cli.commands.methods import catalogue, document, page
from deephash_cli.console import console
from deephash_cli.methods.base import ShallowHasher

ENTRIES = {entry.name: entry for entry in catalogue(None)}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_from_the_source_is_what_the_class_says(method):
    entry = ENTRIES[method]
    config = OmegaConf.load(choices.CONF_DIR / "method" / f"{method}.yaml")
    found = get_class(config.module._target_)
    assert entry.supervision == found.supervision
    assert (entry.inputs == "features") == issubclass(found, ShallowHasher)
    assert entry.multi_label == found.multi_label
    assert entry.file == f"deephash_cli/methods/{method}.py"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_cites_a_paper_and_gives_its_equation(method):
    entry = ENTRIES[method]
    assert 1990 < int(entry.year) < 2100
    assert all(len(text) > 3 for text in (entry.paper, entry.authors, entry.venue))
    assert re.search(r"^ {4}\S", entry.text, re.MULTILINE)  # an indented equation


def test_the_table_lists_every_method(deephash):
    result = deephash("methods")
    assert (result.code, result.err) == (0, "")
    shown = rows(result.out)
    assert sorted(shown) == METHODS
    assert re.search(r"2011 │ itq +│ no labels +│ features ", shown["itq"])
    assert re.search(r"2016 │ dpsh +│ pairs +│ both ", shown["dpsh"])
    years = [int(row.split()[1]) for row in shown.values()]
    assert years == sorted(years)


def rows(table):
    """The first line of each row, by method."""
    lines = [line for line in table.splitlines() if re.match(r"│ \d{4} │", line)]
    return {line.split()[3]: line for line in lines}


def test_filters_choose_rows(deephash):
    unsupervised = set(rows(deephash("methods", "--unsupervised").out))
    assert unsupervised == {name for name, entry in ENTRIES.items() if entry.supervision == "none"}
    assert {"itq", "pcarr"} <= unsupervised
    fitted = set(rows(deephash("methods", "--on-features").out))
    assert fitted == {name for name, entry in ENTRIES.items() if entry.inputs == "features"}
    assert set(rows(deephash("methods", "--unsupervised", "--on-features").out)) == unsupervised & fitted
    assert set(rows(deephash("methods", "--multi-label").out)) == {n for n, e in ENTRIES.items() if e.multi_label}


def test_at_80_columns_no_word_of_the_table_is_broken(deephash, monkeypatch):
    monkeypatch.setattr(console, "width", 80)
    lines = [line for line in deephash("methods").out.splitlines() if line[0] in "┏┃│"]
    assert max(map(len, lines)) <= 80
    words = {word for entry in ENTRIES.values() for word in (entry.name, f"({entry.venue})", *entry.paper.split())}
    assert words <= set(" ".join(lines).replace("│", " ").split())


def test_a_page_has_paper_equation_and_settings(deephash):
    result = deephash("methods", "dpsh")
    assert result.code == 0
    assert "(Li, Wang and Kang, IJCAI 2016)" in result.out
    assert "t_ij = <u_i, u_j> / 2" in result.out
    assert "quantization_weight: 0.1" in result.out  # from the loss, which has its own file
    assert result.out.strip() == page(ENTRIES["dpsh"]).strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods", "tiq"], "there is no method 'tiq'; did you mean 'itq'?"),
        (["methods", "itq", "--unsupervised"], "--unsupervised chooses rows of the table: leave it out"),
        (["methods", "itq", "lsh"], "deephash methods takes the name of one method, got itq lsh"),
        (["methods", "-m"], "unrecognized arguments: -m; see deephash methods --help"),
        (["methods", "--config-dir", "nowhere"], "--config-dir nowhere is not a folder"),
    ],
)
def test_what_cannot_be_listed_is_said(deephash, arguments, message):
    result = deephash(*arguments)
    assert result.code == 2
    assert message in result.err


def test_a_method_of_the_users_own_is_listed(deephash, tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# @package _global_\nmodule:\n  _target_: my_package.mine.Mine\n")
    (tmp_path / "method" / "lost.yaml").write_text("# @package _global_\nmodule:\n  _target_: my_package.lost.Lost\n")
    package = tmp_path / "code" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(
        '"""MINE: My Own Hashing (Doe and Roe, CVPR 2031)."""\n'
        "from deephash_cli.methods import base\n"
        'class Mine(base.ShallowHasher):\n    supervision = "pairs"\n    raise SystemExit("imported")\n'
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    result = deephash("methods", "--config-dir", str(tmp_path))
    assert result.code == 0
    assert re.search(r"2031 │ mine +│ pairs +│ features +│ My Own Hashing ", result.out)
    assert "there is no module my_package.lost" in result.out
    mine = catalogue(tmp_path)[-1]
    assert (mine.supervision, mine.inputs, mine.year) == ("pairs", "features", "2031")


def test_what_a_method_learns_from_and_on_is_inherited(tmp_path, monkeypatch):
    """Bases are found across files and under other names; a class that only shares a name with ours does not count."""
    (tmp_path / "method").mkdir()
    for name, base in (
        ("direct", "from deephash_cli.methods.itq import ITQ as Start\n"),
        ("second", "import direct as d\nStart = None\nfrom direct import Direct as Start\n"),
        ("deep", "from deephash_cli.methods.dpsh import DPSH as Start\n"),
        ("namesake", "class ShallowHasher:\n    supervision = 'pairs'\nStart = None\n"),
    ):
        ancestor = "ShallowHasher" if name == "namesake" else "Start"
        body = "    inputs = views = max(1, 2)\n"  # other names and values than ours are nobody's business
        (tmp_path / f"{name}.py").write_text(f"{base}\nclass {name.title()}({ancestor}):\n{body}")
        yaml = f"# @package _global_\nmodule:\n  _target_: {name}.{name.title()}\n"
        (tmp_path / "method" / f"{name}.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(tmp_path)
    entries = {entry.name: (entry.supervision, entry.inputs) for entry in catalogue(tmp_path)}
    assert entries["direct"] == entries["second"] == ("none", "features")
    assert entries["deep"] == entries["namesake"] == ("pairs", "images")


def test_a_method_without_a_class_is_refused(deephash, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("loss: null\n")
    result = deephash("methods", "--config-dir", str(tmp_path))
    assert result.code == 2
    assert "mine.yaml must name a class under module._target_" in result.err


def test_the_table_needs_no_torch():
    code = "import sys; from deephash_cli.cli.main import run; run(['methods']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_the_document_is_up_to_date():
    assert (Path(__file__).parents[2] / "docs" / "methods.md").read_text() == document(), "make docs writes it again"

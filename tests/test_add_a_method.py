"""Run what docs/add-a-method.md shows, so that it stays true."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deephash_cli import methods
from deephash_cli.cli import arguments, checking, launch

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "add-a-method.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
# A block whose first line is a comment with a path is that file.
BLOCKS = dict(re.findall(r"^```(?:python|yaml)\n# (\S+\.\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^\$ (.*?)(?:\s+#.*)?$", CONTRIBUTING + TEXT, re.MULTILINE)
TINY = ("trainer.max_epochs=6", "loader.batch_size=16")


def write(folder: Path, prefix: str = "") -> None:
    """Write the blocks as files."""
    for name, content in BLOCKS.items():
        if name.startswith(prefix):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)


def trained_well(run: Path) -> bool:
    """Whether the training loss of the last epoch is below that of the first."""
    losses = [json.loads(line).get("train/loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    return losses[-1] < losses[0]


@pytest.fixture
def forget():
    """Forget the modules that a test imported from its own folder, so that the next test does not see them."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("my_hashing", "deephash_cli.methods.mine")):
            del sys.modules[name]
    vars(methods).pop("mine", None)


def test_every_code_block_is_a_file():
    fences = re.findall(r"^```(\w+)$", TEXT, re.MULTILINE)
    assert len(BLOCKS) == sum(language in ("python", "yaml") for language in fences) == 6
    for name, content in BLOCKS.items():
        if name.split("/")[1] == "method":
            assert content.startswith("# @package _global_\n"), name


def test_the_example_follows_the_rules_that_it_teaches(tmp_path):
    write(tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ours = "lint.isort.known-first-party = ['deephash_cli', 'my_hashing']"
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", ours, str(tmp_path)]
        result = subprocess.run(ruff, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr


def test_a_method_in_the_repository(deephash, photos, tmp_path, monkeypatch, forget):
    """Add a second folder to the package's search path, as if the files were in the first."""
    place = tmp_path / "copy"
    write(place, "deephash_cli")
    write(place, "conf")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(place / "deephash_cli" / "methods")])
    importlib.invalidate_caches()
    options = ["--config-dir", str(place / "conf")]
    result = deephash("train", *photos, "method=mine", "bits=12", *TINY, "run_dir=run", *options)
    assert result.code == 0, result
    assert trained_well(Path("run"))
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["method"] == "mine"
    assert metrics["module"] == {"_target_": "deephash_cli.methods.mine.Mine"}
    assert deephash("eval", "run=run").code == 0

    bad = deephash("train", *photos, "method=mine", "loss.margin=-1", *options)
    assert bad.code == 2
    assert "margin must be above 0, got -1" in bad.err
    typo = deephash("train", *photos, "method=mime", *options)
    assert "did you mean 'mine'?" in typo.err


def test_a_method_outside_the_repository(deephash, photos, tmp_path, monkeypatch, forget):
    write(tmp_path, "my_")
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ["--config-dir", str(tmp_path / "my_conf")]
    result = deephash("train", *photos, "method=ours", "bits=20", "nested=[6]", *TINY, "run_dir=run", *options)
    assert result.code == 0, result
    assert trained_well(Path("run"))
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert (metrics["bits"], metrics["nested"]["6"]["bits"]) == (20, 6)

    longer = ("resume=run", "trainer.max_epochs=7", *options)
    refused = deephash("train", *longer)
    assert refused.code == 2
    assert "add 'allowed_targets=[my_hashing]'" in refused.err
    resumed = deephash("train", *longer, "allowed_targets=[my_hashing]")
    assert resumed.code == 0, resumed
    assert json.loads(Path("run/metrics.json").read_text())["epochs"] == 7


def test_the_commands_exist(tmp_path):
    write(tmp_path)
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shutil.copytree(tmp_path / "conf", tmp_path / "my_conf", dirs_exist_ok=True)
    seen = 0
    for command in COMMANDS:
        words = [word for word in shlex.split(command) if not word.startswith("PYTHONPATH=")]
        if words[0] == "make":
            assert words[1] in targets
        elif words[0] == "deephash":
            parsed = launch.parse_options(
                words[1], [word for word in words[2:] if word not in ("--config-dir", "my_conf")]
            )
            overrides = [arguments.normalize(text) for text in parsed.overrides if not text.startswith("resume=runs/<")]
            checking.check(words[1], overrides, str(tmp_path / "my_conf"), multirun=bool(parsed.multirun))
            seen += 1
        else:
            assert words == [".venv/bin/pre-commit", "install"]
            assert (ROOT / ".pre-commit-config.yaml").is_file()
    assert seen == 4


def test_the_paths_that_it_names_exist():
    """All paths, in the text and in the tree of CONTRIBUTING.md, are relative to the root of the repository."""
    names = re.findall(r"`([\w./-]+(?:\.py|\.md|/))`", CONTRIBUTING + TEXT) + tree()
    assert len(tree()) > 15
    assert [name for name in names if not (ROOT / name).exists()] == []


def tree() -> list[str]:
    """The paths of the tree in CONTRIBUTING.md; what is indented lies in the package."""
    section = CONTRIBUTING.split("## Where things are")[1]
    [block] = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    paths = []
    for line in block.splitlines():
        folder = "deephash_cli/" if line.startswith(" ") else ""
        paths += [folder + name for name in re.findall(r"(?<!\S)[\w/]+(?:\.py|/)(?=[\s,:]|$)", line)]
    return paths


@pytest.mark.slow
def test_the_tests_of_every_method_cover_a_new_one(tmp_path):
    """Run them in a copy of the repository to which only the three files are added."""
    leave_out = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("deephash_cli", "conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=leave_out)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    write(tmp_path, "deephash_cli")
    write(tmp_path, "conf")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods", "tests/test_conf.py"]
    result = subprocess.run(
        [*command, "-k", "mine", "-rA"], capture_output=True, text=True, timeout=280, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:]
    passed = re.findall(r"^PASSED (\S+)::.*mine", result.stdout, re.MULTILINE)
    assert len(passed) > 5
    assert any(str(name).startswith("tests/methods/") for name in passed)

"""``make gpu``: what becomes of a part that fails or takes too long. The parts here are stand-ins that need no GPU."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = "print('| what | ratio |'); print('| --- | --- |'); print('| {} | 0.9 |', flush=True)"
SLOW = f"{TABLE.format('slow')}; import subprocess; subprocess.run(['sleep', '60'])"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.fixture
def measured(gpu, tmp_path):
    """Return a function that does parts and returns the exit code and what was written."""

    def call(*todo, seconds=30.0):
        (tmp_path / "work").mkdir()
        file = tmp_path / "gpu.md"
        code = gpu.measure(todo, "a card.", file, tmp_path / "work", time.monotonic() + seconds)
        return code, file.read_text()

    return call


def part(gpu, title, code, seconds=30, summary=None):
    return gpu.Part("name" if summary is None else title, title, ("-c", code), seconds, summary)


def test_parts_with_a_result(gpu, measured):
    tables = [part(gpu, f"row {name}", TABLE.format(name)) for name in ("a", "b")]
    code, text = measured(part(gpu, "tests", "print('x'); print('=== 3 passed ===')", summary=gpu.last_line), *tables)
    assert code == 0
    assert text.splitlines() == [
        "a card.", "",
        "| part | seconds | result |", "| --- | ---: | --- |",
        "| tests | 0 | 3 passed |", "| row a | 0 | see below |", "| row b | 0 | see below |", "",
        "`name.py`:", "",
        "| what | ratio |", "| --- | --- |", "| a | 0.9 |", "| b | 0.9 |",
    ]  # fmt: skip


def test_a_part_that_fails_and_one_that_takes_too_long(gpu, measured, tmp_path):
    """The others are done all the same, and what was measured before the deadline is there."""
    failing = part(gpu, "failing", "raise ValueError('a | b')", summary=gpu.last_line)
    began = time.monotonic()
    code, text = measured(failing, part(gpu, "slow", SLOW, seconds=2), part(gpu, "last", TABLE.format("last")))
    assert time.monotonic() - began < 20
    assert code == 1
    assert "| failed with exit code 1: ValueError: a \\| b |" in text
    assert "| slow | 2 | out of time after 2 s |" in text
    assert text.endswith("| slow | 0.9 |\n| last | 0.9 |\n")


def test_the_whole_has_a_deadline(gpu, measured):
    code, text = measured(*(part(gpu, f"row {i}", SLOW) for i in range(3)), seconds=1)
    assert code == 1
    assert "| row 0 | 1 | out of time after 1 s |" in text
    assert [line for line in text.splitlines() if "left out: no time was left" in line] == [
        f"| row {i} | 0 | left out: no time was left |" for i in (1, 2)
    ]


def test_the_parts_are_what_there_is(gpu, tmp_path):
    todo = gpu.parts(tmp_path, gpu.RECIPE)
    assert {each.name for each in todo} == {"tests", "recipe", "warmup", "training"}
    files = [Path(word) for each in todo for word in each.arguments if word.endswith(".py")]
    assert ROOT / "tests" / "test_gpu.py" in files
    assert all(file.is_file() for file in files)
    assert gpu.SECONDS < 360


def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "machine", lambda: None)
    assert gpu.main() == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("torch finds no CUDA device on this machine")


def test_another_interpreter_gets_no_packages():
    command = ["make", "--no-print-directory", "--dry-run", "gpu", "BIN=/somewhere"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout == "/somewhere/python3 benchmarks/gpu.py\n"

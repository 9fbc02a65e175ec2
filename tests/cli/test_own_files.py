"""The files of the user's own configuration folder: limits, and errors that name the file, before Hydra reads it."""

import time
from pathlib import Path

import pytest

from deephash_cli.cli import checking
from deephash_cli.errors import ConfigError

FILE = Path("mine/optimizer/mine.yaml")
LISTS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a0: &a0 {k: x}\n" + "".join(
    f"a{number}: &a{number} {{<<: [*a{number - 1}, *a{number - 1}], k{number}: 1}}\n" for number in range(1, 30)
)


def refusal(content: str | bytes) -> str:
    """Write a file, choose it, and return the message of the error."""
    FILE.parent.mkdir(parents=True)
    FILE.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        checking.check("train", ["optimizer=mine"], "mine", multirun=False)
    assert time.process_time() - started < 2  # of which Hydra takes most
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: 1\n" * 2_000_000, "at most 1048576 bytes"), (LISTS, "more than 2000 values"),
        (MERGES, "more than 2000 values"), ("a: &a [*a]\n", "inside itself"), ("a:\n\t- 1\n", "in line 2"),
        ("a: 1\na: 2\n", "found duplicate key a in line 2"), ("a: !!python/name:os.system\n", "could not determine"),
        (b"a: \0\n", "cannot be read as YAML"), (b"a: \xff\n", "cannot be read as YAML"), ("[" * 100_000, "nesting"),
        (f"a: 0x{'f' * 5000}\n", "a number of 5002 digits"), (f"a: {'1:' * 30_000}1\n", "digits"),
        (f"a: {'x' * 70_000}\n", "a value of 70000 characters"), ("a: ${\n", "cannot be read as a configuration"),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_named(content, reason):
    message = refusal(content)
    assert str(FILE) in message
    assert reason in message


def test_a_cycle_of_interpolations_is_named():
    content = "_target_: torch.optim.SGD\n_partial_: true\nlr: ${optimizer.momentum}\nmomentum: ${optimizer.lr}\n"
    assert "optimizer.lr refers to itself" in refusal(content)


def test_a_file_that_includes_itself():
    assert "includes itself" in refusal("defaults:\n  - mine\n")


def test_only_files_that_hydra_reads_count():
    """Neither other files of the folder nor a whole disk are read."""
    FILE.parent.mkdir(parents=True)
    FILE.write_text("base: &base {lr: 0.5}\n_target_: torch.optim.SGD\n_partial_: true\nlr: 0.25\nmore:\n  <<: *base\n")
    (FILE.parent / "other.yaml").write_text(LISTS)
    found = checking.check("train", ["optimizer=mine"], "mine", multirun=False)
    assert found.optimizer.lr == 0.25
    assert found.optimizer.more.lr == 0.5
    started = time.monotonic()
    assert checking.check("train", ["seed=3"], "/", multirun=False).seed == 3
    assert time.monotonic() - started < 30

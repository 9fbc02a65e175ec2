"""One bad folder among many costs one row: any content of any of its files, in a second and little memory."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from synthetic import curves, write_gallery, write_run, write_steps

from deephash_cli import runs
from deephash_cli.errors import ArtifactError
from deephash_cli.runs import gallery, records, settings

BAD = Path("runs/bad")
LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def some() -> Path:
    """Three run folders, of which ``bad`` is the second by name."""
    for number, name in enumerate(("a", "bad", "c")):
        folder = write_run(f"runs/{name}", seed=number, metrics=curves(12, 0.5), record={"id": name})
        write_steps(folder)
        write_gallery(folder)
    return BAD


def special(name: str, kind: str) -> Callable[[], None]:
    """Return a function that replaces a file of the bad folder by something that is no plain file."""

    def replace() -> None:
        file = BAD / name
        file.unlink(missing_ok=True)
        file.parent.mkdir(exist_ok=True)
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to({"device": "/dev/zero", "broken link": "nowhere", "loop": file.name}[kind])

    return replace


def content(name: str, text: str | bytes) -> Callable[[], None]:
    """Return a function that writes a file of the bad folder."""

    def write() -> None:
        (BAD / name).parent.mkdir(exist_ok=True)
        (BAD / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def sparse(name: str, size: int) -> Callable[[], None]:
    """Return a function that makes a file of the bad folder as large as that, of zeros."""

    def write() -> None:
        (BAD / name).parent.mkdir(exist_ok=True)
        with (BAD / name).open("wb") as file:
            file.truncate(size)

    return write


def values(name: str, **new: object) -> Callable[[], None]:
    """Return a function that changes some values of a JSON file of the bad folder."""

    def change() -> None:
        (BAD / name).write_text(json.dumps({**json.loads((BAD / name).read_text()), **new}))

    return change


def setting(text: str) -> Callable[[], None]:
    """Return a function that adds lines to the settings of the bad folder."""

    def add() -> None:
        with (BAD / runs.CONFIG).open("a") as file:
            file.write(text)

    return add


FILES = (runs.RECORD, runs.CONFIG, runs.METRICS, runs.STEPS, runs.RETRIEVAL, runs.RETRIEVAL_IMAGE, "wandb/status.json")
ESCAPE = "\x1b[31mred\x9b31m"
EVIL: dict[str, Callable[[], None]] = {
    **{f"{name}: {kind}": special(name, kind) for name in FILES for kind in ("pipe", "device")},
    **{f"{name}: {kind}": special(name, kind) for name in FILES[:4] for kind in ("folder", "broken link", "loop")},
    ".lock: pipe": lambda: (special(".lock", "pipe")(), values(runs.RECORD, status="running")()),
    **{f"{name}: 300 MB": sparse(name, 300 * 2**20) for name in FILES},
    **{f"{name}: deep": content(name, "[" * 200_000) for name in FILES if name.endswith(("json", "yaml"))},
    **{f"{name}: a page": content(name, "<html><script>alert(1)</script>") for name in FILES},
    "many lists in config.yaml": content(runs.CONFIG, "a: [" + "[]," * 300_000 + "1]"),
    "many lists in metrics.json": content(runs.METRICS, "[" + "[]," * 1_390_000 + "1]"),
    "a key of many twice": content(runs.METRICS, "{" + ",".join(f'"{i}":1' for i in range(300_000)) + ',"299999":1}'),
    "aliases": content(runs.CONFIG, LAUGHS),
    "a date": setting("x: 2024-01-01\n"),
    "binary": setting("x: !!binary aGVsbG8=\n"),
    "a set": setting("x: !!set {a, b}\n"),
    "mixed keys in a list": setting("x: [{1: 2, a: 3}]\n"),
    "a long hexadecimal number": setting(f"x: 0x{'f' * 5000}\n"),
    "a long number with a base of 60": setting(f"x: {'1:' * 30_000}1\n"),
    "half of a character": setting('x: "\\ud800"\n'),
    "many settings": setting("".join(f"x{number}: {number}\n" for number in range(20_000))),
    "a long setting": setting(f"x: {'y' * 60_000}\n"),
    "escapes in settings": setting('"\\e[31m": "\\e[32mgreen\\e[0m"\n'),
    "bits that are a list": content(runs.CONFIG, "method: dpsh\nbits: [1]\nseed: 0\n"),
    "a method that is a number": content(runs.CONFIG, "method: 7\nbits: 1\nseed: 0\n"),
    "a number beyond any float": content(runs.METRICS, '{"map": 1e400}'),
    **{
        f"metrics.json: {name} of another kind, {number}": values(runs.METRICS, **{name: value})
        for number, (name, value) in enumerate((
            ("bits", True), ("bits", 10**400), ("seed", [1]), ("method", ESCAPE), ("method", "x" * 10**6),
            ("dataset", {"a": 1}), ("split", {"name": ESCAPE, "sha256": "a"}), ("policies", {"a": "b" * 10**6}),
            ("versions", {"deephash": [ESCAPE]}), ("queries", -1), ("map", "0.5"), ("precision_at_k", {"x": {}}),
            ("per_class", {"map": {"a": 1}}), ("class_names", [ESCAPE, 1]), ("pr_by_rank", {"precision": "x"}),
            ("precision_at_k", {str(k): 0.5 for k in range(100_000)}),
        ))
    },
    **{
        f"run.json: {name} of another kind, {number}": values(runs.RECORD, **{name: value})
        for number, (name, value) in enumerate((
            ("status", ESCAPE), ("status", "x" * 10**5), ("started", 5), ("started", ESCAPE), ("overrides", [1]),
            ("ended", [1]), ("error", {"a": ESCAPE}), ("error", "x" * 10**5), ("fingerprint", None),
        ))
    },
    "odd lines": content(runs.STEPS, b'{"step": 1e400, "train/loss": 1}\n[1]\n{"step": 1, "train/loss": '
                         + b"[" * 100_000 + b'\n{"step": {}, "train/loss": {}}\n\xff\n' + b"\n" * 10**6),
    "retrieval.json: a relevance of another kind": lambda: write_gallery(BAD, changes={"queries": [{"id": "x"}]}),
    "retrieval.json: a giant grid": values(runs.RETRIEVAL, tile=10**400, k=10**400),
}  # fmt: skip


LONG = ("many settings", "many lists in metrics.json", "a key of many twice", "odd lines")


def timed(deephash, *words):
    """The result of a command, and the processor time that it took, in seconds."""
    started = time.process_time()
    return deephash(*words), time.process_time() - started


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in EVIL])
def test_a_bad_folder_costs_one_row(deephash, monkeypatch, some, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    EVIL[name]()
    for words in (
        ("runs", "runs"),
        ("runs", "runs", "--format", "csv"),
        ("compare", "runs"),
        ("report", "runs", "-o", "page.html", "--overwrite"),
        ("sync", "runs", "--dry-run"),
    ):
        result, seconds = timed(deephash, *words)
        if seconds >= 1:  # the tests before may have left garbage, which is collected at any time
            result, seconds = timed(deephash, *words)
        assert seconds < 1, words
        assert result.code == (4 if words[0] == "sync" and result.err else 0), (words, result)
        assert "Traceback" not in result.err
        assert not {"\x1b", "\x9b", "\x00"} & {*result.out, *result.err}, words
        assert all(len(line) < 2000 for line in result.err.splitlines()), words
        if words[0] in ("runs", "sync"):
            assert "runs/a" in result.out
            assert "runs/c" in result.out
        if words[0] == "compare":
            assert "(2)" in result.out or "(3)" in result.out  # the number of seeds
    assert Path("page.html").stat().st_size < 2**20


HEAVY = """
import contextlib, io, json, resource, sys
from pathlib import Path
from deephash_cli.cli import main
limit = int(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    for words in (["runs", "runs"], ["compare", "runs"], ["report", "runs", "-o", "page.html"]):
        main.run(words)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path("runs/bad").mkdir(exist_ok=True)
    Path("waiting").rename("runs/bad")
    for words in (["runs", "runs"], ["compare", "runs"], ["report", "runs", "-o", "page.html"]):
        assert main.run(words) == 0
sys.stderr.write(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024}")
"""


@pytest.mark.parametrize(
    "name",
    [
        "many lists in metrics.json",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("a key of many twice", "many lists in config.yaml", "many settings", "config.yaml: 300 MB")
        ),
    ],
)
def test_a_bad_folder_takes_little_memory(some, name):
    EVIL[name]()
    BAD.rename("waiting")
    command = [sys.executable, "-c", HEAVY, "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stderr.split()[-1]) < 200, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["log", "line ends"])
def test_a_log_of_hundreds_of_megabytes_is_read_a_line_at_a_time(deephash, some, kind):
    """A real log is drawn, from its first step to its last; line ends alone are given up on."""
    if kind == "log":
        line = (
            '{{"step": {}, "time": 1795719501.385, "train/loss": {}, "lr/backbone": 0.0005, "epoch": 0.0, "x": "{}"}}'
        )
        with (BAD / runs.STEPS).open("w") as file:
            for step in range(500_000):
                print(line.format(step, 1 - step / 10**6, "y" * 300), file=file)
    else:
        content(runs.STEPS, b"\n" * (300 * 2**20))()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    assert deephash("report", "runs", "-o", "page.html").code == 0
    assert time.process_time() - started < (10 if kind == "log" else 2)  # some 200 MB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10
    data = json.loads(Path("page.html").read_text().partition('id="data">')[2].partition("</script>")[0])
    (group,) = data["sections"][0]["groups"]
    drawn = {seed: steps for seed, steps, _ in group["loss"]}
    assert len(drawn) == (3 if kind == "log" else 2)
    if kind == "log":
        assert len(drawn[1]) <= 60
        assert drawn[1] == sorted(drawn[1])
        assert drawn[1][0] < 50_000
        assert drawn[1][-1] > 490_000


def test_a_large_honest_run_is_within_the_limits():
    """4,096 bits, 1,000 classes with names, a thousand cut-offs."""
    table = {str(k): 0.123456789012345678 for k in range(1, 1001)}
    metrics = curves(4096, 0.123456789012345678)
    metrics |= dict.fromkeys(("precision_at_k", "recall_at_k", "ndcg_at_k", "acg_at_k"), table)
    metrics |= {"per_class": {"map": [0.123456789012345678] * 1000, "queries": [10] * 1000}}
    metrics |= {"class_names": [f"a class with a rather long name, number {number}" for number in range(1000)]}
    folder = write_run("runs/large", bits=4096, metrics=metrics)
    (folder / runs.METRICS).write_text(json.dumps(json.loads((folder / runs.METRICS).read_text()), indent=2))
    weights = {"weights": [0.123456789012345678] * 1000}
    (folder / runs.CONFIG).write_text((folder / runs.CONFIG).read_text() + yaml.safe_dump({"loss": weights}))
    write_gallery(folder, queries=10, k=10, tile=64)
    assert records.metrics(folder)["bits"] == 4096
    assert records.settings(folder)["loss.weights"] == weights["weights"]
    assert len(gallery.read(folder).queries) == 10


def test_the_epoch_is_that_of_the_last_whole_line(some):
    with (BAD / runs.STEPS).open("a") as file:
        file.write('\n{"step": 80, "epoch": 1.0}\n{"step": 99, "epo')
    assert records.epochs(BAD) == 2


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("a: &a {b: 1}\nc: *a\n", True), ("a: &a [*a]\n", False), (LAUGHS, False), ("a: *b\n", False)],
    ids=["once", "inside itself", "laughs", "unknown"],
)
def test_aliases_count_as_often_as_they_are_used(tmp_path, text, is_right):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    if is_right:
        assert settings.bounded_yaml(file, has_aliases=True) == text.encode()
    else:
        with pytest.raises(ArtifactError, match=r"own\.yaml"):
            settings.bounded_yaml(file, has_aliases=True)

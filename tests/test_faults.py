"""The n-th rename, flush or write fails: the old file is whole or absent, a sentence says why, a retry succeeds."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from faults import Fault

from deephash_cli.cli import main as cli
from deephash_cli.cli.main import run as deephash_here

KINDS = ("replace", "fsync", "write")
DOCUMENTED = {2, 3, 4, 5}
# What two runs of a command need not have in common: times, process numbers and paths in them.
VARYING = {
    "run.json", "metrics.jsonl", ".lock", "number.json", "last.ckpt", "previous.ckpt", "last.ckpt.json",
    "previous.ckpt.json", "config.yaml", "manifest.json", "metrics.json", "page.html", "found.json", "cli.faiss.json",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Vectors, two finished runs on them, and codes of both. Not to be written to."""

    root: Path
    vectors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    classes = np.arange(240) % 3
    x = rng.normal(size=(3, 12))[classes] + 0.5 * rng.normal(size=(240, 12))
    np.save(root / "x.npy", x.astype(np.float32))
    np.save(root / "y.npy", classes)
    data = [
        "dataset=vectors", f"dataset.vectors={root / 'x.npy'}", f"dataset.labels={root / 'y.npy'}", "trainer=cpu",
        "logger=none", "bits=8",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPHASH_CACHE_DIR", str(root / "cache"))
        for seed in (0, 1):
            assert cli.run(["train", "method=itq", *data, f"seed={seed}", f"run_dir={root / f'run{seed}'}"]) == 0
            encoded = [f"run={root / f'run{seed}'}", f"input={root / 'x.npy'}", f"output={root / f'codes{seed}'}"]
            assert cli.run(["encode", *encoded]) == 0
    return World(root, data)


# For each verb: its words for a world, an output and a seed, which decides the content of the output.
VERBS: dict[str, Callable[[World, Path, int], list[str]]] = {
    "train": lambda w, out, seed: [
        "train", "method=dpsh", *w.vectors, f"seed={seed}", "trainer.max_epochs=2", "checkpoint.every_seconds=0",
        f"run_dir={out / 'run'}", "resume=auto",
    ],
    "encode": lambda w, out, seed: [
        "encode", f"run={w.root / f'run{seed}'}", f"input={w.root / 'x.npy'}", f"output={out / 'codes'}",
        "shard_size=90",
    ],
    "export": lambda w, out, seed: [
        "export", f"run={w.root / f'run{seed}'}", "to=postgres", f"output={out / 'made'}", "overwrite=true",
    ],
    "index": lambda w, out, seed: [
        "index", f"codes={w.root / f'codes{seed}'}", "kind=multihash", f"output={out / 'cli.faiss'}",
    ],
    "report": lambda w, out, seed: ["report", str(w.root / f"run{seed}"), "--output", str(out / "page.html")],
    "eval": lambda w, out, seed: ["eval", f"run={w.root / f'run{seed}'}", f"output={out / 'measured.json'}"],
    "search": lambda w, out, seed: [
        "search", f"run={w.root / f'run{seed}'}", f"query={w.root / 'x.npy'}", "picture=null",
        f"output={out / 'found.json'}",
    ],
    "compare": lambda w, out, seed: [
        "compare", str(w.root / f"run{seed}"), "--output", str(out / "table.csv"),
    ],
}  # fmt: skip
CONTINUED = {"train", "encode"}  # verbs that continue what is in their output, and never replace it


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file whose content does not depend on the time."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in VARYING]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def assert_whole(folder: Path, allowed: list[dict[str, str]]) -> None:
    """Check that every file has the content that it has in one of the allowed folders, and that no other is cut."""
    for name, digest in digests(folder).items():
        if "/.features" not in name and not name.endswith(".tmp"):
            assert digest in [known.get(name) for known in allowed] or "shards/" in name, f"{name} is half a file"
    for file in folder.rglob("*.json"):
        json.loads(file.read_text())
    for file in folder.rglob("*.yaml"):
        yaml.safe_load(file.read_text())
    for file in folder.rglob("metrics.jsonl"):
        assert all(json.loads(line) for line in file.read_text().splitlines())


def one_sentence(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Check what a command that failed has said."""
    err = capsys.readouterr().err
    assert "Traceback" not in err, err
    assert code in DOCUMENTED, (code, err)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, err
    assert any(cause in said[0] for cause in ("No space left on device", "Input/output error")), said


def places(count: int, most: int | None) -> Iterator[int]:
    """Return the calls that are to fail: all, or of very many the first and last ten and some between."""
    if most is not None and count > most:
        yield from sorted({1, 2, count // 2, count})
    elif count > 60:
        yield from sorted({*range(1, 11), *range(11, count - 9, count // 20), *range(count - 9, count + 1)})
    else:
        yield from range(1, count + 1)


def fail_everywhere(world: World, verb: str, kind: str, place: Path, capsys, most: int | None = None) -> int:
    """Run a verb once for each call that can fail, and check what is left. Return the number of failures."""
    words, out = VERBS[verb], place / "out"
    old = place / "old"
    for folder, seed in ((old, 1), (place / "new", 0)):
        (folder).mkdir()
        with Fault(kind, place).armed() as counting:
            assert deephash_here(words(world, folder, seed)) == 0
    allowed = [digests(old), digests(place / "new")] if verb not in CONTINUED else [digests(place / "new")]
    new, whole = digests(place / "new"), names(place / "new")
    failures = 0
    for at in places(counting.seen, most):
        shutil.rmtree(out, ignore_errors=True)
        if verb in CONTINUED:
            out.mkdir()
        else:
            shutil.copytree(old, out)
        capsys.readouterr()
        with Fault(kind, place, at).armed():
            code = deephash_here(words(world, out, 0))
        if code:
            failures += 1
            one_sentence(code, capsys)
        assert_whole(out, allowed)
        assert deephash_here(words(world, out, 0)) == 0, (verb, kind, at, capsys.readouterr())
        assert digests(out) == new, (verb, kind, at)
        assert names(out) == whole, (verb, kind, at)
    return failures


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_the_nth_fault_of_every_verb(world, verb, kind, tmp_path, capsys):
    fail_everywhere(world, verb, kind, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "encode"])
def test_some_faults_of_the_disk(world, verb, tmp_path, capsys):
    assert fail_everywhere(world, verb, "write", tmp_path, capsys, most=4) >= 3

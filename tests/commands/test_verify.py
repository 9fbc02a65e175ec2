"""``deephash verify``: every flipped bit is found, whatever it is in, and no verb uses one without a word."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import digests
import mutations
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from deephash_cli import runs
from deephash_cli.cli import checking, verbs
from deephash_cli.data.features import cached_features
from deephash_cli.data.image_folder import image_folder
from deephash_cli.files import is_sealed
from deephash_cli.runs import verifying

FEATURES = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """The configurations of the verbs, composed once, for verbs that are called without the command line."""
    names = ("eval", "search", "export", "index", "encode")
    return {verb: checking.check(verb, [], None, multirun=False) for verb in names}


@pytest.fixture(scope="module")
def everything(hashed, settings, tmp_path_factory) -> Path:
    """One of each: a run, whole and half-encoded codes, an index, an export, features, half of them, and pixels."""
    place = tmp_path_factory.mktemp("everything")
    shutil.copytree(hashed.run, place / "runs" / "a")
    shutil.copytree(hashed.photos, place / "photos")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(place)
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        for verb, chosen in (
            ("encode", {**ENCODING, "output": "codes"}),
            ("encode", {**ENCODING, "output": "half", "shard_size": 25, "shards": [0, 2]}),
            ("index", {"codes": "codes", "kind": "flat", "output": "flat.faiss"}),
            ("export", {"codes": "codes", "to": "faiss", "output": "exported"}),
        ):
            verbs.load(verb).run(OmegaConf.merge(settings[verb], chosen))
        features(place / "cache" / "features" / "whole")
        patch.setattr("deephash_cli.data.features._FLUSH_ROWS", 10)
        with pytest.raises(KeyboardInterrupt):
            features(place / "cache" / "features" / "half", dies_at=30)
        image_folder(place / "photos")  # keeps the pixels of small images
    return place


ENCODING = {"run": "runs/a", "input": "photos", "num_workers": 0, "accelerator": "cpu"}


def features(folder: Path, dies_at: int | None = None) -> np.ndarray:
    """Features as a run computes them, or the first of them."""

    def compute(start: int, stop: int) -> torch.Tensor:
        if stop == dies_at:
            raise KeyboardInterrupt
        return FEATURES[start:stop]

    return cached_features(folder, len(FEATURES), FEATURES.shape[1], compute, lambda _: None).array


@pytest.fixture
def place(everything, monkeypatch) -> Path:
    """The current folder, with a copy of everything."""
    shutil.copytree(everything, Path.cwd(), dirs_exist_ok=True)
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", str(Path.cwd() / "cache"))
    return Path.cwd()


def flipped(file: Path, number: int) -> Callable[[], object]:
    """Flip one bit of a file that has a digest, and return what undoes it."""
    original = file.read_bytes()
    done = json.loads(file.with_suffix(".json").read_text())["bytes"] if file.name == "partial.npy" else len(original)
    mutations.flip(file, number, done)
    return lambda: file.write_bytes(original)


def states(*paths: str | Path) -> dict[str, str]:
    return {str(checked.path): checked.state for checked in verifying.verify([Path(path) for path in paths])}


def files_with_digests() -> list[Path]:
    """All files of the current folder but the photos; the record of a checkpoint if it is sealed."""
    found = [file for top in TOPS for path in sorted(Path().glob(top)) for file in [path, *sorted(path.rglob("*"))]]
    return [
        file
        for file in found
        if file.is_file()
        and file.name not in (".lock", "lock")
        and not (file.name.endswith(".ckpt.json") and not is_sealed(file))
    ]


TOPS = ("runs", "codes", "half", "flat.faiss*", "exported", "cache/features", "cache/images")


# What is found


def test_what_is_whole_is_intact(place, deephash):
    pixels = next(Path("cache/images").glob("*.npy"))
    found = {
        "runs/a": "intact", "codes": "intact", "half": "unfinished", "flat.faiss": "intact", "exported": "intact",
        "cache/features/whole": "intact", "cache/features/half": "unfinished", str(pixels): "intact",
    }  # fmt: skip
    assert states(".") == found
    result = deephash("verify", ".")
    assert result.code == 0
    *lines, summary = result.out.splitlines()
    assert len(lines) == 4, "two things and their notes"
    assert {*summary.split("; ")} == {
        "run: 1 intact", "codes: 1 unfinished, 1 intact", "index: 1 intact", "export: 1 intact",
        "features: 1 unfinished, 1 intact", "images: 1 intact",
    }  # fmt: skip
    shown = deephash("verify", ".", "--all").out
    assert all(re.search(rf"^{state} .* {re.escape(path)}$", shown, re.M) for path, state in found.items())


@pytest.mark.parametrize(
    "flips", [pytest.param(range(2), id="2"), pytest.param(range(2, 32), id="30", marks=pytest.mark.slow)]
)
def test_every_flipped_bit_is_noticed(place, flips):
    files, things = files_with_digests(), states(".")
    assert len(files) > 40
    missed = []
    for file in files:
        (thing,) = [str(path) for path in (file, *file.parents, file.with_suffix("")) if str(path) in things] or [
            str(file.with_suffix(".npy"))
        ]
        for number in flips:
            undo = flipped(file, number)
            if states(thing)[thing] != "damaged":
                missed.append(f"{file}, flip {number}")
            undo()
    assert not missed, "\n".join(missed)
    assert states(".") == things


@pytest.mark.parametrize("name", ["runs/a/metrics.json", "runs/a/codes/query_ids.txt", "codes/skipped.csv",
                                  "half/shards/000002/database.npy", "exported/ids.txt", "flat.faiss"])  # fmt: skip
def test_a_missing_file_is_damage(place, deephash, name):
    Path(name).unlink()
    if name == "flat.faiss":
        Path(name).symlink_to("nowhere")
    result = deephash("verify", *TOPS[:3], "exported", *(["flat.faiss"] if Path("flat.faiss").is_file() else []))
    if name == "flat.faiss":
        assert result.code == 0, "there is no index to verify"
        return
    assert result.code == 4
    assert f"{name} " in result.out
    assert result.err == "error: 1 of 5 are damaged\n"


def test_the_reason_and_the_remedy_follow_the_name(place, deephash):
    for name in ("runs/a/metrics.json", "runs/a/codes/database.npy", "codes/encode.json", "flat.faiss"):
        flipped(Path(name), 0)
    result = deephash("verify", "runs", "codes", "flat.faiss")
    assert result.code == 4
    assert re.sub(" +", " ", result.out).splitlines() == [
        "damaged run runs/a",
        " runs/a/metrics.json does not match its SHA-256 in run.json: it was damaged or edited by hand; "
        "deephash eval run=runs/a output=runs/a/metrics.json writes it again",
        " runs/a/codes/database.npy does not match its SHA-256 in manifest.json: it was damaged or replaced; "
        "deephash train resume=runs/a makes it again",
        "damaged codes codes",
        " codes/encode.json does not match its own SHA-256: it was damaged or edited by hand; "
        "delete the folder and encode again",
        "damaged index flat.faiss",
        " flat.faiss does not match flat.faiss.json: it was damaged or replaced; "
        "delete it: deephash index output=flat.faiss builds it again",
        "run: 1 damaged; codes: 1 damaged; index: 1 damaged",
    ]
    records = json.loads(deephash("verify", "runs", "codes", "--format", "json").out)
    assert [(record["path"], record["state"], len(record["problems"])) for record in records] == [
        ("runs/a", "damaged", 2), ("codes", "damaged", 1),
    ]  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(deephash("verify", "runs", "half", "--format", "csv").out)))
    assert [(line["path"], line["file"]) for line in lines] == [
        ("runs/a", "runs/a/metrics.json"), ("runs/a", "runs/a/codes/database.npy"), ("half", ""),
    ]  # fmt: skip


def test_what_an_earlier_version_wrote_is_unverified(place, deephash):
    digests.edit("runs/a/run.json", files=None)
    for name in ("runs/a/codes/manifest.json", "codes/manifest.json", "codes/encode.json", "flat.faiss.json"):
        digests.edit(name)
    result = deephash("verify", "runs", "codes", "flat.faiss")
    assert result.code == 0
    assert "run: 1 unverified; codes: 1 unverified; index: 1 unverified" in result.out
    assert "an earlier version wrote it without digests of config.yaml, split.json" in result.out
    flipped(Path("runs/a/codes/query.npy"), 0)
    assert states("runs") == {"runs/a": "damaged"}, "its codes had digests then"


@pytest.mark.parametrize("status", ["running", "interrupted", "killed"])
def test_a_run_that_has_not_ended_is_no_damage(tmp_path, deephash, status):
    run = runs.create(tmp_path, "name", str(tmp_path / "run"))
    run.start("seed: 0\n", "f", [])
    run.unseal(runs.STEPS)
    (run.path / runs.STEPS).write_text('{"step": 1, "ti')
    if status == "interrupted":
        run.end("interrupted")
    if status != "running":
        run.close()
    assert states(tmp_path) == {str(run.path): "running" if status == "running" else "unfinished"}
    assert deephash("verify", str(tmp_path)).code == 0
    run.close()


def test_a_line_that_a_kill_cut_off_is_no_damage_and_a_flip_after_the_end_is(tmp_path):
    folder = tmp_path / "run"
    run = runs.create(tmp_path, "name", str(folder))
    run.start("seed: 0\n", "f", [])
    run.unseal(runs.STEPS)
    (folder / runs.STEPS).write_text('{"step": 1}\n{"step": 2')
    run.end("interrupted")
    run.close()
    assert states(folder) == {str(folder): "unfinished"}
    flipped(folder / runs.STEPS, 0)
    assert states(folder) == {str(folder): "damaged"}


def test_paths_that_hold_nothing(place, deephash):
    Path("empty").mkdir()
    for words, said in (
        (["photos"], "deephash wrote nothing in photos that has digests"),
        (["empty"], "deephash wrote nothing in empty that has digests"),
        (["nowhere"], "nowhere does not exist"),
        (["x" * 5000], "does not exist"),
        (["photos/bag/000.jpg"], "photos/bag/000.jpg is a file without digests"),
        ([], "the following arguments are required"),
    ):
        result = deephash("verify", *words)
        assert result.code == 2
        assert said in result.err
        assert result.err.count("\n") == 1


def test_each_thing_once_and_no_link_is_followed(place):
    Path("outside").mkdir()
    shutil.move("codes", "outside/codes")
    Path("tree").mkdir()
    Path("tree/link").symlink_to(Path("outside").absolute())
    Path("tree/loop").symlink_to(Path("tree").absolute())
    shutil.copytree("runs/a", "tree/a")
    assert states("tree", "tree/a", Path("tree").absolute()) == {"tree/a": "intact"}
    assert states("runs/a/codes") == {"runs/a/codes": "intact"}, "the codes of a run alone"
    (checkpoint,) = Path("runs/a/checkpoints").glob("last.ckpt")
    assert states(checkpoint) == {str(checkpoint): "intact"}


# Whatever is in a file


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "huge", "nested", "binary", "empty"])
def test_any_content_of_any_file(place, kind):
    """One result for each thing, within seconds: no pipe blocks, and no file of any size or depth is a crash."""
    for file in files_with_digests():
        original = file.read_bytes()
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "huge":
            with file.open("wb") as sparse:
                sparse.truncate(2**23)
        else:
            file.write_bytes({"nested": b"[" * 100_000, "binary": bytes(range(256)), "empty": b""}[kind])
        start = time.monotonic()
        found = states(*TOPS[:3], "exported", "cache")
        assert time.monotonic() - start < 5
        assert "damaged" in found.values() or len(found) < 7 or file.name.startswith("flat.faiss"), file
        if kind == "folder":
            file.rmdir()
        else:
            file.unlink()
        file.write_bytes(original)


def test_names_in_a_record_lead_nowhere_else(place):
    source = Path("exported/source.json")
    names = {"../photos/bag/000.jpg": "0" * 64, "/etc/hostname": "0" * 64, "": "0" * 64, "..": 1}
    digests.edit(source, sha256=names)
    (checked,) = verifying.verify([Path("exported")])
    assert checked.state == "damaged"
    assert {problem.what for problem in checked.problems} == {
        f"{source} names a file outside the folder: it was edited by hand"
    }

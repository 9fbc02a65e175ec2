"""Interrupted runs: a resumed run ends with the same bytes as one that was never interrupted, whatever ended it.

All runs here shuffle, shift and mirror their images and use dropout, so that each random number matters.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mutations
import numpy as np
import pytest
import torch
from conftest import METHODS, QUICK, sampled, write_photos
from digests import forget

from deephash_cli import choices, runs
from deephash_cli.cli import main as cli
from deephash_cli.errors import Stopped
from deephash_cli.files import read_json, read_sealed, write_sealed
from deephash_cli.methods.base import HashingModule
from deephash_cli.runs import verifying
from deephash_cli.training import mid_epoch
from deephash_cli.training.checkpoints import LAST, PREVIOUS, batches_done, newest_valid, read_checkpoint
from deephash_cli.training.inputs import Source

# 54 training images: batches of 16, 16, 16 and 6.
SETTINGS = (
    *QUICK,
    "bits=12",
    "loader.batch_size=16",
    "model.network.hidden_units=16",
    "model.network.dropout=0.5",
    "head.epochs=1",
    "ema.decay=0.9",
    "trainer.max_epochs=4",
    "dataset=image_folder",
)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Return a function: ``train("run_dir=...")`` is a command line that trains with SETTINGS on the same photos."""
    photos = write_photos(tmp_path_factory.mktemp("data") / "photos")
    return lambda *overrides: ["train", *SETTINGS, f"dataset.root={photos}", *overrides]


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """Run folder of a run that was not interrupted."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        assert cli.run(train(f"run_dir={place / 'run'}")) == 0
    return place / "run"


@pytest.fixture
def vectors(tmp_path):
    """Settings of a data set of 137 training vectors in nine batches."""
    rng = np.random.default_rng(0)
    kinds = np.arange(157) % 5
    np.save(tmp_path / "x.npy", (rng.normal(size=(5, 16))[kinds] * 1.5 + rng.normal(size=(157, 16))).astype(np.float32))
    np.save(tmp_path / "y.npy", kinds)
    data = ("dataset=vectors", f"dataset.vectors={tmp_path / 'x.npy'}", f"dataset.labels={tmp_path / 'y.npy'}")
    return (*data, "bits=12", "trainer=cpu", "logger=none", "checkpoint.every_seconds=0", "loader.batch_size=16")


@pytest.fixture(autouse=True)
def _signals():
    """Restore the signal handlers: the command line replaces those of its process, which is that of pytest here."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class at:  # noqa: N801  it reads like a sentence
    """Context in which ``act(module)`` is called when a batch starts: ``with at(epoch, batch, act):``."""

    def __init__(self, epoch, batch, act):
        self.moment, self.act, self.patch = (epoch, batch), act, pytest.MonkeyPatch()

    def __enter__(self):
        start = HashingModule.on_train_batch_start

        def hook(module, batch, batch_idx):
            if (module.current_epoch, batch_idx) == self.moment:
                self.act(module)
            return start(module, batch, batch_idx)

        self.patch.setattr(HashingModule, "on_train_batch_start", hook)

    def __exit__(self, *_):
        self.patch.undo()


def stop(module):
    raise Stopped(130)


def digests(folder):
    files = sorted((folder / "codes").glob("*.npy"))
    assert len(files) == 6
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def state(folder, name=LAST):
    return read_checkpoint(folder / "checkpoints" / name)["state_dict"]


def assert_same(folder, whole):
    assert digests(folder) == digests(whole)
    one, other = state(folder), state(whole)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_json(folder / "run.json")["status"] == "finished"
    mine, theirs = read_json(folder / "metrics.json"), read_json(whole / "metrics.json")
    assert {name for name in theirs if mine[name] != theirs[name]} <= {"checkpoint"}  # a checkpoint file contains times
    assert_each_epoch_once(folder, whole)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(folder):
    """The lines of the record as lists, because the order of the names counts, too; without the times."""
    return [[entry for entry in line.items() if not entry[0].startswith("time")] for line in lines(folder)]


def assert_each_epoch_once(folder, whole):
    assert numbers(folder) == numbers(whole)
    assert [line["epoch"] for line in lines(folder)] == list(range(len(lines(whole))))


def status(folder):
    return read_json(folder / "run.json")["status"]


@pytest.fixture(scope="module")
def interrupted(train, tmp_path_factory):
    """Run folder of a run that was stopped after two of four epochs."""
    place = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch, at(2, 0, stop):
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        assert cli.run(train(f"run_dir={place / 'run'}")) == 130
    return place / "run"


@pytest.fixture
def stopped(interrupted, tmp_path):
    """Copy of the interrupted run folder; a run folder may be moved."""
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    assert status(folder) == "interrupted"
    assert read_checkpoint(folder / "checkpoints" / LAST)["epoch"] == 1
    assert not (folder / "metrics.json").exists()
    return folder


def test_two_whole_runs_are_the_same(train, whole, deephash, tmp_path):
    assert deephash(*train(f"run_dir={tmp_path / 'run'}")).code == 0
    assert_same(tmp_path / "run", whole)


def test_another_seed_is_another_run(train, whole, deephash, tmp_path):
    assert deephash(*train(f"run_dir={tmp_path / 'run'}", "seed=1")).code == 0
    assert not torch.equal(state(tmp_path / "run")["u_buffer"], state(whole)["u_buffer"])


# stopping and resuming


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(train, stopped, whole, deephash):
    identity = read_json(stopped / "run.json")["id"]
    result = deephash(*train(f"run_dir={stopped}", "resume=auto"))
    assert result.code == 0
    assert_same(stopped, whole)
    assert read_json(stopped / "run.json")["id"] == identity


def test_a_folder_alone_is_enough_to_go_on(stopped, whole, deephash):
    assert deephash("train", f"resume={stopped}").code == 0
    assert_same(stopped, whole)


def test_without_a_folder_the_run_is_found_by_its_settings(train, whole, deephash):
    with at(2, 3, stop):
        assert deephash(*train()).code == 130
    (folder,) = Path("runs").glob("image_folder-*")
    assert deephash(*train("resume=auto", "seed=1")).code == 0  # another seed is another run with its own folder
    assert status(folder) == "interrupted"
    assert deephash(*train("resume=auto")).code == 0
    assert_same(folder, whole)
    assert len(list(Path("runs").glob("image_folder-*"))) == 2


def test_without_an_earlier_run_it_starts(train, whole, deephash, tmp_path):
    assert deephash(*train(f"run_dir={tmp_path / 'run'}", "resume=auto")).code == 0
    assert_same(tmp_path / "run", whole)


def test_a_run_can_be_stopped_again_and_again(train, whole, deephash, tmp_path):
    folder = tmp_path / "run"
    for epoch, batch in ((0, 2), (1, 1), (3, 3)):
        with at(epoch, batch, stop):
            assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 130
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)


def test_a_run_can_be_stopped_while_it_encodes(train, whole, deephash, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Source, "codes", lambda source, *_: stop(source))
        assert deephash(*train(f"run_dir={folder}")).code == 130
    assert read_checkpoint(folder / "checkpoints" / LAST)["epoch"] == 3
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)


def test_a_finished_run_is_not_done_again(train, stopped, deephash, monkeypatch):
    assert deephash(*train(f"run_dir={stopped}", "resume=auto")).code == 0
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    monkeypatch.setattr(HashingModule, "on_train_batch_start", lambda *_: pytest.fail("it trains"))
    for resume in (train(f"run_dir={stopped}", "resume=auto"), ["train", f"resume={stopped}"]):
        result = deephash(*resume)
        assert result.code == 0
        assert f"already done: {stopped}" in result.out
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()} == before


def test_more_epochs_go_on_from_a_finished_run_to_the_same_bytes(train, deephash, tmp_path):
    for name, epochs in (("short", 2), ("long", 3)):
        settings = (f"trainer.max_epochs={epochs}", "scheduler=constant")  # a cosine depends on the number of epochs
        assert deephash(*train(f"run_dir={tmp_path / name}", *settings)).code == 0
    assert deephash("train", f"resume={tmp_path / 'short'}", "trainer.max_epochs=3").code == 0
    assert read_json(tmp_path / "short" / "metrics.json")["epochs"] == 3
    assert_same(tmp_path / "short", tmp_path / "long")


def test_other_settings_are_another_run(train, stopped, deephash):
    before = (stopped / "run.json").read_bytes()
    for named in (train(f"run_dir={stopped}", "resume=auto"), ["train", f"resume={stopped}"]):
        result = deephash(*named, "optimizer.lr=0.5", "seed=7", "trainer.max_epochs=6")
        assert result.code == 2
        assert "optimizer.lr: 0.001 -> 0.5; seed: 0 -> 7" in result.err
        assert "max_epochs" not in result.err
        assert (stopped / "run.json").read_bytes() == before


def test_a_new_run_does_not_write_into_the_folder_of_another(train, stopped, deephash):
    result = deephash(*train(f"run_dir={stopped}"))
    assert result.code == 2
    assert f"resume={stopped}" in result.err


def test_other_images_are_another_run(train, stopped, deephash):
    root = Path(read_json(stopped / "run.json")["overrides"][-2].partition("=")[2])
    moved = root / "bag" / "000.jpg"
    moved.rename(root / "bag" / "other.jpg")
    try:
        result = deephash(*train(f"run_dir={stopped}", "resume=auto"))
    finally:
        (root / "bag" / "other.jpg").rename(moved)
    assert result.code in (3, 4)
    assert "split.json" in result.err


# damage


@pytest.mark.parametrize("damage", ["truncate", "flip", "no sidecar"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(train, stopped, whole, deephash, damage):
    last = stopped / "checkpoints" / LAST
    content = last.read_bytes()
    if damage == "truncate":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        last.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    else:
        last.with_name(f"{LAST}.json").unlink()
    result = deephash(*train(f"run_dir={stopped}", "resume=auto"))
    assert result.code == 0
    assert "skipped a checkpoint" in result.err
    assert str(last) in result.err
    assert_same(stopped, whole)


def test_with_both_damaged_the_run_starts_over_and_says_so(train, stopped, whole, deephash):
    for name in (LAST, PREVIOUS):
        (stopped / "checkpoints" / name).write_bytes(b"")
    result = deephash(*train(f"run_dir={stopped}", "resume=auto"))
    assert result.code == 0
    assert result.err.count("skipped a checkpoint") == 2
    assert_same(stopped, whole)


@pytest.fixture(scope="module")
def others(train, tmp_path_factory):
    """Folders of checkpoints of other runs on the same photos, by what is different."""
    place = tmp_path_factory.mktemp("others")
    quick = ("trainer.max_epochs=1", "head.epochs=0")
    changes = {"seed": ["seed=1", "head.epochs=1"], "bits and method": ["bits=24", "method=dhn", *quick]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        for name, settings in changes.items():
            assert cli.run(train(f"run_dir={place / name}", *settings, "trainer.max_epochs=1")) == 0
    return {name: place / name / "checkpoints" for name in changes}


@pytest.mark.parametrize(
    ("change", "old", "sentence"),
    [("seed", False, r"must be a checkpoint of run \w+ \(seed=0\), got one of run \w+ \(seed=1\): put the right file"),
     ("bits and method", False, r"\(method=dpsh, bits=12\), got one of run \w+ \(method=dhn, bits=24\)"),
     ("bits and method", True, r"last\.ckpt does not fit the network of this run: .* must be a tensor of shape")],
    ids=["seed", "bits and method", "format 1, which does not say whose it is"],
)  # fmt: skip
def test_the_checkpoint_of_another_run_is_refused(train, stopped, others, deephash, change, old, sentence):
    last = stopped / "checkpoints" / LAST
    for file in (LAST, f"{LAST}.json"):
        shutil.copy(others[change] / file, last.with_name(file))
    if old:
        sidecar = {"format": 1, "deephash": "0.1.0", "sha256": hashlib.sha256(last.read_bytes()).hexdigest()}
        last.with_name(f"{LAST}.json").write_text(json.dumps(sidecar))
    before = {path.name: path.read_bytes() for path in last.parent.iterdir()}
    for resume in (train(f"run_dir={stopped}", "resume=auto"), ["train", f"resume={stopped}"]):
        result = deephash(*resume)
        assert result.code == 4, result
        assert re.search(sentence, result.err), result.err
        assert result.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in last.parent.iterdir()} == before


def test_a_newer_checkpoint_is_not_trained_over(train, stopped, deephash):
    sidecar = stopped / "checkpoints" / f"{LAST}.json"
    write_sealed(sidecar, {**read_sealed(sidecar), "format": 9, "deephash": "9.0"})
    before = {path.name: path.read_bytes() for path in sidecar.parent.iterdir()}
    result = deephash(*train(f"run_dir={stopped}", "resume=auto"))
    assert result.code == 4
    assert "was written by a newer deephash (9.0)" in result.err
    assert "Traceback" not in result.err
    assert {path.name: path.read_bytes() for path in sidecar.parent.iterdir()} == before


def test_checkpoints_of_format_1_are_continued_to_the_same_bytes(train, stopped, whole, deephash):
    for name in (LAST, PREVIOUS):
        sidecar = stopped / "checkpoints" / f"{name}.json"
        content = read_sealed(sidecar)
        kept = {key: content[key] for key in ("deephash", "bytes", "sha256")}
        sidecar.write_text(json.dumps({"format": 1, **kept}))
    assert deephash(*train(f"run_dir={stopped}", "resume=auto")).surprises == ""
    assert_same(stopped, whole)


def test_fewer_epochs_than_were_done_are_refused(stopped, deephash):
    result = deephash("train", f"resume={stopped}", "trainer.max_epochs=1")
    assert result.code == 2
    assert f"trainer.max_epochs=1 is less than the 2 epochs that the run in {stopped} has begun: raise it" in result.err
    assert "Traceback" not in result.err


def test_a_line_that_was_cut_off_is_left_out(train, stopped, whole, deephash):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "time": 1.0, "epo')
    forget(stopped, "metrics.jsonl")  # a run that was killed could not record its digest
    assert deephash(*train(f"run_dir={stopped}", "resume=auto")).code == 0
    assert_same(stopped, whole)


# signals


def send(number):
    return lambda _: os.kill(os.getpid(), number)


def place(folder):
    """Number of steps in the last checkpoint, and how many of them belong to an unfinished epoch."""
    saved = read_checkpoint(folder / "checkpoints" / LAST)
    return saved["global_step"], batches_done(saved)


def assert_same_bytes(folder, whole):
    for file in (*(whole / "codes").iterdir(), whole / "metrics.json"):
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes(), file.name
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_the_current_step_and_it_goes_on_within_the_epoch(
    train, whole, deephash, tmp_path, number, code
):
    folder = tmp_path / "run"
    with at(2, 1, send(number)):
        result = deephash(*train(f"run_dir={folder}"))
    assert result.code == code
    assert result.err.startswith("stopping after this step; a second ")
    assert "a checkpoint was written after step 10, because a signal asked for it" in result.out
    assert f"interrupted: resume={folder} continues after the last finished step" in result.out
    assert status(folder) == "interrupted"
    assert place(folder) == (10, 2)  # four steps an epoch
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        step = HashingModule.training_step
        patch.setattr(HashingModule, "training_step", lambda m, *rest: seen.append(m.global_step) or step(m, *rest))
        assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert seen == list(range(10, 16))
    assert_same(folder, whole)
    assert_same_bytes(folder, whole)
    assert all(0 < line["time/epoch_seconds"] < 60 for line in lines(folder))


@pytest.mark.slow
def test_signals_at_the_edges_of_epochs(train, whole, deephash, tmp_path):
    folder = tmp_path / "run"
    places = {(0, 1): (2, 2), (0, 3): (4, 0), (1, 2): (7, 3), (2, 0): (9, 1), (3, 3): (16, 0)}
    for moment, expected in places.items():
        with at(*moment, send(signal.SIGTERM)):
            assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 143
        assert place(folder) == expected
        assert not (folder / "codes").exists()
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)
    assert_same_bytes(folder, whole)


def test_a_warning_of_slurm_saves_and_the_run_goes_on(train, whole, deephash, tmp_path):
    folder = tmp_path / "run"
    with at(2, 0, send(signal.SIGUSR1)), at(2, 3, stop):
        result = deephash(*train(f"run_dir={folder}"))
    assert (result.code, result.err) == (130, "")
    assert "a checkpoint was written after step 9, because a signal asked for it" in result.out
    assert place(folder) == (9, 1)
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)
    assert_same_bytes(folder, whole)


def test_outside_of_the_training_a_signal_stops_at_once(train, deephash, tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "codes", lambda *_: send(signal.SIGTERM)(_) or pytest.fail("it goes on"))
    result = deephash(*train(f"run_dir={tmp_path / 'run'}", "trainer.max_epochs=1"))
    assert result.code == 143
    assert "stopping after" not in result.err


def test_a_head_is_trained_again(train, whole, deephash, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        step = HashingModule.training_step
        patch.setattr(HashingModule, "training_step", lambda m, *rest: send(signal.SIGINT)(m) or step(m, *rest))
        assert deephash(*train(f"run_dir={folder}")).code == 130
    assert not list((folder / "checkpoints").iterdir())
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)


@pytest.mark.parametrize(
    "settings",
    [
        ("method=dsdh", "validation.queries=8"),
        ("method=dpsh", "module.buffer_init=first_pass", "trainer.limit_train_batches=5"),
        ("method=dtsh",),
        ("method=dhn", "+trainer.accumulate_grad_batches=3"),
        ("method=lfh_deep",),
        ("method=csq",),
        ("method=orthohash",),
        ("method=cibhash",),
    ],
    ids=lambda settings: settings[0],
)
@pytest.mark.slow
def test_every_learned_method_goes_on_within_an_epoch(vectors, deephash, tmp_path, settings):
    command = ("train", *vectors, *settings, "trainer.max_epochs=2")
    assert deephash(*command, f"run_dir={tmp_path / 'whole'}").code == 0
    with at(1, 1, send(signal.SIGINT)):
        assert deephash(*command, f"run_dir={tmp_path / 'run'}").code == 130
    assert place(tmp_path / "run")[1] == (3 if "accumulate" in settings[-1] else 2)
    assert deephash(*command, f"run_dir={tmp_path / 'run'}", "resume=auto").code == 0
    assert_same_bytes(tmp_path / "run", tmp_path / "whole")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


LEARNED = [name for name in METHODS if (choices.CONF_DIR / "loss" / f"{name}.yaml").exists()]


def test_no_learned_method_is_left_out_above():
    marks = {mark.name: mark for mark in test_every_learned_method_goes_on_within_an_epoch.pytestmark}
    assert {settings[0].removeprefix("method=") for settings in marks["parametrize"].args[1]} == set(LEARNED)


def test_what_cannot_go_on_within_an_epoch_exactly_does_not(vectors, deephash, tmp_path, monkeypatch):
    # As if the method's classes were not part of this package, whose hooks are known
    monkeypatch.setattr(mid_epoch, "_KNOWN", ("pytorch_lightning.", "lightning_fabric.", "torch.", "builtins"))
    command = ("train", "method=dsdh", *vectors, "trainer.max_epochs=2")
    assert deephash(*command, f"run_dir={tmp_path / 'whole'}").code == 0
    with at(0, 2, send(signal.SIGUSR1)), at(1, 1, send(signal.SIGINT)):
        result = deephash(*command, f"run_dir={tmp_path / 'run'}")
    assert result.code == 130
    assert "a checkpoint was written after step 9, because a signal asked for it" in result.out  # at the epoch's end
    assert "continues after the last finished epoch" in result.out
    assert place(tmp_path / "run") == (9, 0)
    assert deephash(*command, f"run_dir={tmp_path / 'run'}", "resume=auto").code == 0
    assert_same_bytes(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_limit_in_steps_starts_again(vectors, deephash, tmp_path):
    command = ("train", "method=dhn", *vectors, "+trainer.max_steps=20")
    assert deephash(*command, f"run_dir={tmp_path / 'whole'}").code == 0
    with at(1, 1, send(signal.SIGTERM)):
        assert deephash(*command, f"run_dir={tmp_path / 'run'}").code == 143
    result = deephash(*command, f"run_dir={tmp_path / 'run'}", "resume=auto")
    assert result.code == 0
    assert "training starts again at its first step" in result.err
    assert place(tmp_path / "run")[0] == 20
    assert_same_bytes(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_an_unfinished_epoch_keeps_its_settings(vectors, deephash, tmp_path):
    command = ("train", "method=dhn", *vectors, "trainer.max_epochs=3", f"run_dir={tmp_path / 'run'}")
    with at(1, 1, send(signal.SIGINT)):
        assert deephash(*command).code == 130
    before = place(tmp_path / "run")
    for change in ("trainer.limit_train_batches=2", "+trainer.accumulate_grad_batches=2"):
        result = deephash(*command, "resume=auto", change)
        assert result.code == 2
        assert "the run was interrupted within an epoch" in result.err
    result = deephash(*command, "resume=auto", "trainer.max_epochs=1")
    assert result.code == 2
    assert "trainer.max_epochs=1 is less than the 2 epochs that the run in" in result.err
    assert place(tmp_path / "run") == before
    assert deephash(*command, "resume=auto", "trainer.max_epochs=2").code == 0


@pytest.mark.slow
def test_a_sweep_that_was_stopped_continues_its_job_within_the_epoch(vectors, deephash, tmp_path):
    command = ("train", "-m", "method=dhn", "seed=0,1,2", *vectors, "trainer.max_epochs=2")
    assert deephash(*command, f"runs={tmp_path / 'whole'}").code == 0
    jobs = iter(range(9))

    def stop_in_the_second_job(module):
        if next(jobs) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with at(1, 2, stop_in_the_second_job):
        result = deephash(*command, f"runs={tmp_path / 'runs'}")
    assert result.code == 130
    assert "interrupted: method=dhn seed=1" in result.out
    assert "1 jobs are done; run the command again for the rest" in result.out
    (folder,) = (tmp_path / "runs").glob("*-s1-*")
    assert place(folder)[1] == 3
    assert deephash(*command, f"runs={tmp_path / 'runs'}").code == 0
    for seed in (0, 1, 2):
        (mine,), (its,) = ((tmp_path / name).glob(f"*-s{seed}-*") for name in ("runs", "whole"))
        assert_same_bytes(mine, its)


# two processes at once


def test_a_folder_in_use_is_refused(train, stopped, deephash):
    other = runs.Run(stopped)
    try:
        result = deephash(*train(f"run_dir={stopped}", "resume=auto"))
    finally:
        other.close()
    assert result.code == 2
    assert f"{stopped} is in use by process {os.getpid()} on " in result.err
    assert status(stopped) == "interrupted"
    assert deephash(*train(f"run_dir={stopped}", "resume=auto")).code == 0


# divergence


def poison(module):
    with torch.no_grad():
        module.network.hash_layer.weight[0, 0] = float("nan")


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_weights(train, whole, deephash, tmp_path):
    folder = tmp_path / "run"
    with at(2, 1, poison):
        result = deephash(*train(f"run_dir={folder}"))
    assert result.code == 5
    assert "the loss is nan in epoch 2, batch 1" in result.err
    assert "optimizer.lr" in result.err
    record = read_json(folder / "run.json")
    assert (record["status"], "the loss is nan" in record["error"]) == ("failed", True)
    assert not (folder / "codes" / "manifest.json").exists()
    assert read_checkpoint(folder / "checkpoints" / LAST)["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in state(folder).values())
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)


@pytest.mark.parametrize("validation", ["validation.queries=0", "validation.queries=6"])
def test_weights_that_are_no_numbers_at_the_end_of_an_epoch_are_not_saved(
    train, deephash, tmp_path, monkeypatch, validation
):
    def poison_last(module, outputs, batch, batch_idx):
        if (module.current_epoch, batch_idx) == (1, module.trainer.num_training_batches - 1):
            poison(module)

    monkeypatch.setattr(HashingModule, "on_train_batch_end", poison_last)
    result = deephash(*train(f"run_dir={tmp_path / 'run'}", validation))
    assert result.code == 5
    assert status(tmp_path / "run") == "failed"
    for name in (LAST, "best.ckpt") if validation.endswith("6") else (LAST,):
        assert read_checkpoint(tmp_path / "run" / "checkpoints" / name)["epoch"] == 0
        assert all(torch.isfinite(value).all() for value in state(tmp_path / "run", name).values())


def test_a_learning_rate_that_explodes_is_divergence(train, deephash, tmp_path):
    result = deephash(*train(f"run_dir={tmp_path / 'run'}", "optimizer.lr=1e30", "model.backbone_lr=1e30"))
    assert result.code == 5
    assert "lower optimizer.lr" in result.err
    assert "Traceback" not in result.err
    for file in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        assert all(torch.isfinite(value).all() for value in state(tmp_path / "run", file.name).values())


# kill -9

DYING = """
import os, signal, sys
from pathlib import Path
from deephash_cli.cli import main as cli
from deephash_cli.methods.base import HashingModule

def die():
    os.kill(os.getpid(), signal.SIGKILL)

seen = 0
replace = Path.replace
def rename(self, target):
    global seen
    seen += Path(target).name == "{name}"
    if seen == {time}:
        die()
    return replace(self, target)

start = HashingModule.on_train_batch_start
def batch(module, batch, batch_idx):
    if (module.current_epoch, batch_idx) == {batch}:
        die()
    return start(module, batch, batch_idx)

Path.replace, HashingModule.on_train_batch_start = rename, batch
sys.exit(cli.run(sys.argv[1:]))
"""
NEVER = (99, 99)
# For each moment: what kills the run, and the last epoch that a valid checkpoint has after that.
MOMENTS = {
    "in the middle of an epoch": ({"name": "", "time": 99, "batch": (2, 2)}, 1),
    "between writing and renaming a checkpoint": ({"name": LAST, "time": 3, "batch": NEVER}, 1),
}
MORE_MOMENTS = {
    "between a checkpoint and its digest": ({"name": f"{LAST}.json", "time": 3, "batch": NEVER}, 1),
    # the first manifest.json of a run belongs to the features of its backbone, the second one to its codes
    "between codes and manifest": ({"name": "manifest.json", "time": 2, "batch": NEVER}, 3),
}


def kill(train, moments, place):
    """Start runs in parallel, each in its own process, and wait until each is killed at its moment."""
    processes = {}
    for number, (name, (when, _)) in enumerate(moments.items()):
        folder = place / str(number)
        command = [sys.executable, "-c", DYING.format(**when), *train(f"run_dir={folder}")]
        environment = {**os.environ, "DEEPHASH_CACHE_DIR": str(place / f"cache{number}")}
        processes[name] = folder, subprocess.Popen(command, env=environment, cwd=place, stdout=subprocess.PIPE)
    for name, (_, process) in processes.items():
        process.communicate(timeout=200)
        assert process.returncode == -signal.SIGKILL, name
    return {name: folder for name, (folder, _) in processes.items()}


def assert_goes_on(train, folder, epoch, whole, deephash):
    assert status(folder) == "running"  # the killed process could not record its end
    assert not (folder / "codes" / "manifest.json").exists()
    valid = newest_valid(folder / "checkpoints", lambda _: None)
    assert read_checkpoint(valid)["epoch"] == epoch
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)
    assert not list(folder.rglob("*.tmp"))


@pytest.fixture(scope="module")
def killed(train, tmp_path_factory):
    return kill(train, MOMENTS, tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_bytes(train, killed, whole, deephash, moment):
    assert_goes_on(train, killed[moment], MOMENTS[moment][1], whole, deephash)


@pytest.mark.slow
def test_a_run_killed_at_other_moments_goes_on_to_the_same_bytes(train, whole, deephash, tmp_path):
    for moment, folder in kill(train, MORE_MOMENTS, tmp_path).items():
        assert_goes_on(train, folder, MORE_MOMENTS[moment][1], whole, deephash)


# In the second epoch, the second batch takes long: two signals arrive in the meantime.
PATIENT = """
import os, signal, sys, time
from deephash_cli.cli.main import main
from deephash_cli.methods.base import HashingModule

step = HashingModule.training_step
def slow(module, batch, batch_idx):
    if (module.current_epoch, batch_idx) == (1, 1):
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.7)
        time.sleep(100)
    return step(module, batch, batch_idx)
HashingModule.training_step = slow
main()
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(train, whole, deephash, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", PATIENT, *train(f"run_dir={folder}")]
    done = subprocess.run(command, capture_output=True, check=False, timeout=90)
    assert done.returncode == 143
    assert done.stderr == b"stopping after this step; a second Ctrl-C stops at once\n"
    assert place(folder) == (4, 0)
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)
    assert_same_bytes(folder, whole)


@pytest.mark.slow
def test_a_signal_to_a_whole_group_of_processes_saves(train, whole, deephash, tmp_path):
    """`timeout` and shells send signals to the whole group of a command, twice."""
    folder = tmp_path / "run"
    program = DYING.format(name="", time=99, batch=(2, 1)).replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "[os.killpg(0, signal.SIGTERM) for _ in range(2)]"
    )
    command = [sys.executable, "-c", program, *train(f"run_dir={folder}", "loader.num_workers=2")]
    done = subprocess.run(command, capture_output=True, check=False, timeout=90, start_new_session=True)
    assert done.returncode == 143, done.stderr
    assert place(folder) == (10, 2)
    assert deephash(*train(f"run_dir={folder}", "resume=auto", "loader.num_workers=2")).code == 0
    assert_same(folder, whole)
    assert_same_bytes(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("receiver", ["the first", "all"])
def test_two_processes_agree_on_the_step_that_they_save(vectors, deephash, tmp_path, receiver):
    command = ("train", "method=dsdh", *vectors, "trainer.devices=2", "trainer.max_epochs=3", "validation.queries=8")
    assert deephash(*command, f"run_dir={tmp_path / 'whole'}").code == 0
    others = []

    def stop_them(_):
        others[:] = followers(os.getpid())
        for process in [*(others if receiver == "all" else []), os.getpid()]:
            os.kill(process, signal.SIGTERM)

    with at(1, 3, stop_them):
        result = deephash(*command, f"run_dir={tmp_path / 'run'}")
    assert result.code == 143, result.err
    assert place(tmp_path / "run")[1] == 4
    assert len(others) == 1
    assert not any(map(alive, others))
    assert deephash(*command, f"run_dir={tmp_path / 'run'}", "resume=auto").code == 0
    assert_same_bytes(tmp_path / "run", tmp_path / "whole")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def followers(process):
    """The processes that another one started to train the same network."""
    call = ["ps", "-o", "pid=,args=", "--ppid", str(process)]
    found = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "follow()" in line]


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_from_outside_ends_a_process_in_order(train, whole, deephash, tmp_path, number, code):
    folder = tmp_path / "run"
    program = DYING.format(name="", time=99, batch=(2, 1)).replace("signal.SIGKILL", f"signal.{number.name}")
    command = [sys.executable, "-c", program, *train(f"run_dir={folder}")]
    done = subprocess.run(command, capture_output=True, check=False, timeout=90)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert status(folder) == "interrupted"
    assert deephash(*train(f"run_dir={folder}", "resume=auto")).code == 0
    assert_same(folder, whole)


@pytest.mark.slow
def test_two_processes_on_one_folder(train, deephash, tmp_path):
    folder = tmp_path / "run"
    program = DYING.format(name="", time=99, batch=(1, 1))
    program = program.replace("os.kill(os.getpid(), signal.SIGKILL)", "sys.stdin.read(1)")
    command = [sys.executable, "-c", program, *train(f"run_dir={folder}")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in first.stdout:  # the first epoch is done; the process waits in the second
        if "epoch 1" in line:
            break
    result = deephash(*train(f"run_dir={folder}", "resume=auto"))
    assert result.code == 2
    assert f"{folder} is in use by process {first.pid} on " in result.err
    first.communicate("\n")
    assert first.returncode == 0


def damage(folder, *names):
    for name in names:
        mutations.flip(folder / name, 0)


@pytest.mark.parametrize("method", ["classic", "deep"])
def test_damaged_results_of_a_finished_run_are_made_again(deephash, request, tmp_path, method):
    """From its checkpoint, with the same bytes, and with a word; an undamaged run is not touched."""
    original = request.getfixturevalue("hashed").run if method == "classic" else request.getfixturevalue("whole")
    run = Path(shutil.copytree(original, tmp_path / "run"))
    names = ("metrics.json", "retrieval.json", "retrieval.webp", "codes/manifest.json", "codes/database.npy")
    damage(run, *names)
    result = deephash("train", f"resume={run}")
    assert result.code == 0, result
    for name in names[:-1]:  # those of the codes are not known without their manifest
        assert f"{run / name} does not match its SHA-256 in run.json: it was damaged or edited by hand" in result.err
    for name in (*names[:3], *names[4:]):
        assert (run / name).read_bytes() == (original / name).read_bytes(), name
    assert [checked.state for checked in verifying.verify([run])] == ["intact"]
    again = deephash("train", f"resume={run}")
    assert again.out.startswith(f"already done: {run}")


@pytest.mark.parametrize("name", sampled(["config.yaml", "split.json", "metrics.jsonl"], 3))
def test_a_damaged_file_that_would_be_continued_is_refused(deephash, hashed, tmp_path, name):
    run = Path(shutil.copytree(hashed.run, tmp_path / "run"))
    damage(run, name)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for words in (["train", f"resume={run}"], ["train", f"resume={run}", "trainer.max_epochs=3"]):
        result = deephash(*words)
        assert result.code == 4, result
        assert f"{run / name} does not match its SHA-256 in run.json" in result.err
    assert {file: file.read_bytes() for file in before} == before


def test_a_split_that_was_deleted_is_made_again(deephash, hashed, tmp_path):
    run = Path(shutil.copytree(hashed.run, tmp_path / "run"))
    (run / "split.json").unlink()
    assert deephash("train", f"resume={run}").code == 0
    assert (run / "split.json").read_bytes() == (hashed.run / "split.json").read_bytes()
    assert [checked.state for checked in verifying.verify([run])] == ["intact"]

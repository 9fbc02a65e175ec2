"""Steps of our own loop: they do what Lightning's do, and give way to them where somebody has a hook in between."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_photos
from pytorch_lightning import Callback

from deephash_cli.data.loaders import DirectLoader, Held
from deephash_cli.files import read_json
from deephash_cli.methods.base import HashingModule
from deephash_cli.training import fit, step_loop, trainer
from deephash_cli.training.checkpoints import LAST, read_checkpoint
from deephash_cli.training.inputs import Source

SETTINGS = (
    "dataset=vectors", "dataset.vectors=x.npy", "dataset.labels=y.npy", "bits=12", "trainer=cpu", "logger=none",
    "gallery=false", "loader.batch_size=16", "trainer.max_epochs=3", "checkpoint.every_seconds=0",
)  # fmt: skip


@pytest.fixture
def vectors():
    """A data set of five clusters in the current folder."""
    rng = np.random.default_rng(0)
    kinds = np.arange(157) % 5
    np.save("x.npy", (rng.normal(size=(5, 16))[kinds] * 1.5 + rng.normal(size=(157, 16))).astype(np.float32))
    np.save("y.npy", kinds)


@pytest.fixture
def steps(monkeypatch):
    """Count the steps that are taken the short way."""
    taken = []
    learn = step_loop.StepLoop._learn
    monkeypatch.setattr(step_loop.StepLoop, "_learn", lambda *a: taken.append(a[-1]) or learn(*a))
    return taken


def recorded(folder):
    """What a run leaves behind, without its times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in line.items() if not name.startswith("time")} for line in lines]
    checkpoint = read_checkpoint(folder / "checkpoints" / LAST)
    progress = json.dumps(checkpoint["loops"], sort_keys=True, default=str)
    tensors = {**checkpoint["state_dict"], **dict(enumerate(checkpoint["optimizer_states"][0]["state"].values()))}
    return read_json(folder / "codes" / "manifest.json")["files"], numbers, progress, tensors


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "more",
    [("method=dpsh", "validation.queries=20", "ema.decay=0.9"), ("method=hashnet",),
     ("method=csq", "nested=[4]", "trainer.precision=bf16-mixed"), ("method=adsh", "trainer.limit_train_batches=3")],
)  # fmt: skip
def test_a_run_leaves_the_same_bytes_as_one_with_the_steps_of_lightning(deephash, vectors, steps, monkeypatch, more):
    result = deephash("train", *SETTINGS, *more, "run_dir=short")
    assert result.code == 0, result.err
    assert steps
    before = len(steps)
    monkeypatch.setattr(step_loop, "_is_short", lambda _: False)
    assert deephash("train", *SETTINGS, *more, "run_dir=usual").code == 0
    assert len(steps) == before
    (*short, tensors), (*usual, expected) = (recorded(Path(name)) for name in ("short", "usual"))
    assert short == usual
    assert equal(tensors, expected)


class Counting(Callback):
    """Count the steps of an optimizer before they are taken."""

    seen = 0

    def on_before_optimizer_step(self, *_):
        Counting.seen += 1


@pytest.mark.parametrize(
    ("more", "short"),
    [((), True), (("trainer.gradient_clip_val=1",), False), (("+trainer.accumulate_grad_batches=2",), False),
     (("+trainer.profiler=simple",), False)],
)  # fmt: skip
def test_steps_that_need_more_are_those_of_lightning(deephash, vectors, steps, more, short):
    assert deephash("train", *SETTINGS, *more, "trainer.max_epochs=1", "run_dir=run").code == 0
    assert bool(steps) == short


def test_a_hook_of_a_callback_is_called(deephash, vectors, steps, monkeypatch):
    make = fit.make_trainer
    monkeypatch.setattr(fit, "make_trainer", lambda c, f, m, callbacks, *a: make(c, f, m, [*callbacks, Counting()], *a))
    monkeypatch.setattr(Counting, "seen", 0)
    assert deephash("train", *SETTINGS, "trainer.max_epochs=1", "run_dir=run").code == 0
    assert (Counting.seen, steps) == (9, [])


@pytest.mark.parametrize("hook", ["on_after_backward", "optimizer_zero_grad", "on_train_batch_start", "training_step"])
def test_a_hook_of_a_method_is_called(deephash, vectors, steps, monkeypatch, hook):
    seen = []
    original = getattr(fit.build_module, "__wrapped__", fit.build_module)

    def build(*arguments):
        module = original(*arguments)

        def noting(self, *a):
            seen.append(hook)
            return getattr(super(kind, self), hook)(*a)

        kind = type("Own", (type(module),), {hook: noting})
        module.__class__ = kind
        return module

    monkeypatch.setattr(fit, "build_module", build)
    result = deephash("train", *SETTINGS, "trainer.max_epochs=1", "run_dir=run")
    assert result.code == 0, result.err
    assert (len(seen), steps) == (9, [])


def test_features_are_held_and_converted_once(deephash, vectors, monkeypatch):
    loaders = []
    shuffled = Source.shuffled
    monkeypatch.setattr(Source, "shuffled", lambda *a, **o: loaders.append(shuffled(*a, **o)) or loaders[-1])
    assert deephash("train", *SETTINGS, "trainer.max_epochs=1", "run_dir=held").code == 0
    monkeypatch.setattr("deephash_cli.training.inputs._CONVERTED", 0)
    assert deephash("train", *SETTINGS, "trainer.max_epochs=1", "run_dir=read").code == 0
    held, read = loaders
    assert isinstance(held, DirectLoader)
    assert isinstance(held.rows, Held)
    assert not isinstance(read.rows, Held)
    for one, other in zip(held, read, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    (*found, tensors), (*expected, others) = (recorded(Path(name)) for name in ("held", "read"))
    assert found == expected
    assert equal(tensors, others)


PHOTOS = ("dataset=image_folder", "dataset.root=photos", "model=small_cnn", "model.frozen=true", "validation.queries=6")


@pytest.mark.parametrize(("data", "times"), [(SETTINGS[:3], 1), (PHOTOS, 2)])  # photos first, then their features
def test_what_is_held_on_a_gpu_gives_the_same_codes(deephash, vectors, monkeypatch, data, times):
    # The device is the CPU here: what is copied to it, indexed there and fetched in larger parts is the same.
    write_photos(Path("photos"))
    settings = (*data, *SETTINGS[3:], "loader.eval_batch_size=7")
    assert deephash("train", *settings, "run_dir=cpu").code == 0
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", "another")  # features are computed again
    held = []
    on_gpu = lambda source: held.append(source.inputs) or source._gathered(np.arange(len(source.dataset)))  # noqa: E731
    monkeypatch.setattr(Source, "_on_gpu", on_gpu)
    assert deephash("train", *settings, "run_dir=there").code == 0
    assert len(held) == times
    (*found, tensors), (*expected, others) = (recorded(Path(name)) for name in ("there", "cpu"))
    assert found == expected
    assert equal(tensors, others)


def test_nobody_looks_for_a_gpu_in_every_step_on_a_cpu(deephash, vectors, monkeypatch):
    seen = set()
    step = HashingModule.training_step
    monkeypatch.setenv(trainer.NVML, "1")  # as Lightning sets it
    monkeypatch.setattr(HashingModule, "training_step", lambda *a: seen.add(os.environ.get(trainer.NVML)) or step(*a))
    assert deephash("train", *SETTINGS, "trainer.max_epochs=1", "run_dir=run").code == 0
    assert seen == {None}
    assert os.environ[trainer.NVML] == "1"


@pytest.mark.gpu
def test_on_a_gpu_the_loss_of_a_step_is_looked_at_in_the_next_one(deephash, vectors, monkeypatch):
    step = HashingModule.training_step
    seen = []

    def spoiled(module, batch, index):
        seen.append(index)
        if len(seen) == 4:
            module.network.hash_layer.weight.data.fill_(float("nan"))
        return step(module, batch, index)

    monkeypatch.setattr(HashingModule, "training_step", spoiled)
    result = deephash("train", *SETTINGS, "trainer=gpu", "run_dir=run")
    assert result.code == 5
    assert "the loss is nan in epoch 0, batch 3" in result.err
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.gpu
def test_inputs_live_on_the_gpu(deephash, vectors, monkeypatch):
    loaders = []
    shuffled = Source.shuffled
    monkeypatch.setattr(Source, "shuffled", lambda *a, **o: loaders.append(shuffled(*a, **o)) or loaders[-1])
    assert deephash("train", *SETTINGS, "trainer=gpu", "run_dir=run").code == 0
    assert all(part.is_cuda for batch in loaders[0] for part in batch)

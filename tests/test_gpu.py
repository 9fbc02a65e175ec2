"""Whole runs on a GPU. The same tests run on the CPU, as slow tests, to show that they test what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, write_photos

from deephash_cli import runs
from deephash_cli.errors import Stopped
from deephash_cli.methods.base import HashingModule
from deephash_cli.retrieval.codes import unpack
from deephash_cli.retrieval.codes_folder import load_codes, open_side

# The same arithmetic in another order: nearly all bits agree, but those of outputs that are almost 0 may not.
NEARLY_ALL = 0.99
SETTINGS = (*(word for word in QUICK if word != "trainer=cpu"), "bits=24", "dataset=image_folder")


# What torch warns of differs from card to card, such as an operation that is not deterministic there.
GPU = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), pytest.param("gpu", marks=GPU)])
def device(request):
    """Kind of device, as ``accelerator`` takes it."""
    return request.param


@pytest.fixture
def train(deephash, tmp_path):
    """Return a function that trains on 60 photos of three classes with settings, and returns the run folder."""
    photos = write_photos(tmp_path / "photos")

    def call(*settings, name="run", code=0):
        folder = tmp_path / name
        result = deephash("train", *SETTINGS, f"dataset.root={photos}", f"run_dir={folder}", *settings)
        assert result.code == code, result
        return folder

    return call


def on(device):
    """Settings of ``trainer=gpu``, on this kind of device."""
    return ("trainer=gpu", f"trainer.accelerator={device}", f"loader.pin_memory={device == 'gpu'}")


def by_id(side):
    """The bits of each image, by its id."""
    return dict(zip(side.ids, unpack(np.asarray(side.packed), side.bits), strict=True))


def database_of(run):
    return load_codes(run / runs.CODES)[1]


def metrics(run):
    return json.loads((run / runs.METRICS).read_text())


def tensors(run):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=False)
    return checkpoint["state_dict"]


# Colours tell the three classes apart, so a method that learns at all finds nearly all of them.
@pytest.mark.parametrize(
    "settings",
    [
        ("model.frozen=true", "trainer.max_epochs=30"),
        ("method=itq", "model.frozen=true"),
        ("trainer.max_epochs=30", "module.pairs=batch", "head.epochs=1", "ema.decay=0.5"),
    ],
    ids=["features", "classic", "fine-tuning"],
)
def test_training_learns(train, device, settings):
    assert metrics(train(*on(device), *settings))["map"] > 0.8


def test_validation_counts_on_the_device(train, device):
    run = train(*on(device), "validation.queries=15", "trainer.max_epochs=3")
    values = [json.loads(line) for line in (run / runs.STEPS).read_text().splitlines()]
    found = [value["validation/map"] for value in values if "validation/map" in value]
    assert len(found) == 3
    assert metrics(run)["validation"]["map"] == pytest.approx(max(found))


def test_a_resumed_run_on_features_ends_with_the_same_bytes(train, device, monkeypatch):
    """The layers above a frozen backbone have deterministic algorithms on a GPU, and trainer=auto asks for them."""
    exact = (
        "trainer=auto", f"trainer.accelerator={device}", "trainer.max_epochs=4", "loader.batch_size=16",
        "model.frozen=true", "model.network.hidden_units=16", "model.network.dropout=0.5",
    )  # fmt: skip
    whole = train(*exact, name="whole")

    def stop(module, batch, index):
        if module.global_step == 6:
            raise Stopped(130)
        own(module, batch, index)

    own = HashingModule.on_train_batch_start
    with monkeypatch.context() as patch:
        patch.setattr(HashingModule, "on_train_batch_start", stop)
        train(*exact, name="stopped", code=130)
    stopped = train(*exact, "resume=auto", name="stopped")
    before, after = tensors(whole), tensors(stopped)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    np.testing.assert_array_equal(database_of(stopped).packed, database_of(whole).packed)


def test_encoding_gives_the_codes_of_the_run(train, deephash, device, tmp_path):
    """On the device that trained, and on the CPU."""
    run = train(*on(device), "trainer.precision=32-true", "module.pairs=batch", "trainer.max_epochs=20")
    own = by_id(database_of(run))
    for where in {device, "cpu"}:
        output = tmp_path / f"{where}-codes"
        words = (f"run={run}", f"input={tmp_path / 'photos'}", f"output={output}", f"accelerator={where}")
        assert deephash("encode", *words, "num_workers=0").code == 0
        codes = by_id(open_side(output))
        assert np.mean([codes[name] == own[name] for name in own]) > NEARLY_ALL


def test_a_run_of_the_device_is_evaluated_and_searched(train, deephash, device):
    run = train(*on(device), "model.frozen=true", "trainer.max_epochs=10")
    before = metrics(run)["map"]
    result = deephash("eval", f"run={run}")
    assert result.code == 0
    assert f"{before:.4f}" in result.out
    query = Path("photo.jpg")
    query.write_bytes(next((run.parent / "photos" / "bag").iterdir()).read_bytes())
    result = deephash("search", f"run={run}", f"query={query}", "k=3")
    assert result.code == 0
    assert "bag/" in result.out


def test_features_of_the_device_are_those_of_the_cpu(deephash, device, tmp_path, monkeypatch):
    photos, found = write_photos(tmp_path / "photos"), []
    for name, where in (("first", device), ("second", "cpu")):
        monkeypatch.setenv("DEEPHASH_CACHE_DIR", str(tmp_path / f"{name}-cache"))  # otherwise the first are used again
        network = ("model=small_cnn", "model.image_size=16", "loader.num_workers=0", f"accelerator={where}")
        words = ("dataset=image_folder", f"dataset.root={photos}", f"output={tmp_path / name}")
        assert deephash("features", *words, *network).code == 0
        found.append(np.load(tmp_path / name / "vectors.npy").astype(np.float32))
    of_device, of_cpu = found
    assert np.abs(of_device - of_cpu).max() < 0.01 * np.abs(of_cpu).max()

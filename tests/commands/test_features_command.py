"""``deephash features``: the features that training keeps, as files that ``dataset=vectors`` reads."""

import numpy as np
import pytest
from conftest import QUICK, write_photos

from deephash_cli.data import features as cache
from deephash_cli.errors import Stopped
from deephash_cli.files import read_sealed, sha256_file
from deephash_cli.models import HashingNetwork
from deephash_cli.retrieval.codes_folder import load_codes

SMALL = ("model=small_cnn", "model.image_size=16", "loader.num_workers=0", "accelerator=cpu")


@pytest.fixture
def write(deephash, tmp_path, monkeypatch):
    """Call the verb on 60 photos of three classes, which are in the folder ``photos``."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")

    def call(*words, output="feats"):
        data = () if any(word.startswith("input=") for word in words) else DATA
        return deephash("features", *SMALL, *data, f"output={output}", *words)

    return call


DATA = ("dataset=image_folder", "dataset.root=photos")


def names(folder):
    return (folder / "ids.txt").read_text().splitlines()


def test_the_files_are_those_that_the_manifest_names(write, deephash, tmp_path):
    result = write()
    assert (result.code, result.err) == (0, "")
    assert "feats: features of 60 images, 128 numbers each" in result.out
    folder = tmp_path / "feats"
    vectors, labels = (np.load(folder / f"{name}.npy") for name in ("vectors", "labels"))
    assert (vectors.shape, vectors.dtype) == ((60, 128), np.float16)
    assert [name.split("/")[0] for name in names(folder)] == [["bag", "boot", "coat"][row.argmax()] for row in labels]
    assert (labels.sum(axis=1) == 1).all()
    source = read_sealed(folder / "source.json")
    assert source["class_names"] == ["bag", "boot", "coat"]
    assert source["network"]["image_size"] == 16
    assert set(source["sha256"]) == {"README.txt", "ids.txt", "labels.npy", "vectors.npy"}
    assert all(sha256_file(folder / name) == digest for name, digest in source["sha256"].items())
    assert deephash("verify", "feats").code == 0
    with (folder / "vectors.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    result = deephash("verify", "feats")
    assert result.code == 4
    assert "deephash features with overwrite=true writes it again" in result.out


def test_training_on_them_gives_the_codes_of_training_on_the_images(write, deephash, tmp_path):
    train = ("train", "method=itq", "bits=16", *(word for word in QUICK if not word.startswith("model")))
    assert deephash(*train, *SMALL[:2], *DATA, "run_dir=images").code == 0
    assert write("dtype=float32").code == 0
    files = {"vectors": "vectors.npy", "labels": "labels.npy", "ids": "ids.txt"}
    vectors = ("dataset=vectors", *(f"dataset.{name}=feats/{file}" for name, file in files.items()))
    assert deephash(*train, *vectors, "run_dir=vectors").code == 0
    sides = (load_codes(tmp_path / run / "codes")[:2] for run in ("vectors", "images"))
    for ours, theirs in zip(*sides, strict=True):  # ids and labels are the same, so the division is the same, too
        assert list(ours.ids) == list(theirs.ids)
        assert np.array_equal(ours.packed, theirs.packed)
        assert np.array_equal(ours.labels, theirs.labels)


def test_what_training_has_computed_is_not_computed_again(write, deephash, monkeypatch, tmp_path):
    assert deephash("train", "method=itq", "bits=12", *QUICK, *DATA, "run_dir=run").code == 0
    monkeypatch.setattr(HashingNetwork, "features", lambda *_: pytest.fail("computed again"))
    assert write().code == 0
    assert write("dtype=float32", output="wide").code == 0
    half, wide = (np.load(tmp_path / name / "vectors.npy") for name in ("feats", "wide"))
    assert wide.dtype == np.float32
    assert np.array_equal(half.astype(np.float32), wide)


def test_interrupted_it_continues(write, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "_FLUSH_ROWS", 16)
    computed, features = [], HashingNetwork.features

    def stop_after(most):
        def compute(network, images):
            if len(computed) == most:
                raise Stopped(130)
            computed.append(len(images))
            return features(network, images)

        monkeypatch.setattr(HashingNetwork, "features", compute)

    stop_after(2)
    result = write()
    assert result.code == 130
    assert "interrupted: the same command continues where it stopped" in result.out
    assert not (tmp_path / "feats").exists()
    stop_after(None)
    assert write().code == 0
    assert computed == [16, 16, 16, 12]


def test_a_folder_of_images_has_no_labels_and_files_that_cannot_be_read_are_named_or_left_out(write, tmp_path):
    (tmp_path / "photos/boot/bad.jpg").write_bytes(b"none")
    (tmp_path / "photos/coat/bad.png").write_bytes(b"none")
    result = write("input=photos")
    assert result.code == 3
    assert "2 of the 62 images cannot be read: boot/bad.jpg, coat/bad.png" in result.err
    result = write("input=photos", "bad_images=skip")
    assert result.code == 0
    assert "2 images could not be read and are left out: feats/skipped.csv says why" in result.err
    assert not (tmp_path / "feats/labels.npy").exists()
    assert len(names(tmp_path / "feats")) == len(np.load(tmp_path / "feats/vectors.npy")) == 60
    assert (tmp_path / "feats/skipped.csv").read_text().count("\n") == 3
    assert write("bad_images=skip", output="data").code == 0
    for name in ("ids.txt", "vectors.npy"):
        assert (tmp_path / "data" / name).read_bytes() == (tmp_path / "feats" / name).read_bytes()
    (tmp_path / "list.txt").write_text("coat/001.jpg\nbag/000.jpg\n")
    assert write("input=list.txt", "root=photos", output="two").code == 0
    whole = dict(zip(names(tmp_path / "feats"), np.load(tmp_path / "feats/vectors.npy"), strict=True))
    assert names(tmp_path / "two") == ["coat/001.jpg", "bag/000.jpg"]
    for name, vector in zip(names(tmp_path / "two"), np.load(tmp_path / "two/vectors.npy"), strict=True):
        assert np.allclose(vector, whole[name], atol=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("input=photos", *DATA), 2, "needs dataset=<name>, or input=<folder or list>, got both"),
        (("input=nowhere",), 3, "input=nowhere is neither a file nor a folder"),
        (("output=photos",), 2, "output=photos is dataset.root=photos itself"),
        (("dtype=int8",), 2, "dtype must be float16 or float32, got int8"),
        (("features.precision=fp16",), 2, "features.precision must be fp32 or bf16, got fp16"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(write, words, code, sentence):
    result = write(*words)
    assert (result.code, result.err.count("\n")) == (code, 1)
    assert sentence in result.err


def test_vectors_have_no_backbone(deephash, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float32))
    for words in (("dataset=vectors", f"dataset.vectors={tmp_path / 'x.npy'}"), ("model=vectors", "input=photos")):
        result = deephash("features", *words, "output=out")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "model=vectors has no backbone to compute features: choose images and a model for them" in result.err


def test_only_an_output_of_its_own_is_replaced(write, tmp_path):
    assert write().code == 0
    result = write("features.precision=bf16")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "output=feats already exists: choose another folder, or add overwrite=true" in result.err
    assert write("features.precision=bf16", "overwrite=true").code == 0
    assert read_sealed(tmp_path / "feats/source.json")["precision"] == "bf16"
    (tmp_path / "feats/notes.txt").write_text("mine")
    assert "deephash features did not make it" in write("overwrite=true").err

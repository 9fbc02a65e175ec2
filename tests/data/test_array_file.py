"""Arrays in files of MATLAB and HDF5: which one is read, in which orientation, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csr_matrix

from deephash_cli.data.array_file import load, shape
from deephash_cli.data.protocol import make_split
from deephash_cli.data.vectors import vectors
from deephash_cli.errors import ArtifactError, ConfigError, DataError
from deephash_cli.npy import FLOATS, NUMBERS

X = np.random.default_rng(0).normal(size=(6, 3))
IDS = np.array([1, 2, 2, 3, 1, 3])
HOT = np.eye(4)[IDS][:, 1:]


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


@pytest.fixture
def mat(isolated):
    savemat("x.mat", {"X": X, "names": np.array(["a", "b"]), "cells": np.array([1, "b"], dtype=object)})
    savemat("both.mat", {"X": X.astype(np.float32), "Y": HOT > 0, "id": IDS[:, None]}, do_compression=True)


def write_7_3(h5py, path, **arrays):
    """Write arrays as MATLAB does since version 7.3: HDF5 after a head of 512 bytes, transposed, with their classes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            item = file.create_dataset(name, data=array.T)
            item.attrs["MATLAB_class"] = np.bytes_("double" if array.dtype.kind == "f" else str(array.dtype))
        text = file.create_dataset("title", data=np.array([[104, 105]], np.uint16))
        text.attrs["MATLAB_class"] = np.bytes_("char")
        file.create_dataset("#refs#/a", data=np.zeros(3))
    with Path(path).open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")


def refused(sentence, call, *arguments):
    with pytest.raises((ArtifactError, ConfigError, DataError)) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert sentence in str(caught.value)


def check(file, what="vectors", kind=FLOATS, dimensions=(2,)):
    array = load(file, what, dimensions, kind)
    assert shape(file, what, dimensions, kind)[-1] == array.shape[-1] or what == "labels"
    return array


def test_matlab(mat):
    assert np.array_equal(check("x.mat"), X)
    assert np.array_equal(check("both.mat::X"), X.astype(np.float32))
    assert np.array_equal(check("both.mat::Y", "labels", NUMBERS), HOT)
    data = vectors("both.mat::X", "both.mat::Y", None)
    assert data.labels.tolist() == HOT.tolist()
    assert data.class_names == ["0", "1", "2"]


@pytest.mark.parametrize("column", [True, False])
def test_class_ids_of_matlab_count_from_one(mat, column):
    savemat("y.mat", {"labels": IDS[:, None] if column else IDS[None]})
    data = vectors("x.mat", "y.mat", None)
    assert data.class_names == ["1", "2", "3"]
    assert data.labels.tolist() == HOT.tolist()
    assert make_split("holdout", data, 0).flags["label_kind"] == "single"
    savemat("y.mat", {"labels": IDS[:, None] - 1})
    assert vectors("x.mat", "y.mat", None).class_names == ["0", "1", "2"]
    savemat("y.mat", {"labels": np.full((6, 1), -1)})
    assert vectors("x.mat", "y.mat", None).labels.shape == (6, 0)


@pytest.mark.parametrize("first", [X[:2], "text"])
def test_two_arrays_of_one_name(mat, first):
    """SciPy would list both and read the first one."""
    savemat("first.mat", {"X": first})
    Path("x.mat").write_bytes(Path("first.mat").read_bytes() + Path("x.mat").read_bytes()[128:])
    refused(
        "x.mat has two arrays called X; write it again with names that differ", load, "x.mat", "vectors", (2,), FLOATS
    )


def test_the_entries_of_a_sparse_array_are_no_labels(h5py, isolated):
    write_7_3(h5py, "y.mat", id=IDS[:, None])
    with h5py.File("y.mat", "r+") as file:
        sparse = file.create_group("hot")
        sparse.attrs["MATLAB_sparse"] = np.uint64(6)
        sparse["data"], sparse["ir"], sparse["jc"] = np.ones(6), np.argsort(IDS, kind="stable"), np.array([0, 2, 4, 6])
    assert vectors(write_npy(X), "y.mat", None).labels.tolist() == HOT.tolist()
    refused("y.mat has no array of numbers called hot/ir; it has id", load, "y.mat::hot/ir", "labels", (2,), NUMBERS)


def test_matlab_7_3(h5py, isolated):
    write_7_3(h5py, "x.mat", X=X)
    write_7_3(h5py, "y.mat", id=IDS[:, None], hot=HOT)
    assert np.array_equal(check("x.mat"), X)
    assert vectors("x.mat", "y.mat::id", None).labels.tolist() == HOT.tolist()
    assert vectors("x.mat", "y.mat::hot", None).labels.tolist() == HOT.tolist()


@pytest.mark.parametrize("ending", ["h5", "hdf5"])
def test_hdf5(h5py, isolated, ending):
    with h5py.File(f"x.{ending}", "w") as file:
        file.create_dataset("train/features", data=X.astype(">f4"), chunks=True, compression="gzip")
        file["train/labels"] = IDS - 1
        file["text"] = "a text"
    assert np.array_equal(check(f"x.{ending}::train/features"), X.astype(np.float32))
    data = vectors(f"x.{ending}::train/features", f"x.{ending}::train/labels", None)
    assert data.class_names == ["0", "1", "2"]
    assert data.images.digest() == vectors(write_npy(X.astype(np.float32)), None, None).images.digest()
    sentence = (
        f"x.{ending} must hold vectors in one array of numbers, but it has train/features, train/labels: choose one"
    )
    refused(sentence, load, f"x.{ending}", "vectors", (2,), FLOATS)


def write_npy(array):
    np.save("x.npy", array)
    return "x.npy"


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("none.mat", "none.mat does not exist"),
        ("both.mat", "both.mat must hold vectors in one array of numbers, but it has X, Y, id: choose one, su"),
        ("both.mat::Z", "both.mat has no array of numbers called Z; it has X, Y, id"),
        ("x.mat::names", "x.mat has no array of numbers called names; it has X"),
        ("complex.mat", "complex.mat::X has complex numbers; save its real part, or abs of it"),
        ("both.mat::Y", "both.mat::Y must hold vectors as floating-point numbers, got |b1: packed bits"),
        ("sparse.mat", "sparse.mat must hold vectors in one array of numbers, but it has none; give a file with one"),
        ("text.mat", "text.mat cannot be read, so it was damaged or has another format: "),
        ("cut.mat", "cut.mat cannot be read, so it was damaged"),
        ("text.h5", "text.h5 is not an HDF5 file, or it was damaged; write it again"),
        (".", "is not a plain file"),
    ],
)  # fmt: skip
def test_what_is_refused(mat, file, sentence):
    savemat("sparse.mat", {"Z": csr_matrix(X)})
    savemat("complex.mat", {"X": X + 2j})
    Path("text.mat").write_text("some text that is no array")
    Path("text.h5").write_text("some text that is no array")
    savemat("cut.mat", {"X": X})
    Path("cut.mat").write_bytes(Path("cut.mat").read_bytes()[:-40])
    refused(sentence, load, file, "vectors", (2,), FLOATS)
    refused("dataset.vectors: ", vectors, file, None, None)


def test_what_hdf5_could_read_elsewhere_is_not_read(h5py, isolated):
    Path("secret.bin").write_bytes(X.tobytes())
    with h5py.File("other.h5", "w") as file:
        file["X"] = X
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "X", X.shape)
    with h5py.File("x.h5", "w") as file:
        file.create_dataset("outside", X.shape, X.dtype, external=[("secret.bin", 0, X.nbytes)])
        file["link"] = h5py.ExternalLink("other.h5", "/X")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (2**20, 2**20), np.float32, chunks=(1, 2**10))
    for name in ("outside", "link", "virtual", "huge"):
        refused(
            f"x.h5 has no array of numbers called {name}; it has none", load, f"x.h5::{name}", "vectors", (2,), FLOATS
        )


def test_without_h5py(h5py, isolated, uninstall):
    write_7_3(h5py, "x.mat", X=X)
    write_7_3(h5py, "x.h5", X=X)
    uninstall("h5py")
    install = "which needs h5py: pip install 'deephash[hdf5]'"
    refused(f"x.mat is an HDF5 file of version 7.3, {install}", load, "x.mat", "vectors", (2,), FLOATS)
    refused(f"x.h5 is an HDF5 file, {install}", vectors, "x.h5", None, None)


def test_a_run_on_a_file_of_matlab(isolated, deephash):
    ids = np.arange(60) % 3
    savemat("x.mat", {"X": (2 * np.eye(8)[ids] + 0.1).astype(np.float32), "Y": ids[:, None] + 1})
    data = ("dataset=vectors", "dataset.vectors=x.mat::X", "dataset.labels=x.mat::Y")
    result = deephash("train", *data, "method=itq", "bits=4", "logger=none", "trainer=cpu", "run_dir=run")
    assert result.code == 0, result
    assert "3 classes: 1, 2, 3" in result.out + result.err

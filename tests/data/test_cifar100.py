"""CIFAR-100 in the official layout."""

import pickle

import layouts
import numpy as np
import pytest

from deephash_cli.data import cifar100 as module
from deephash_cli.data.cifar100 import cifar100
from deephash_cli.data.protocol import make_split
from deephash_cli.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COUNTS", {"training images": 6, "test images": 2})
    return layouts.cifar100(tmp_path)


def load(root, labels="fine", incomplete=False):
    return cifar100(root, download=False, labels=labels, incomplete=incomplete)


def test_the_official_layout(root):
    data = load(root)
    assert data.ids == [*(f"train/{n:05}" for n in range(6)), "test/00000", "test/00001"]
    assert data.images.images[:, 2, 31, 31].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert data.labels.shape == (8, 100)
    assert data.labels.argmax(axis=1).tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert data.class_names[99] == "kind 99"
    assert data.reading is None
    split = make_split("auto", data, 0)
    assert split.name == "official"
    assert (split.query.tolist(), split.train.tolist(), split.database.tolist()) == ([6, 7], [*range(6)], [*range(6)])


def test_twenty_groups(root):
    data = load(root, labels="coarse")
    assert data.labels.argmax(axis=1).tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert data.class_names[19] == "of 19"
    with pytest.raises(ConfigError, match=r"dataset\.labels must be fine or coarse, got rough"):
        load(root, labels="rough")


@pytest.mark.parametrize(("part", "change", "sentence"), [
    ("train", {"data": np.zeros((6, 3071), np.uint8)}, "train is not a batch of CIFAR-100: expected rows of 3072"),
    ("test", {"fine_labels": [0, 100]}, "one label from 0 to 99 for each; get the file from its authors"),
    ("test", {"fine_labels": [0]}, "test is not a batch of CIFAR-100"),
    ("meta", {"fine_label_names": ["a"]}, "meta does not name the 100 classes of CIFAR-100; get the"),
])  # fmt: skip
def test_wrong_files(root, part, change, sentence):
    path = root / "cifar-100-python" / part
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **change}))
    with pytest.raises(DataError, match=sentence):
        load(root)


def test_missing_and_incomplete(root, monkeypatch):
    monkeypatch.setattr(module, "COUNTS", {"training images": 7, "test images": 2})
    with pytest.raises(DataError, match="CIFAR-100 is not complete: found 6 training images of 7; get the missing"):
        load(root)
    assert load(root, incomplete=True).reading == ("not complete: 6 training images of 7",)
    (root / "cifar-100-python" / "meta").unlink()
    with pytest.raises(
        DataError, match=r"^cifar-100-python/meta \(2 kB\) of CIFAR-100 is not in .*\(169 MB\), unpack it"
    ):
        load(root)

"""CUB-200-2011 in the official layout."""

import layouts
import numpy as np
import pytest

from deephash_cli.data import cub200 as module
from deephash_cli.data.cub200 import cub200
from deephash_cli.data.protocol import make_split
from deephash_cli.errors import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COUNTS", {"train": 4, "query": 2})
    return layouts.cub200(tmp_path)


def load(root, incomplete=False):
    return cub200(root, download=False, incomplete=incomplete)


def test_the_official_layout(root):
    data = load(root)
    assert data.ids[:3] == ["001.Kind_of_1/Kind_1.jpg", "001.Kind_of_1/Kind_2.jpg", "002.Kind_of_2/Kind_1.jpg"]
    assert data.labels.shape == (6, 200)
    assert data.labels.argmax(axis=1).tolist() == [0, 0, 1, 1, 199, 199]
    assert data.class_names[::199] == ["Kind of 1", "Kind of 200"]
    assert data.images.batch(np.arange(6), 8)[:, 0, 0, 0].tolist() == [*range(6)]
    split = make_split("auto", data, 0)
    assert split.name == "official"
    assert (split.query.tolist(), split.train.tolist(), split.database.tolist()) == ([1, 4], [0, 2, 3, 5], [0, 2, 3, 5])


@pytest.mark.parametrize(("file", "lines", "sentence"), [
    ("classes.txt", ["1 001.One"], "classes.txt must name 200 classes, got 1; get it again"),
    ("images.txt", ["1 a.jpg", "3 b.jpg"], "images.txt:2: expected 2 and a value, got '3 b.jpg'; get the file again"),
    ("images.txt", ["1"], "images.txt:1: expected 1 and a value, got '1'; get the file again"),
    ("image_class_labels.txt", ["1 201"], "txt:1: expected a number from 1 to 200, got '201'; get the file again"),
    ("image_class_labels.txt", ["1 1", "2 1", "3 2", "4 200", "5 2", "6 200"],
     "labels.txt:4: the class of 002.Kind_of_2/Kind_2.jpg is 200.Kind_of_200, but an image is in the folder of its "),
    ("train_test_split.txt", ["1 2"], "train_test_split.txt:1: expected a number from 0 to 1, got '2'"),
    ("train_test_split.txt", ["1 1"], "train_test_split.txt has 1 lines, but images.txt has 6; get both files again"),
])  # fmt: skip
def test_wrong_files(root, file, lines, sentence):
    layouts.text(root / "CUB_200_2011" / file, *lines)
    with pytest.raises(DataError) as caught:
        load(root)
    assert sentence in str(caught.value)


def test_missing_and_incomplete(root):
    (root / "CUB_200_2011" / "images" / "002.Kind_of_2" / "Kind_1.jpg").unlink()
    with pytest.raises(DataError, match=r"_2/Kind_1\.jpg is missing, is not complete: found 3 training images of 4"):
        load(root)
    data = load(root, incomplete=True)
    assert (len(data), data.official["query"].tolist()) == (5, [1, 3])
    (root / "CUB_200_2011" / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"^CUB_200_2011/classes\.txt \(5 kB\) of CUB-200-2011 is not in "):
        load(root)

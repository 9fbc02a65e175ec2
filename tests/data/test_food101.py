"""Food-101 in the official layout."""

import layouts
import numpy as np
import pytest

from deephash_cli.data import food101 as module
from deephash_cli.data.food101 import food101
from deephash_cli.data.protocol import make_split
from deephash_cli.errors import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COUNTS", {"train": 3, "query": 2})
    return layouts.food101(tmp_path)


def load(root, incomplete=False):
    return food101(root, download=False, incomplete=incomplete)


def test_the_official_layout(root):
    data = load(root)
    assert data.ids == ["dish_0/11.jpg", "dish_0/12.jpg", "dish_100/7.jpg", "dish_100/8.jpg", "dish_0/13.jpg"]
    assert data.labels.shape == (5, 101)
    assert data.labels.argmax(axis=1).tolist() == [0, 0, 100, 100, 0]
    assert data.class_names[100] == "dish 100"
    assert data.images.batch(np.arange(5), 8)[:, 0, 0, 0].tolist() == [*range(5)]
    split = make_split("auto", data, 0)
    assert split.name == "official"
    assert (split.query.tolist(), split.train.tolist(), split.database.tolist()) == ([3, 4], [0, 1, 2], [0, 1, 2])


def test_classes_with_the_ends_of_lines_of_another_system(root):
    classes = root / "food-101" / "meta" / "classes.txt"
    classes.write_bytes(classes.read_bytes().replace(b"\n", b" \r\n"))
    assert load(root).class_names[100] == "dish 100"


@pytest.mark.parametrize(("file", "lines", "sentence"), [
    ("classes.txt", ["dish_0"], "classes.txt must name 101 classes, got 1; get it again"),
    ("train.txt", ["dish_0/1", "stew/2"], "train.txt:2: expected a class of classes.txt, a slash and the number"),
    ("test.txt", ["dish_0"], "a slash and the number of an image, got 'dish_0'; get the file again"),
])  # fmt: skip
def test_wrong_files(root, file, lines, sentence):
    layouts.text(root / "food-101" / "meta" / file, *lines)
    with pytest.raises(DataError) as caught:
        load(root)
    assert sentence in str(caught.value)


def test_missing_and_incomplete(root):
    (root / "food-101" / "images" / "dish_100" / "8.jpg").unlink()
    with pytest.raises(DataError, match=r"dish_100/8\.jpg is missing, is not complete: found 1 test images of 2; get"):
        load(root)
    assert load(root, incomplete=True).reading == ("not complete: 1 test images of 2",)
    (root / "food-101" / "meta" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"^food-101/meta/test\.txt \(500 kB\) of Food-101 is not in "):
        load(root)

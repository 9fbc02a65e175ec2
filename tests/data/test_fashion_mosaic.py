"""The mosaics: the same on every machine, with the labels of their tiles, and no tile in two parts."""

import hashlib

import numpy as np
import pytest
from conftest import QUICK

from deephash_cli.data.fashion_mnist import fashion_mini
from deephash_cli.data.fashion_mosaic import fashion_mosaic
from deephash_cli.data.protocol import make_split
from deephash_cli.files import read_json
from deephash_cli.retrieval import similarity
from deephash_cli.retrieval.codes_folder import load_codes

PIXELS = "f223fea944391a7e48fa9ebe7a92521c4abfd6bb04f0941abce7a2f10200b80f"
LABELS = "d83f6acd645a89f54d5c195a88b418fcf1f4c5226d86dd69e1008565b0459fde"
DIVISION = "b05e7184c29b6d95b76c42c6bc15c4d104c11b528994d3d1bff321a3b9b2cac5"


@pytest.fixture(scope="module")
def mosaics():
    return fashion_mosaic(10_000)


@pytest.fixture(scope="module")
def tiles(mosaics):
    """The row in Fashion-MNIST of each tile of each mosaic, (n, 4), found by its pixels."""
    rows = {image.tobytes(): row for row, image in enumerate(fashion_mini().images.images)}
    assert len(rows) == 10_000
    images = mosaics.images.images[:, 0]
    corners = [images[:, top : top + 28, left : left + 28] for top in (0, 28) for left in (0, 28)]
    return np.array([[rows[image.tobytes()] for image in corner] for corner in corners]).T


def test_they_are_the_same_on_every_machine(mosaics):
    assert mosaics.images.digest() == PIXELS
    assert hashlib.sha256(mosaics.labels.tobytes()).hexdigest() == LABELS
    assert make_split("auto", mosaics, 0).sha256 == DIVISION


def test_labels_are_those_of_the_tiles(mosaics, tiles):
    classes = fashion_mini().labels[tiles].any(axis=1)
    np.testing.assert_array_equal(mosaics.labels, classes)
    numbers = np.bincount(mosaics.labels.sum(axis=1))
    assert numbers[0] == 0
    assert np.abs(numbers[1:] - 2500).max() < 5 * (10_000 * 0.25 * 0.75) ** 0.5  # five standard deviations
    assert mosaics.labels.sum(axis=0).min() > 2000


def test_parts_share_no_tile(mosaics, tiles):
    split = make_split("auto", mosaics, 0)
    assert (split.name, len(split.query), len(split.train), len(split.database)) == ("official", 1000, 5000, 9000)
    assert split.flags["label_kind"] == "multi"
    assert split.flags["duplicate_images"] == split.flags["query_in_database"] == 0
    parts = split.query, split.train, np.setdiff1d(split.database, split.train)
    pools = [set(tiles[rows].ravel()) for rows in parts]
    assert not pools[0] & pools[1] | pools[0] & pools[2] | pools[1] & pools[2]
    assert [len(pool) > share for pool, share in zip(pools, (900, 4500, 3600), strict=True)] == [True] * 3


@pytest.mark.parametrize("images", [10, 105])
def test_other_numbers_of_mosaics(images):
    data = fashion_mosaic(images)
    split = make_split("official", data, 0)
    assert data.images.images.shape == (images, 1, 56, 56)
    assert (data.ids[0], data.ids[-1]) == ("mosaic/00000", f"mosaic/{images - 1:05d}")
    assert len(split.query) == images // 10
    assert len(split.query) + len(split.database) == images


@pytest.mark.parametrize("method", ["dpsh", "csq", "itq"])
def test_methods_train_on_them_whatever_is_similar(method, deephash, tmp_path):
    """Everything that is measured, the validation and the pictures follow the setting; see also test_every_method."""
    data = ("dataset=fashion_mosaic", "dataset.images=200", "metrics.similar=all")
    learned = ("validation.queries=10", "trainer.max_epochs=2") if method != "itq" else ()
    arguments = ("train", f"method={method}", *QUICK, *data, *learned, "logger=none", f"run_dir={tmp_path / 'run'}")
    result = deephash(*arguments)
    assert (result.code, result.surprises) == (0, "")
    metrics = read_json(tmp_path / "run" / "metrics.json")
    query, database, manifest = load_codes(tmp_path / "run" / "codes")
    assert (manifest["evaluation"]["similar"], manifest["evaluation"]["map_at"]) == ("all", [5000])
    assert metrics["policies"]["similar"] == similarity.SIMILAR["all"]
    same = (query.labels[:, None] == database.labels).all(axis=2)
    assert sum(metrics["distances"]["relevant"]) == same.sum()
    for entry in read_json(tmp_path / "run" / "retrieval.json")["queries"]:
        assert all(found["relevant"] == (found["labels"] == entry["labels"]) for found in entry["results"])
    again = deephash("eval", f"run={tmp_path / 'run'}", f"output={tmp_path / 'again.json'}")
    assert (again.code, again.surprises) == (0, "")
    found = read_json(tmp_path / "again.json")
    assert {**found, "ceiling": None} == {**metrics, "ceiling": None}
    other = deephash("train", f"resume={tmp_path / 'run'}", "metrics.similar=one")
    assert other.code == 2
    assert "metrics.similar" in other.err

"""Published data sets: where they are found, what is said about what is missing, and how many images there must be."""

from pathlib import Path

import layouts
import numpy as np
import pytest

from deephash_cli.data import published
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.download import Archive
from deephash_cli.errors import ConfigError, DataError

ITEMS = [
    published.Item("top/list.txt", "2 kB", "https://example.org/a.zip"),
    published.Item("top/images", "3 GB", "https://example.org/b.zip (2 GB)"),
]
ARCHIVES = [Archive(f"https://example.org/{name}.zip", None, None, 9, 999) for name in "ab"]


def found(root, download=False):
    return published.find_or_fetch("toys", "The Toys", root, ITEMS, ARCHIVES, download)


@pytest.fixture
def fetched(monkeypatch):
    """Instead of a download, the files appear. The folders to which they came, and the names of the archives."""
    calls = []

    def fetch(archives, folder):
        calls.append((folder, [archive.url[-5:] for archive in archives]))
        (folder / "top" / "images").mkdir(parents=True)
        layouts.text(folder / "top" / "list.txt")

    monkeypatch.setattr(published, "fetch_archives", fetch)
    return calls


def test_the_sentence_about_what_is_missing(tmp_path):
    with pytest.raises(DataError) as caught:
        found(tmp_path)
    assert str(caught.value) == (
        f"top/list.txt (2 kB) of The Toys and 1 more of its 2 files and folders are not in {tmp_path}: get it from "
        "https://example.org/a.zip, unpack it there or set dataset.root=<folder>, or set dataset.download=true to have "
        f"it fetched into {tmp_path}"
    )
    layouts.text(tmp_path / "top" / "list.txt")
    with pytest.raises(DataError, match=rf"^top/images \(3 GB\) of The Toys is not in {tmp_path}: "):
        found(tmp_path)


def test_a_download_goes_to_the_root_or_the_cache_and_happens_once(tmp_path, fetched):
    assert found(tmp_path, download=True) == found(tmp_path, download=True) == tmp_path
    cache = found(None, download=True)
    assert cache == found(None)
    assert fetched == [(tmp_path, ["a.zip", "b.zip"]), (cache, ["a.zip", "b.zip"])]


def test_only_the_archives_that_have_something_missing_are_downloaded(tmp_path, fetched):
    layouts.text(tmp_path / "top" / "list.txt")
    assert found(tmp_path, download=True) == tmp_path
    assert fetched == [(tmp_path, ["b.zip"])]


@pytest.mark.parametrize("inside", [".", "top"])
def test_the_root_may_be_inside_the_layout(tmp_path, fetched, monkeypatch, inside):
    found(tmp_path, download=True)
    assert found(tmp_path / inside) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert found(Path(inside)).resolve() == tmp_path
    monkeypatch.chdir(tmp_path / inside)
    assert found(".").resolve() == tmp_path


def dataset(names):
    labels = np.ones((len(names), 1), np.uint8)
    parts = {"train": np.arange(2), "query": np.arange(2, len(names)), "database": np.arange(2)}
    return RetrievalDataset("toys", names, labels, ["c"], ImageFiles([Path(name) for name in names], Path()), parts)


def test_missing_images(tmp_path):
    names = ["a/1.jpg", "a/2.jpg", "b/3.jpg"]
    for name in names:
        layouts.photo(tmp_path / name)
    counts = {"train": 2, "query": 1}
    whole = dataset(names)
    assert published.complete(whole, "The Toys", counts, False, tmp_path) is whole
    (tmp_path / "a/2.jpg").unlink()
    with pytest.raises(
        DataError, match=rf"^The Toys in {tmp_path}, where a/2\.jpg is missing, is not complete: found 1 "
    ):
        published.complete(whole, "The Toys", counts, False, tmp_path)
    rest = published.complete(whole, "The Toys", counts, True, tmp_path)
    assert rest.ids == ["a/1.jpg", "b/3.jpg"]
    assert {role: rows.tolist() for role, rows in rest.official.items()} == {
        "train": [0],
        "query": [1],
        "database": [0],
    }
    assert rest.reading == ("not complete: 1 training images of 2",)


@pytest.mark.parametrize("path", ["../a/1.jpg", "a/../../a/1.jpg", "/a/1.jpg", "{}/a/1.jpg"])
def test_a_list_does_not_lead_out_of_the_folder(tmp_path, path):
    layouts.photo(tmp_path / "a/1.jpg")
    with pytest.raises(DataError, match=rf"^a list in {tmp_path / 'b'} names .*, which leads out of the folder; get "):
        published.existing(tmp_path / "b", [path.format(tmp_path)])


def test_a_choice():
    published.require_choice("dataset.labels", "fine", ("fine", "coarse"))
    with pytest.raises(
        ConfigError, match=r"^dataset\.labels must be fine or coarse, got fines; did you mean 'fine'\?$"
    ):
        published.require_choice("dataset.labels", "fines", ("fine", "coarse"))

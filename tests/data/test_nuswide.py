"""NUS-WIDE in the official layout and from the usual lists: labels, counts, divisions, and what is refused."""

import numpy as np
import pytest
import refusals
from PIL import Image

from deephash_cli.data import nuswide as module
from deephash_cli.data.nuswide import CONCEPTS, ORDERS, nuswide
from deephash_cli.data.protocol import make_split

NAMES = ("airport", "cat", "sky", "zebra")
# A row for each image; the two most frequent concepts are sky and cat. The last image has no concept.
LABELS = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
PATHS = [f"{folder}\\000{row}_{row}7.jpg" for row, folder in enumerate(("actor", "actor", "zoo", "zoo", "zoo", "sun"))]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "CONCEPTS", NAMES)
    monkeypatch.setattr(module, "ORDERS", {2: (("sky", "cat"), ("cat", "sky")), 4: (NAMES,)})
    monkeypatch.setattr(module, "IMAGES", len(PATHS))
    monkeypatch.setattr(module, "USED", {2: 4})


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.fixture
def root(tmp_path):
    """The official files, with the ends of lines of another system and a blank at the end of each line."""
    (tmp_path / "ImageList").mkdir()
    (tmp_path / "ImageList/Imagelist.txt").write_bytes("".join(f"{path} \r\n" for path in PATHS).encode())
    (tmp_path / "Groundtruth/AllLabels").mkdir(parents=True)
    for name, column in zip(NAMES, LABELS.T, strict=True):
        content = "".join(f"{value} \r\n" for value in column)
        (tmp_path / f"Groundtruth/AllLabels/Labels_{name}.txt").write_bytes(content.encode())
    for path in PATHS:
        picture(tmp_path / "Flickr" / path.replace("\\", "/"))
    return tmp_path


def load(root, lists=None, concepts=2, incomplete=False):
    return nuswide(concepts, root, lists, incomplete)


def refused(root, *parts, **settings):
    refusals.refused(load, root, parts=parts, **settings)


def test_the_concepts_are_those_of_the_list():
    assert len(CONCEPTS) == len(set(CONCEPTS)) == 81
    assert list(CONCEPTS) == sorted(CONCEPTS)
    assert len(set(ORDERS[21][0])) == 21
    assert set(ORDERS[21][0]) <= set(CONCEPTS)


def test_only_images_of_the_most_frequent_concepts(root):
    data = load(root)
    assert (data.name, data.usual, data.official) == ("nuswide_2", "nuswide_2", None)
    assert data.class_names == ["cat", "sky"]
    assert data.ids == ["actor/0000_07.jpg", "actor/0001_17.jpg", "zoo/0003_37.jpg", "zoo/0004_47.jpg"]
    assert data.labels.tolist() == [[1, 1], [0, 1], [1, 1], [1, 0]]
    assert data.reading == ("",)
    assert len(data.images) == 4
    every = load(root, concepts=4)
    assert every.class_names == list(NAMES)
    assert every.labels.tolist() == LABELS[:5].tolist()


def test_a_part_of_the_images_has_the_same_concepts(root):
    """Among some images other concepts may be the most frequent ones."""
    for name, column in zip(NAMES, np.flip(LABELS, axis=1).T, strict=True):
        (root / f"Groundtruth/AllLabels/Labels_{name}.txt").write_text("\n".join(map(str, column)))
    assert load(root, incomplete=True).class_names == ["cat", "sky"]


@pytest.mark.parametrize("layout", ["images/{}/{}", "images/{1}", "Flickr/{1}"])
def test_other_layouts_have_the_same_ids(root, layout):
    expected = load(root)
    (root / "Flickr").rename(root / "old")
    for path in PATHS:
        picture(root / layout.format(*path.split("\\")))
    data = load(root)
    assert data.ids == expected.ids
    assert make_split("holdout", data, 0).sha256 == make_split("holdout", expected, 0).sha256


def test_found_in_the_usual_folder(root, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DEEPHASH_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    refused(None, "ImageList/Imagelist.txt (8 MB) of NUS-WIDE and 2 more of its 3 files and folders are not in ")
    place = tmp_path_factory.mktemp("other")
    root.rename(place / "nuswide")
    monkeypatch.setenv("DEEPHASH_DATA_DIR", str(place))
    assert len(load(None)) == 4


def test_fewer_images_than_published(root):
    (root / "Flickr/zoo/0003_37.jpg").unlink()
    refused(
        root, "NUS-WIDE is not complete: found 3 images of 4; get the missing files, or set dataset.incomplete=true"
    )
    refused(root, "found 4 images of 5", concepts=4)
    data = load(root, incomplete=True)
    assert data.ids == ["actor/0000_07.jpg", "actor/0001_17.jpg", "zoo/0004_47.jpg"]
    assert data.labels.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert data.reading == ("not complete: 3 images of 4",)


def test_wrong_layouts(root):
    labels = root / "Groundtruth/AllLabels/Labels_cat.txt"
    content = labels.read_bytes()
    labels.unlink()
    refused(root, "Labels_cat.txt does not exist; NUS-WIDE has a file of labels for each of 4 concepts")
    labels.write_bytes(content[:-4])
    refused(
        root, "Labels_cat.txt must have a 0 or 1 for each of the 6 lines of ImageList/Imagelist.txt, got 5 characte"
    )
    labels.write_bytes(content.replace(b"1", b"2"))
    refused(
        root, "Labels_cat.txt must have", "got 6 characters, some of which are neither; get both files from https://"
    )
    labels.write_bytes(content)
    (root / "Flickr").rename(root / "Pictures")
    refused(
        root, "Flickr (about 6 GB) of NUS-WIDE is not in", "which has a form for them, put it there or set dataset.root"
    )
    (root / "images").mkdir()
    refused(
        root, "has none of the images that ImageList/Imagelist.txt names, such as Flickr/actor/0000_07.jpg or images/0"
    )
    (root / "ImageList/Imagelist.txt").unlink()
    refused(root, "ImageList/Imagelist.txt (8 MB) of NUS-WIDE is not in")


def test_two_images_of_one_name_need_their_folders(root):
    listed = root / "ImageList/Imagelist.txt"
    listed.write_text(listed.read_text().replace("zoo\\0003_37", "zoo\\0000_07"))
    (root / "Flickr/zoo/0003_37.jpg").rename(root / "Flickr/zoo/0000_07.jpg")
    assert load(root).ids[2] == "zoo/0000_07.jpg"
    for path in (root / "Flickr").glob("*/*.jpg"):
        path.rename(root / "Flickr" / path.name)
    refused(root, "gives two images one name, so they cannot be told apart without the folders of the list; put the im")


# The usual lists


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """Lists that were written on another machine, of images without folders: HashNet's form."""
    monkeypatch.setattr(module, "ORDERS", {2: (("sky", "cat"), ("cat", "sky"))})
    monkeypatch.setattr(module, "LISTED", {2: {"train": (2,), "query": (1,), "database": (3,)}})
    rows = {"train": ["a 1 0", "b 1 1"], "test": ["c 0 0"], "database": ["a 1 0", "b 1 1", "d 0 1"]}
    (tmp_path / "lists").mkdir()
    for part, lines in rows.items():
        text = "".join(f"/home/me/nus/images/{line[0]}_m.jpg{line[1:]}\n" for line in lines)
        (tmp_path / f"lists/{part}.txt").write_text(text)
    for name in "abcd":
        picture(tmp_path / f"nus/images/{name}_m.jpg")
    return tmp_path / "lists"


def test_lists_are_the_division(lists):
    data = load(lists.parent / "nus", lists)
    assert (data.name, data.class_names) == ("nuswide_2", ["sky", "cat"])
    assert data.ids == ["images/a_m.jpg", "images/b_m.jpg", "images/c_m.jpg", "images/d_m.jpg"]
    assert data.labels.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    assert data.reading == (f"lists in {lists}", "", "1 queries without a label")
    split = make_split("auto", data, 0)
    assert (split.name, split.query.tolist(), split.train.tolist()) == ("official", [2], [0, 1])
    assert split.database.tolist() == [0, 1, 3]


def test_the_most_frequent_class_tells_the_order_of_the_columns(lists, monkeypatch):
    monkeypatch.setattr(module, "ORDERS", {2: (("cat", "sky"), ("sky", "cat"))})
    assert load(lists.parent / "nus", lists).class_names == ["sky", "cat"]
    monkeypatch.setattr(module, "ORDERS", {2: (("cat", "sky"),)})
    assert load(lists.parent / "nus", lists).class_names == ["class 0", "class 1"]


def test_a_first_line_names_the_columns(lists):
    for file in lists.iterdir():
        file.write_text(f"path cat sky\n{file.read_text()}")
    assert load(lists.parent / "nus", lists).class_names == ["cat", "sky"]


def test_wrong_lists(lists, monkeypatch):
    place = lists.parent / "nus"
    (place / "images/a_m.jpg").unlink()
    refused(place, "list files: 1 of the images named do not exist under", lists=lists)
    picture(place / "images/a_m.jpg")
    monkeypatch.setattr(module, "LISTED", {2: {"train": (3,), "query": (1,)}})
    refused(place, "NUS-WIDE is not complete: found 2 training images of 3", lists=lists)
    assert load(place, lists, incomplete=True).reading[1] == "not complete: 2 training images of 3"
    monkeypatch.setattr(module, "ORDERS", {2: (("a", "b", "c"),)})
    refused(place, "have 2 columns of labels, but NUS-WIDE has 3 classes", lists=lists)
    (lists / "database.txt").unlink()
    refused(
        place, f"dataset.lists={lists} has no database.txt: it must be a folder with train.txt, test.txt, ", lists=lists
    )

"""MS-COCO in the official layout and from the usual lists: labels, counts, and what is refused."""

import dataclasses
import json
import shutil

import pytest
import refusals
from PIL import Image
from test_download import server  # noqa: F401

from deephash_cli.data import coco as module
from deephash_cli.data.coco import CATEGORIES, coco

# Ids of categories have gaps and stand in no order.
CATEGORY_OF = {18: "dog", 1: "person", 3: "car"}
OBJECTS = {"train2014": {9: [18, 1, 1], 4: [], 7: [3]}, "val2014": {2: [1], 3: [18, 3]}}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "COUNTS", {"all": 4})


def name_of(part, image):
    return f"COCO_{part}_{image:012}.jpg"


def content_of(part, objects):
    pairs = [(image, category) for image, categories in objects.items() for category in categories]
    outline = {"segmentation": [[1.5, 2.0]], "area": 3.25, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    crowd = {"segmentation": {"counts": [1, 2], "size": [8, 8]}, "iscrowd": 1}
    return {
        "info": {"year": 2014},
        "licenses": [{"id": 1, "name": "CC", "url": "https://example.org"}],
        "images": [{"license": 1, "file_name": name_of(part, image), "height": 8, "id": image} for image in objects],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, **(crowd if number else outline)}
            for number, (image, category) in enumerate(pairs)
        ],
        "categories": [{"supercategory": "x", "id": key, "name": name} for key, name in CATEGORY_OF.items()],
    }


@pytest.fixture
def root(tmp_path):
    (tmp_path / "annotations").mkdir()
    for part, objects in OBJECTS.items():
        (tmp_path / part).mkdir()
        for image in objects:
            Image.new("RGB", (8, 8)).save(tmp_path / part / name_of(part, image))
        (tmp_path / f"annotations/instances_{part}.json").write_text(json.dumps(content_of(part, objects)))
    return tmp_path


def load(root, lists=None, download=False, incomplete=False):
    return coco(root, lists, download, incomplete)


def refused(root, *parts, **settings):
    refusals.refused(load, root, parts=parts, **settings)


def test_the_categories():
    assert len(set(CATEGORIES)) == 80
    assert sorted(CATEGORIES)[49] == "person"  # the column with most images in HashNet's lists


def test_images_with_an_object_of_both_parts(root):
    data = load(root)
    assert (data.name, data.usual, data.official) == ("coco", "coco", None)
    assert data.class_names == ["person", "car", "dog"]
    expected = [("train2014", 9), ("train2014", 7), ("val2014", 2), ("val2014", 3)]
    assert data.ids == [f"{part}/{name_of(part, image)}" for part, image in expected]
    assert data.labels.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]]
    assert data.reading == ()


def test_fewer_images_than_published(root):
    (root / "train2014" / name_of("train2014", 7)).unlink()
    refused(root, "000007.jpg is missing, is not complete: found 3 images of 4; get the missing files")
    data = load(root, incomplete=True)
    assert data.labels.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 1]]
    assert data.reading == ("not complete: 3 images of 4",)


def test_missing_files(root, tmp_path_factory):
    (root / "val2014").rename(root / "val")
    refused(
        root, "val2014 (6 GB) of MS-COCO 2014 is not in", "get it from http://images.cocodataset.org/zips/val2014.zip"
    )
    refused(tmp_path_factory.mktemp("none"), "annotations/instances_train2014.json (330 MB) of MS-COCO 2014 and 3 more")


def test_only_the_archives_of_missing_files_are_fetched(root, tmp_path, monkeypatch, server):  # noqa: F811
    expected = load(root)
    address = server.url.removesuffix("file")
    items = [dataclasses.replace(item, source=address + item.source.rpartition("/")[2]) for item in module._ITEMS]
    archives = [
        dataclasses.replace(archive, url=address + archive.url.rpartition("/")[2], size=None, md5=None)
        for archive in module._ARCHIVES
    ]
    monkeypatch.setattr(module, "_ITEMS", items)
    monkeypatch.setattr(module, "_ARCHIVES", archives)
    shutil.make_archive(str(tmp_path / "val2014"), "zip", root, "val2014")
    server.files["/val2014.zip"] = (tmp_path / "val2014.zip").read_bytes()
    (tmp_path / "val2014.zip").unlink()
    shutil.rmtree(root / "val2014")
    refused(root, "val2014 (6 GB) of MS-COCO 2014 is not in", "or set dataset.download=true to have it fetched into")
    data = load(root, download=True)
    assert data.ids == expected.ids
    assert len(server.asked) == 1
    shutil.rmtree(root / "train2014")
    refused(root, "could not download", "train2014.zip", download=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("annotations"), "has no list of annotations, as MS-COCO's file has; get it again from http"),
        (lambda c: c.update(images={}), "has no list of images"),
        (lambda c: c.update(categories=[3]), "has no list of categories"),
        (lambda c: c["images"][0].update(id="9"), "has an entry whose id is '9', expected a number"),
        (lambda c: c["images"][0].update(id=7), "gives an id to two images or two categories"),
        (lambda c: c["categories"][0].update(id=1), "gives an id to two images or two categories"),
        (lambda c: c["images"][0].pop("file_name"), "has an entry whose file_name is None, expected a text"),
        (lambda c: c["images"][0].update(file_name="../secret.jpg"), "has the file name '../secret.jpg', which is"),
        (lambda c: c["annotations"][0].update(image_id=99), "has an object in image 99 of category 18, but does not"),
        (lambda c: c["annotations"][0].update(category_id=[1]), "has an entry whose category_id is [1], expected a nu"),
    ],
)  # fmt: skip
def test_malformed_annotations(root, change, sentence):
    content = content_of("train2014", OBJECTS["train2014"])
    change(content)
    (root / "annotations/instances_train2014.json").write_text(json.dumps(content))
    refused(root, "instances_train2014.json", sentence)


def test_annotations_that_are_no_json_or_differ(root, monkeypatch):
    file = root / "annotations/instances_val2014.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "cat"
    file.write_text(json.dumps(content))
    refused(root, "instances_val2014.json has other categories than train2014")
    twice = b'{"images": [], "images": []}'
    for broken in (b"[", b"[" * 100_000, b'{"images": "\xff"}', b"9" * 5000, twice):
        file.write_bytes(broken)
        refused(root, "instances_val2014.json is not valid JSON (")
    file.write_bytes(b"7")
    refused(root, "instances_val2014.json has no list of images")
    monkeypatch.setattr(module, "_MOST_BYTES", 50)
    refused(root, "must have at most 50 bytes, got ")


def test_lists_in_the_order_of_the_alphabet(root, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CATEGORIES", ("person", "car", "dog"))
    monkeypatch.setattr(module, "LISTED", {"train": (1,), "query": (1,), "database": (2,)})
    rows = {
        "train": ["train2014/COCO_train2014_000000000009.jpg 0 1 1"],
        "test": ["val2014/COCO_val2014_000000000002.jpg 0 0 1"],
        "database": [
            "train2014/COCO_train2014_000000000009.jpg 0 1 1",
            "val2014/COCO_val2014_000000000003.jpg 1 1 0",
        ],
    }
    (tmp_path / "lists").mkdir()
    for part, lines in rows.items():
        (tmp_path / f"lists/{part}.txt").write_text("".join(f"./data/coco/{line}\n" for line in lines))
    data = load(root, tmp_path / "lists")
    assert data.class_names == ["class 0", "class 1", "class 2"]  # as many persons as dogs
    (tmp_path / "lists/test.txt").write_text("./data/coco/val2014/COCO_val2014_000000000002.jpg 0 0 1\n")
    (tmp_path / "lists/database.txt").write_text(
        "./data/coco/train2014/COCO_train2014_000000000009.jpg 0 1 1\n"
        "./data/coco/train2014/COCO_train2014_000000000007.jpg 1 0 1\n"
    )
    data = load(root, tmp_path / "lists")
    assert data.class_names == ["car", "dog", "person"]
    assert data.labels.tolist() == [[0, 1, 1], [0, 0, 1], [1, 0, 1]]
    assert {role: rows.tolist() for role, rows in data.official.items()} == {
        "train": [0], "query": [1], "database": [0, 2],
    }  # fmt: skip

"""PASCAL VOC 2012 in the official layout and from the usual lists."""

import layouts
import numpy as np
import pytest

from deephash_cli.data import voc2012 as module
from deephash_cli.data.voc2012 import CLASS_NAMES, voc2012
from deephash_cli.errors import ConfigError, DataError

TOP = "VOCdevkit/VOC2012"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COUNTS", {"all": 4})
    monkeypatch.setattr(module, "LISTED", {"train": (1,), "query": (1,), "database": (2,)})
    return layouts.voc2012(tmp_path, CLASS_NAMES)


def load(root, lists=None, labels="lists", difficult=False, incomplete=False):
    return voc2012(root, lists=lists, download=False, labels=labels, difficult=difficult, incomplete=incomplete)


def labelled(data):
    return [{data.class_names[column] for column in np.flatnonzero(row)} for row in data.labels]


@pytest.mark.parametrize("labels", ["lists", "annotations"])
def test_the_official_layout(root, labels):
    data = load(root, labels=labels)
    assert data.ids == [f"JPEGImages/{name}.jpg" for name in layouts.OBJECTS]
    assert data.class_names == list(CLASS_NAMES)
    assert labelled(data) == [{"cat"}, {"dog"}, set(), {"aeroplane", "person"}]
    assert data.images.batch(np.arange(4), 8)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert (data.reading, data.usual) == (("difficult objects do not count, images with no others: 1",), "voc2012")
    data = load(root, labels=labels, difficult=True)
    assert labelled(data) == [{"cat"}, {"dog", "person"}, {"person"}, {"aeroplane", "person"}]


@pytest.mark.parametrize("inside", ["VOCdevkit", TOP])
def test_the_root_may_be_inside(root, inside):
    assert len(load(root / inside)) == 4


@pytest.mark.parametrize(("lines", "sentence"), [
    (["2008_000001 2"], "dog_trainval.txt:1: expected an image of trainval.txt and -1, 0 or 1, got '2008_000001 2'"),
    (["2008_000001"], "dog_trainval.txt:1: expected an image of trainval.txt"),
    (["1999_000001 1"], "dog_trainval.txt:1: expected an image of trainval.txt"),
    (["2008_000001 1", "2008_000001 -1"], "dog_trainval.txt:2: the image 2008_000001 is already in the file; get the"),
    (["2008_000001 1"], "dog_trainval.txt lists 1 images, but trainval.txt has 4; get both files again"),
])  # fmt: skip
def test_wrong_lists(root, lines, sentence):
    layouts.text(root / TOP / "ImageSets/Main/dog_trainval.txt", *lines)
    with pytest.raises(DataError) as caught:
        load(root)
    assert sentence in str(caught.value)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;">]><annotation><name>&c;</name></annotation>'


@pytest.mark.parametrize(("content", "sentence"), [
    (BOMB, "cannot be read as XML: it has a document type 'a', which no annotation needs; get it from https://thor"),
    (BOMB.encode("utf-16"), "it has a document type 'a'"),
    ("<annotation>", "cannot be read as XML: no element found"),
    ("<annotation>&b;</annotation>", "cannot be read as XML: undefined entity"),
    ('<?xml version="1.0" encoding="x"?><annotation/>', "cannot be read as XML: "),
    ("<html/>", "has the element 'html', expected annotation"),
    ("<annotation><object><name>cow boy</name></object></annotation>", "an object 'cow boy' with difficult='0'; "),
    ("<annotation><object><name>cow</name><difficult>2</difficult></object></annotation>", "'cow' with difficult='2'"),
    ("<annotation/>" + " " * 2**20, "must have at most 1048576 bytes, got"),
    (None, "does not exist; get it from https://thor"),
])  # fmt: skip
def test_wrong_annotations(root, content, sentence):
    path = root / TOP / "Annotations" / "2008_000002.xml"
    path.unlink() if content is None else path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        load(root, labels="annotations")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_incomplete(root):
    (root / TOP / "JPEGImages" / "2008_000001.jpg").unlink()
    with pytest.raises(
        DataError, match=r"JPEGImages/2008_000001\.jpg is missing, is not complete: found 3 images of 4"
    ):
        load(root)
    assert labelled(load(root, incomplete=True)) == [{"dog"}, set(), {"aeroplane", "person"}]
    (root / TOP / "ImageSets/Main/cow_trainval.txt").unlink()
    with pytest.raises(
        DataError, match=rf"^{TOP}/ImageSets/Main/cow_trainval\.txt \(170 kB\) of PASCAL VOC 2012 is not in"
    ):
        load(root)
    with pytest.raises(ConfigError, match=r"dataset\.labels must be lists or annotations, got both"):
        load(root, labels="both")


def test_the_usual_lists(root):
    for name, rows in {"train.txt": [0], "test.txt": [3], "database.txt": [1, 2]}.items():
        lines = []
        for row in rows:
            image, found = list(layouts.OBJECTS.items())[row]
            kinds = [kind for kind, _ in found]
            lines.append(f"JPEGImages/{image}.jpg {' '.join(str(int(kind in kinds)) for kind in CLASS_NAMES)}")
        layouts.text(root / "lists" / name, *lines)
    data = load(root / TOP, lists=root / "lists")
    assert labelled(data) == [{"cat"}, {"aeroplane", "person"}, {"dog", "person"}, {"person"}]
    assert {role: rows.tolist() for role, rows in data.official.items()} == {
        "train": [0],
        "query": [1],
        "database": [2, 3],
    }
    for settings in ({"difficult": True}, {"labels": "annotations"}):
        with pytest.raises(
            ConfigError, match=r"^dataset\.difficult and dataset\.labels choose among .* leave out one "
        ):
            load(root / TOP, lists=root / "lists", **settings)

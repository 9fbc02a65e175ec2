"""MIRFlickr-25k in the official layout and from the usual lists."""

import layouts
import numpy as np
import pytest
from test_archives import zip_of

from deephash_cli.cli import checking
from deephash_cli.data import download
from deephash_cli.data import mirflickr as module
from deephash_cli.data.mirflickr import LABELS, POTENTIAL, mirflickr
from deephash_cli.errors import ConfigError, DataError
from deephash_cli.training.datasets import prepare_data

ALL = LABELS["all38"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "COUNTS", {"all": 6})
    monkeypatch.setattr(module, "LISTED", {"train": (2,), "query": (1,), "database": (3,)})


@pytest.fixture(params=["annotations", "mirflickr25k_annotations_v080"])
def root(tmp_path, request):
    return layouts.mirflickr(tmp_path, ALL, annotations=request.param)


def load(root, lists=None, labels="potential", incomplete=False, download=False):
    return mirflickr(root, lists=lists, download=download, labels=labels, incomplete=incomplete)


def labelled(data):
    return [{data.class_names[column] for column in np.flatnonzero(row)} for row in data.labels]


def test_the_official_layout(root):
    data = load(root)
    assert data.ids == [f"im{number}.jpg" for number in range(1, 7)]
    assert len(data.class_names) == 24
    assert labelled(data)[:5] == [{"sky"}, {"sky", "tree"}, {"tree"}, {"people"}, set()]
    assert len(labelled(data)[5]) == 22
    assert data.images.batch(np.arange(6), 8)[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert (data.reading, data.official, data.usual) == (("potential labels",), None, "mirflickr")


def test_all_38_labels(root):
    data = load(root, labels="all38")
    assert len(data.class_names) == 38
    assert labelled(data)[3] == {"people", "people r1"}
    with pytest.raises(ConfigError, match=r"dataset\.labels must be potential or all38, got relevant"):
        load(root, labels="relevant")


def test_what_was_understood_is_said_before_a_run(tmp_path, capsys):
    layouts.mirflickr(tmp_path, POTENTIAL)
    words = ["dataset=mirflickr", f"dataset.root={tmp_path}", "dataset.protocol=holdout", "method=lsh"]
    prepare_data(checking.check("train", words, None, multirun=False))
    assert "bird, car, clouds, ...; 1 without a label; potential labels; " in capsys.readouterr().out


@pytest.mark.parametrize("line", ["0", "7", "-1", "im1.jpg", "1.0", "9" * 5000, "\N{SUPERSCRIPT TWO}"])
def test_wrong_annotations(tmp_path, line):
    layouts.mirflickr(tmp_path, POTENTIAL)
    layouts.text(tmp_path / "annotations" / "sky.txt", "1", line)
    with pytest.raises(DataError, match=r"sky\.txt:2: expected the number of an image, from 1 to 6, got "):
        load(tmp_path)


@pytest.mark.parametrize(("lines", "sentence"), [
    ((1, 3, 1), "sky.txt:3: the image 1 is already in the file; get the file again"),
    ((), "sky.txt names no image, but each concept of MIRFlickr-25k has some; get the file again"),
])  # fmt: skip
def test_a_damaged_file_of_annotations(tmp_path, lines, sentence):
    layouts.mirflickr(tmp_path, POTENTIAL)
    layouts.text(tmp_path / "annotations" / "sky.txt", *lines)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert sentence in str(caught.value)


def test_missing_and_incomplete(tmp_path):
    layouts.mirflickr(tmp_path, POTENTIAL)
    (tmp_path / "mirflickr" / "im2.jpg").unlink()
    with pytest.raises(DataError, match=r"where im2\.jpg is missing, is not complete: found 5 images of 6"):
        load(tmp_path)
    data = load(tmp_path, incomplete=True)
    assert data.reading == ("potential labels", "not complete: 5 images of 6")
    assert labelled(data)[1] == {"tree"}
    (tmp_path / "annotations" / "sky.txt").unlink()
    with pytest.raises(DataError, match=r"^annotations/sky\.txt \(up to 60 kB\) of MIRFlickr-25k is not in .*zip"):
        load(tmp_path)


def test_the_usual_lists(tmp_path):
    layouts.mirflickr(tmp_path, [])
    columns = [[int(number in layouts.CONCEPTS.get(name, ())) for name in ALL] for number in range(1, 7)]
    columns[4][ALL.index("people")] = 1  # so that it is the class with the most images
    columns[5] = columns[4]
    lines = [f"im{number}.jpg {' '.join(map(str, row))}" for number, row in enumerate(columns, start=1)]
    for name, rows in {"train.txt": lines[:2], "test.txt": lines[2:3], "database.txt": lines[3:]}.items():
        layouts.text(tmp_path / "lists" / name, *rows)
    data = load(tmp_path / "mirflickr", lists=tmp_path / "lists", labels="all38")
    assert labelled(data)[:4] == [{"sky"}, {"sky", "tree"}, {"tree"}, {"people", "people r1"}]
    assert {role: len(rows) for role, rows in data.official.items()} == {"train": 2, "query": 1, "database": 3}
    with pytest.raises(DataError, match=r"38 columns of labels, but MIRFlickr-25k \(potential labels\) has 24"):
        load(tmp_path / "mirflickr", lists=tmp_path / "lists")


def test_the_two_archives_are_unpacked_as_they_are_read(tmp_path, monkeypatch):
    """The images are in a folder of their archive; the annotations are not."""
    made = layouts.mirflickr(tmp_path / "made", POTENTIAL)
    images = {f"mirflickr/{path.name}": path.read_bytes() for path in (made / "mirflickr").iterdir()}
    texts = {path.name: path.read_bytes() for path in (made / "annotations").iterdir()}

    def served(url, path, md5, max_bytes, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        zip_of(path, *(images if md5 else texts).items())

    monkeypatch.setattr(download, "download", served)
    assert labelled(load(tmp_path / "data", download=True)) == labelled(load(made))

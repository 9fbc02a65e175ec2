"""Labels as people write them: what is understood, and what is refused because it has two meanings."""

import numpy as np
import pytest

from deephash_cli.data import labels as labels_module
from deephash_cli.data.identity import alike, canonical
from deephash_cli.data.labels import from_cells, from_columns
from deephash_cli.errors import DataError


def cells(*texts):
    return from_cells(list(texts), [f"t.csv:{number}" for number in range(2, 2 + len(texts))])


def names(*texts):
    read = cells(*texts)
    return [[read.class_names[column] for column in np.flatnonzero(row)] for row in read.labels]


def columns(*rows, header=None):
    places = [f"l.txt:{number}" for number in range(1, 1 + len(rows))]
    read = from_columns([row.split() for row in rows], places, header)
    return read.labels.tolist(), read.class_names


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("red;shoe", "red", ""), [["red", "shoe"], ["red"], []]),
        (("red|shoe", "red"), [["red", "shoe"], ["red"]]),
        ((" ; red ;; red", "shoe;"), [["red"], ["shoe"]]),
        (("tench, Tinca tinca;", "dog"), [["tench, Tinca tinca"], ["dog"]]),
        (("['red', 'shoe']", "[]", ""), [["red", "shoe"], [], []]),
        (('["red", "it\'s"]', "['a b']"), [["it's", "red"], ["a b"]]),
        (("('red', 'shoe')", "('red',)", "{'shoe'}", "set()"), [["red", "shoe"], ["red"], ["shoe"], []]),
        (("['red' 'shoe']", "array(['red'], dtype='<U3')"), [["red", "shoe"], ["red"]]),
        (("['red'\n 'shoe']", "[np.str_('red'), np.str_('shoe')]"), [["red", "shoe"], ["red", "shoe"]]),
        (("['np.exp(x)', \"it's np.log(x)\"]", "[np.str_('x')]"), [["it's np.log(x)", "np.exp(x)"], ["x"]]),
        (("[1, 2]", "[1 3]"), [["1", "2"], ["1", "3"]]),
        (("1.0", "1", "2.0"), [["1"], ["1"], ["2"]]),
        (("caf\u00e9", "cafe\u0301"), [["café"], ["café"]]),
        (("ice cream", "ice\u00a0 cream", "ice\u200b cream "), [["ice cream"]] * 3),
        (("Cat", "cat"), [["Cat"], ["cat"]]),
        (("(background)", "dog"), [["(background)"], ["dog"]]),
    ],
)
def test_cells(texts, expected):
    assert names(*texts) == expected


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (("dog", "red,shoe"), r"t\.csv:3: the comma in the labels 'red,shoe' may separate two names or be part of one"),
        (("red;shoe", "a|b"), r"t\.csv:3: names are separated by \|, but in t\.csv:2 by ;"),
        (("red;shoe", "hat,cap"), r"t\.csv:3: the comma in the labels 'hat,cap' may separate two names"),
        (("['red']", "nan"), r"t\.csv:3: the label 'nan' is what programs write for a missing value"),
        (
            ("red;shoe", "red;hat", "red,hat;shoe"),
            r"t\.csv:4: the name 'red,hat' consists of names that other lines have",
        ),
        (("['red', 'shoe']", "red"), r"t\.csv:3: the labels 'red' are no list, but other lines have lists"),
        (("['red', nan]",), r"t\.csv:2: the labels .* cannot be read as one"),
        (("['a' 'b' ... 'z']",), "cannot be read as one"),
        (("[[1, 0], [0, 1]]",), "cannot be read as one"),
        (("[0, 1, 0]", "[1, 0, 0]"), "seem to be a 0 or 1 for each class"),
        (("0;1", "1;0"), "seem to be a 0 or 1 for each class"),
        (("0 1 0", "1 0 0"), "'0 1 0' holds several numbers"),
        (("red", "nan"), r"t\.csv:3: the label 'nan' is what programs write for a missing value; leave the cell empty"),
        (("red", "None"), "missing value"),
        (("red;<NA>",), "missing value"),
        (("1", "-1"), r"t\.csv:3: the label -1 usually stands for no class"),
        (("red\nshoe",), "have a line break in them"),
    ],
)
def test_cells_with_two_meanings(texts, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        cells(*texts)
    assert "\n" not in str(caught.value)


def test_too_many_classes(monkeypatch):
    monkeypatch.setattr(labels_module, "LIMIT", 600 * 600 - 1)
    with pytest.raises(DataError, match="600 different labels for 600 images, too many to be classes"):
        cells(*(f"a caption {number}" for number in range(600)))


@pytest.mark.parametrize(
    ("rows", "labels", "class_names"),
    [
        (("1 0", "0 1"), [[1, 0], [0, 1]], ["class 0", "class 1"]),
        (("1.0 0.0", "0 1."), [[1, 0], [0, 1]], ["class 0", "class 1"]),
        (("1.0e+00 0.0e+00", "0 1"), [[1, 0], [0, 1]], ["class 0", "class 1"]),
        (("1 -1", "-1 -1"), [[1, 0], [0, 0]], ["class 0", "class 1"]),
        (("0", "1", "0"), [[1, 0], [0, 1], [1, 0]], ["class 0", "class 1"]),
        (("7", "12", "7.0"), [[1, 0], [0, 1], [1, 0]], ["class 7", "class 12"]),
        (("0", "2", "-1"), [[1, 0], [0, 1], [0, 0]], ["class 0", "class 2"]),
        (("1", "1"), [[1], [1]], ["class 1"]),
    ],
)
def test_columns(rows, labels, class_names):
    assert columns(*rows) == (labels, class_names)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (("1", "-1"), r"l\.txt:2: a single column of -1 and 1 has two meanings"),
        (("0", "-1"), "has two meanings"),
        (("0", "-2"), r"l\.txt:2: class numbers must be 0 or more, or -1 for no class, got -2"),
        (("3 17",), r"l\.txt:1: labels in 2 columns must be 0 or 1, or all -1 or 1, got '3'"),
        (("1 0", "1"), r"l\.txt:2: expected 2 label columns, as in l\.txt:1, got 1"),
        (("1e300",), "got '1e300'"),
        (("inf",), "got 'inf'"),
    ],
)
def test_columns_with_two_meanings(rows, sentence):
    with pytest.raises(DataError, match=sentence):
        columns(*rows)


def test_a_header_names_the_classes():
    assert columns("1 0", "0 1", header=["cat", "dog"])[1] == ["cat", "dog"]
    with pytest.raises(DataError, match="the header line names 1 classes"):
        columns("1 0", "0 1", header=["cat"])
    with pytest.raises(DataError, match="holds class numbers of 2 classes; remove the header line"):
        columns("1", "0", header=["label"])


def test_names_that_look_the_same():
    assert canonical("cafe\u0301") == canonical(" caf\u00e9\u200b")
    assert canonical("Cat") != canonical("cat")
    assert canonical("a\u00a0\u00a0b ") == "a b"
    assert alike(["a", "b", "a\u200b"]) == ("a", "a\u200b")
    assert alike(["a", "A"]) is None

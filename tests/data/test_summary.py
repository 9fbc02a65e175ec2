"""The line that says, before training, how a user's data were understood."""

import dataclasses

import numpy as np

from deephash_cli.data.dataset import RetrievalDataset, Vectors
from deephash_cli.data.protocol import make_split
from deephash_cli.data.summary import summary


def made(name, labels, class_names, official=None, reading=()):
    labels = np.array(labels, np.uint8)
    parts = {role: np.array(rows) for role, rows in official.items()} if official else None
    images = Vectors(np.zeros((len(labels), 2), np.float32))
    return RetrievalDataset(name, [str(row) for row in range(len(labels))], labels, class_names, images, parts, reading)


def test_summary():
    official = {"query": [0], "train": [1, 2], "database": [1, 2, 3]}
    data = made("csv", [[1, 0], [1, 0], [0, 1], [0, 0]], ["a", "b"], official, ("labels separated by ;", ""))
    assert summary(data, make_split("auto", data, 0), None) == (
        "csv: 4 images, 2 classes: a, b; 1 without a label; labels separated by ;; 1 query, 2 for training, database "
        "of 3; divided by the column split"
    )
    split = make_split("official", data, 0)
    assert summary(data, split, "s.json").endswith("divided by s.json, the column split not used")
    drawn = dataclasses.replace(split, name="holdout")
    assert summary(data, drawn, None).endswith("drawn by dataset.protocol=holdout, so the column split is not used")
    many = made("vectors", np.eye(9), [str(column) for column in range(9)])
    assert summary(many, split, None).startswith("vectors: 9 vectors, 9 classes: 0, 1, 2, 3, 4, ...; ")
    none = made("csv", np.zeros((4, 0)), [])
    assert summary(none, make_split("auto", none, 0), None) == (
        "csv: 4 images, no labels; 1 query, 3 for training, database of 3; drawn by dataset.protocol=holdout"
    )

"""A trial keeps a few rows of each part, and is never taken for the whole."""

from pathlib import Path

import numpy as np
import pytest

from deephash_cli.data import trial
from deephash_cli.data.dataset import ImageArray, ImageFiles, RetrievalDataset, Vectors
from deephash_cli.data.protocol import split_of

COUNT = 60
IMAGES = {
    "pixels": ImageArray(np.arange(COUNT * 3, dtype=np.uint8).reshape(COUNT, 3, 1, 1)),
    "files": ImageFiles([Path(f"{row}.jpg") for row in range(COUNT)], Path("photos")),
    "vectors": Vectors(np.arange(COUNT * 2, dtype=np.float32).reshape(COUNT, 2)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_trial_keeps_a_few_rows_of_each_part(kind):
    labels = np.eye(3, dtype=np.uint8)[np.arange(COUNT) % 3]
    dataset = RetrievalDataset("d", [str(row) for row in range(COUNT)], labels, ["a", "b", "c"], IMAGES[kind])
    split = split_of(dataset, "s1", 1, 0, np.arange(5), np.arange(5, 40), np.arange(5, 60))
    small, few = trial.reduce(dataset, split, 10)
    assert (len(few.query), len(few.train), len(few.database)) == (5, 10, 10)
    assert len(small) < 26
    assert few.name == "s1_trial"
    assert few.sha256 != split.sha256
    for role in ("query", "train", "database"):
        whole = {dataset.ids[row] for row in getattr(split, role)}
        assert {small.ids[row] for row in getattr(few, role)} <= whole
    rows = [int(name) for name in small.ids]
    assert (small.labels == labels[rows]).all()
    if kind == "files":
        assert [Path(path).stem for path in small.images.paths] == small.ids
    else:
        assert np.array_equal(small.images.batch(np.arange(len(small))), IMAGES[kind].batch(np.array(rows)))
    assert trial.reduce(dataset, split, 55) == (dataset, split)

"""Outputs of a network that are not finite are named by the id of their image."""

from pathlib import Path

import numpy as np
import pytest

from deephash_cli.retrieval.codes_folder import open_side
from deephash_cli.training.inputs import Source

SETTINGS = (
    "dataset=vectors", "dataset.vectors=x.npy", "dataset.ids=ids.txt", "method=lsh", "bits=8", "logger=none",
    "gallery=false", "run_dir=run",
)  # fmt: skip


@pytest.fixture
def spoiled(monkeypatch):
    """Make the value of the first bit of one row what is asked for."""
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32))
    Path("ids.txt").write_text("".join(f"item {row}\n" for row in range(60)))
    outputs = Source._outputs

    def spoil(value):
        def changed(self, *arguments):
            for u in outputs(self, *arguments):
                u = u.clone()
                u[2, 0] = value
                yield u

        monkeypatch.setattr(Source, "_outputs", changed)

    return spoil


def test_nan_is_an_error_that_names_the_image(deephash, spoiled):
    spoiled(float("nan"))
    result = deephash("train", *SETTINGS)
    assert result.code == 5
    assert "error: the network's output for item " in result.err
    assert "got NaN first in row 2 (1 of 6 rows)" in result.err
    assert not Path("run/codes").exists()


@pytest.mark.parametrize(("value", "bit"), [(float("inf"), 1), (float("-inf"), 0)])
def test_infinity_keeps_its_sign_and_is_said(deephash, spoiled, value, bit):
    spoiled(value)
    result = deephash("train", *SETTINGS)
    assert result.code == 0
    for side, n in (("query", 6), ("database", 54)):
        found = open_side(Path("run/codes"), side)
        assert (
            f"warning: the network gives infinite values for 1 of {n} images, first for {found.ids[2]}: " in result.err
        )
        assert found.packed[2, 0] & 1 == bit

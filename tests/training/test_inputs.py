"""Outputs of a network are kept as they are; those that are not finite are named by the id of their image."""

from pathlib import Path

import numpy as np
import pytest

from deephash_cli.retrieval.codes_folder import load_codes, open_side
from deephash_cli.training import fit
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
    query, database, _ = load_codes(Path("run/codes"))
    assert query.u[2, 0] == database.u[2, 0] == np.copysign(65504, value)


@pytest.mark.parametrize("more", [(), ("loader.eval_batch_size=7",)])
def test_continuous_codes_are_the_output_of_the_network(deephash, monkeypatch, spoiled, more):
    given = []
    outputs = Source._outputs

    def noted(self, *arguments):
        for u in outputs(self, *arguments):
            given.append(u.numpy())
            yield u

    monkeypatch.setattr(Source, "_outputs", noted)
    assert deephash("train", *SETTINGS, *more).code == 0
    query, database, _ = load_codes(Path("run/codes"))
    assert np.array_equal(np.concatenate([query.u, database.u]), np.concatenate(given).astype(np.float16))


def test_continuous_codes_of_a_large_database_are_not_kept(deephash, monkeypatch, spoiled):
    monkeypatch.setattr(fit, "_MOST_CONTINUOUS", 54 * 8 * 2)
    assert deephash("train", *SETTINGS).code == 0
    assert load_codes(Path("run/codes"))[1].u is not None
    monkeypatch.setattr(fit, "_MOST_CONTINUOUS", 54 * 8 * 2 - 1)
    result = deephash("train", *SETTINGS[:-1], "run_dir=again")
    assert result.code == 0
    assert "the continuous codes of 54 database items take more than 0 MB, so they are not kept" in result.out
    query, database, _ = load_codes(Path("again/codes"))
    assert query.u is not None
    assert database.u is None

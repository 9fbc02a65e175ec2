"""Vectors that cannot give useful codes, or do not fit into memory, are noticed before a run."""

import numpy as np
import pytest

from deephash_cli.data.dataset import Vectors
from deephash_cli.errors import DataError
from deephash_cli.training import caution

X = np.random.default_rng(0).normal(size=(300, 8))


def said(capsys, x, centred=False, fit_rows=1000):
    caution.look_at(Vectors(np.asarray(x, np.float32)), 0, fit_rows, centred)
    return capsys.readouterr().err


def test_nothing_is_said_of_ordinary_vectors(capsys):
    for x in (X, X + 5, X / np.linalg.norm(X, axis=1, keepdims=True), 1e6 * X, X[:1]):
        assert said(capsys, x) == ""


def test_vectors_far_from_0(capsys):
    assert said(capsys, X + 1e6).startswith("warning: the mean of the vectors is ")
    assert said(capsys, X + 1e6, centred=True) == ""
    assert "differ by only about 1e-08, which layers that learn take for none" in said(capsys, 1e-8 * X)


def test_columns_without_variance(capsys):
    x = X.copy()
    x[:, [1, 4]] = 3.7
    assert said(capsys, x) == (
        "warning: 2 of 8 columns have the same value in all 300 vectors and tell nothing apart\n"
    )


@pytest.mark.parametrize("x", [np.full((300, 8), 0.1), X + 1e12])
def test_vectors_without_any_spread_are_refused(x):
    with pytest.raises(DataError, match="all 300 vectors are the same as float32"):
        caution.look_at(Vectors(x), 0, 1000, False)


def test_the_spread_is_that_of_the_float32_values():
    x = np.asarray(1e4 + X, np.float32)
    mean, deviation = Vectors(x).spread
    assert np.allclose(mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert np.allclose(deviation, x.std(axis=0, dtype=np.float64), rtol=1e-9)


def test_too_little_memory_is_said_before_the_start(capsys, monkeypatch):
    monkeypatch.setattr(caution, "available_memory", lambda: 50_000)
    assert "300 vectors of length 8 need about 0.0 GB of memory" in said(capsys, X)
    assert caution.look_at(Vectors(X[:200]), 0, 10, False) is None
    assert capsys.readouterr().err == ""


def test_what_cannot_fit_into_memory_is_refused_before_the_start(monkeypatch):
    """300 vectors with 5 classes: 24 + 5 bytes a row, and the sample of 100 vectors of length 8 twice as float32."""
    least = 300 * 29 + 100 * 8 * 8
    monkeypatch.setattr(caution, "total_memory", lambda: least)
    caution.look_at(Vectors(X), 5, 100, False)
    monkeypatch.setattr(caution, "total_memory", lambda: least - 1)
    with pytest.raises(
        DataError, match=r"300 vectors of length 8 need at least 0\.0 GB of memory, but this machine or"
    ):
        caution.look_at(Vectors(X), 5, 100, False)


@pytest.mark.skipif(caution.total_memory() is None, reason="the system does not say")
def test_the_memory_of_this_machine_is_known():
    total, available = caution.total_memory(), caution.available_memory()
    assert total
    assert available
    assert 2**28 < available < total < 2**50

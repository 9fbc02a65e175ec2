"""LFH against slow loops written from the paper, finite differences, and common mistakes of its re-implementations."""

import math

import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.methods import lfh
from deephash_cli.methods.lfh import LFH, surrogate_step

BETA = 3.0
SETTINGS = {"beta": BETA, "columns": 20, "iterations": 30, "ridge_weight": 1.0}
SINGLE = np.eye(4)[[0, 1, 2, 0, 3, 1, 0, 2, 2, 0, 1, 3]]
MULTI = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]] * 2)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def factors(bits=3, scale=1.5, seed=0):
    return scale * np.random.default_rng(seed).standard_normal((12, bits))


def shares(labels, rows, columns):
    return labels[rows] @ labels[columns].T > 0


def objective(u, labels, rows, columns):
    """Return L over the pairs of a row and a column, each counted as (i, j) and (j, i), and the prior of the rows."""
    total = 0.0
    for i in rows:
        for j in columns:
            if i != j:
                t = sum(a * b for a, b in zip(u[i], u[j], strict=True)) / 2
                s = any(a == 1 and b == 1 for a, b in zip(labels[i], labels[j], strict=True))
                total += 2 * (s * t - math.log(1 + math.exp(t)))
        total -= sum(value**2 for value in u[i]) / (2 * BETA)
    return total


def whole_objective(u, labels):
    """Return L over all pairs: ``objective`` visits each unordered pair twice and gives it a weight of 2."""
    every = range(len(u))
    prior = -np.square(u).sum() / (2 * BETA)
    return (objective(u, labels, every, every) - prior) / 2 + prior


def derivative(f, row, step=1e-5):
    """Return the gradient by central differences."""
    return np.array([(f(row + step * e) - f(row - step * e)) / (2 * step) for e in np.eye(len(row))])


def updated(u, labels, rows, columns):
    u = u.copy()
    u[rows] = surrogate_step(u[rows], u[columns], shares(labels, rows, columns), BETA)
    return u


@BOTH
def test_updating_a_row_against_all_others_never_lowers_the_objective(labels):
    u = factors()
    before = first = whole_objective(u, labels)
    for i in [*range(12)] * 3:
        u = updated(u, labels, [i], [j for j in range(12) if j != i])
        after = whole_objective(u, labels)
        assert after >= before - 1e-9
        before = after
    assert before > first


@BOTH
def test_rows_updated_together_never_lower_the_likelihood_of_their_pairs_with_the_columns(labels):
    rng = np.random.default_rng(0)
    for seed in range(10):
        u, order = factors(scale=2.0, seed=seed), rng.permutation(12)
        columns, rows = order[:4], order[4:]
        assert objective(updated(u, labels, rows, columns), labels, rows, columns) > objective(u, labels, rows, columns)


@BOTH
def test_the_update_is_the_gradient_of_finite_differences_over_the_paper_s_curvature(labels):
    u, columns, rows = factors(), [1, 4, 6], [0, 2, 3, 5]
    curvature = sum(np.outer(u[j], u[j]) for j in columns) / 8 + np.eye(3) / BETA
    new = updated(u, labels, rows, columns)
    for i in rows:

        def of_row(row, i=i):
            changed = u.copy()
            changed[i] = row
            return objective(changed, labels, rows, columns)

        assert np.allclose(curvature @ (new[i] - u[i]), derivative(of_row, u[i]), atol=1e-7)


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_the_curvature_bounds_the_true_one_and_half_of_it_does_not(scale):
    u, columns = factors(scale=scale), [1, 4, 6, 7]
    bound = -sum(np.outer(u[j], u[j]) for j in columns) / 8 - np.eye(3) / BETA

    def of_row(row):
        changed = u.copy()
        changed[0] = row
        return objective(changed, SINGLE, [0], columns)

    for row in (u[0], np.zeros(3)):
        hessian = np.array([derivative(lambda v, e=e: derivative(of_row, v, 1e-3) @ e, row, 1e-3) for e in np.eye(3)])
        assert np.linalg.eigvalsh(hessian - bound).min() > -1e-4 * (1 + scale**2)
    # At t = 0 the bound is exact, so a smaller curvature would not be a bound.
    assert np.allclose(hessian, bound, atol=1e-3 * scale**2 + 1e-6)


def test_updating_the_columns_too_as_a_public_version_does_can_lower_the_likelihood():
    # Both sides of a pair move as far as the bound allows one side. Near u = 0 it allows long steps: they overshoot.
    every, columns, rows = np.arange(12), np.arange(6), np.arange(6, 12)
    fell = []
    for seed in range(20):
        u = factors(scale=0.3, seed=seed)
        fell.append(whole_objective(updated(u, SINGLE, every, every), SINGLE) < whole_objective(u, SINGLE))
        assert objective(updated(u, SINGLE, rows, columns), SINGLE, rows, columns) > objective(u, SINGLE, rows, columns)
    assert any(fell)


@pytest.mark.parametrize(("columns", "expected"), [(5, 5), (500, 15)])
def test_in_an_iteration_the_columns_rest(monkeypatch, columns, expected):
    met = []

    def note(rows, others, similar, beta):
        met.append((rows, others))
        return surrogate_step(rows, others, similar, beta)

    monkeypatch.setattr(lfh, "surrogate_step", note)
    x, labels = clusters(30, 5, 3)
    fitted(LFH, x, labels, 4, **{**SETTINGS, "columns": columns})
    assert len(met) == SETTINGS["iterations"]
    for rows, others in met:
        assert (len(rows), len(others)) == (30 - expected, expected)
        assert not (rows[:, None] == others[None]).all(axis=2).any()
    assert not np.array_equal(met[0][1], met[1][1])


def test_the_encoder_is_the_ridge_regression_of_factors_on_centred_features(monkeypatch):
    # A public version regresses the signs of U instead.
    monkeypatch.setattr(lfh, "surrogate_step", lambda rows, *_: rows)
    x, labels = clusters(30, 5, 3)
    module = fitted(LFH, x + 10, labels, 4, seed=7, **{**SETTINGS, "ridge_weight": 2.0})
    u, centred = np.random.default_rng(7).standard_normal((30, 4)), x - x.mean(axis=0)
    w = np.linalg.inv(centred.T @ centred + 2 * np.eye(5)) @ centred.T @ u
    assert np.allclose(encode(module, x + 10), centred @ w, atol=1e-4)


def test_rows_far_away_have_finite_updates():
    u = np.full((3, 2), 1e4)
    similar = np.array([[True], [False], [True]])
    assert np.isfinite(surrogate_step(u, np.full((1, 2), -1e4), similar, BETA)).all()


def test_its_codes_retrieve():
    x, labels = clusters(150, 20, 5)
    others, other_labels = clusters(100, 20, 5, seed=9)
    u = encode(fitted(LFH, x, labels, 8, **SETTINGS), others)
    assert mean_average_precision(u, other_labels) > 3 / 5  # chance is 1 / 5


def test_several_labels_none_and_fewer_images_than_columns_work():
    x = np.random.default_rng(0).standard_normal((12, 4))
    assert np.isfinite(encode(fitted(LFH, x, MULTI, 16, **SETTINGS), x)).all()


@pytest.mark.parametrize("change", [{"beta": 0.0}, {"columns": 0}, {"iterations": 0}, {"ridge_weight": 0.0}])
def test_settings_out_of_range_are_refused(change):
    x, labels = clusters(12, 4, 3)
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        fitted(LFH, x, labels, 4, **{**SETTINGS, **change})

"""KLSH against loops written from the paper, and the inconsistency of a public version."""

import math

import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.errors import ConfigError
from deephash_cli.methods.klsh import KLSH, median_distance, random_directions

SETTINGS = {"anchors": 20, "subset": 30, "kernel_width": 1.0}
MULTI = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1]])


def gaussian(x, anchors, gamma):
    return np.array([[math.exp(-gamma * sum((p - q) ** 2 for p, q in zip(row, a, strict=True))) for a in anchors]
                     for row in x])  # fmt: skip


def centred_rows(rows, kernel):
    """Return k(x, a_j) - mean over j of k(x, a_j) - mean over i of K_ij + mean of K, computed one at a time."""
    result = np.empty_like(rows)
    for i, row in enumerate(rows):
        for j in range(len(row)):
            result[i, j] = row[j] - sum(row) / len(row) - sum(kernel[:, j]) / len(kernel) + kernel.mean()
    return result


def of_layer(module):
    rbf, projection = module.network.hash_layer
    return rbf.anchors.double().numpy(), float(rbf.gamma), projection.weight.double().numpy()


def on_anchors(kernel, w):
    """Return the outputs for the anchors themselves, with the doubly centred kernel of the training."""
    n = len(kernel)
    h = np.eye(n) - np.ones((n, n)) / n
    return h @ kernel @ h @ w


def test_new_images_are_encoded_with_the_kernel_and_the_centring_of_the_training():
    # A public version fits with a kernel of width 1, and encodes with another width and without centring. So it uses
    # other hyperplanes, and nearly all images share a bit.
    x, labels = clusters(60, 6, 3)
    module = fitted(KLSH, x[:40], labels[:40], 8, **SETTINGS)
    anchors, gamma, w = of_layer(module)
    kernel = gaussian(anchors, anchors, gamma)
    expected = centred_rows(gaussian(x, anchors, gamma), kernel) @ w
    assert np.allclose(encode(module, x), expected, atol=1e-4)
    assert np.allclose(encode(module, anchors), on_anchors(kernel, w), atol=1e-4)


def test_directions_are_whitened_means_of_random_anchors():
    x, p, t = np.random.default_rng(0).standard_normal((12, 4)), 12, 3
    kernel = gaussian(x, x, 0.3)
    w = random_directions(kernel, 5, t, np.random.default_rng(7))
    h = np.eye(p) - np.ones((p, p)) / p
    values, vectors = np.linalg.eigh(h @ kernel @ h)
    half = sum(np.outer(v, v) * math.sqrt(value) for value, v in zip(values, vectors.T, strict=True) if value > 1e-9)
    rng = np.random.default_rng(7)
    for k in range(5):
        chosen = rng.choice(p, t, replace=False)
        e = np.isin(np.arange(p), chosen) - t / p  # e_S without the constant vector, which has eigenvalue 0
        assert np.allclose(half @ w[:, k], math.sqrt((p - 1) / t) * e)


def test_copies_among_the_anchors_are_not_divided_by():
    # With copies the kernel matrix is singular. Without the bound on eigenvalues its root has entries of 1e8 or NaN.
    x = np.repeat(np.random.default_rng(0).standard_normal((6, 4)), 3, axis=0)
    w = random_directions(gaussian(x, x, 0.3), 9, 4, np.random.default_rng(1))
    assert np.abs(w).max() < 1e3


def test_the_kernel_is_as_wide_as_the_setting_says():
    x, labels = clusters(40, 6, 2)
    wide, narrow = (fitted(KLSH, x, labels, 4, **{**SETTINGS, "kernel_width": width}) for width in (4.0, 1.0))
    anchors, gamma, _ = of_layer(narrow)
    between = [((row - a) ** 2).sum() for row in x for a in anchors if ((row - a) ** 2).sum() > 1e-6]
    assert 1 / gamma == pytest.approx(np.median(between), rel=1e-4)
    assert of_layer(wide)[1] == pytest.approx(gamma / 4)


def test_copies_do_not_make_the_width_zero():
    x = np.repeat(np.array([[0.0, 0.0], [3.0, 4.0]]), [9, 1], axis=0)
    assert median_distance(x, x) == pytest.approx(25)


def test_identical_features_are_refused():
    with pytest.raises(ConfigError, match="all of them are the same"):
        fitted(KLSH, np.ones((10, 4)), np.eye(2)[np.arange(10) % 2], 3, **SETTINGS)


def test_features_far_from_0_are_not_called_the_same():
    x = 1e6 + np.random.default_rng(0).normal(size=(40, 4))
    with pytest.raises(ConfigError, match="rounding hides them, because the features are far from 0"):
        median_distance(x, x)


@pytest.mark.parametrize("setting", [{"anchors": 1}, {"subset": 0}, {"kernel_width": 0.0}])
def test_settings_out_of_range_are_refused(setting):
    x, labels = clusters(10, 4, 2)
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} must be"):
        fitted(KLSH, x, labels, 3, **{**SETTINGS, **setting})


def test_anchors_and_subset_are_capped_by_the_training_set():
    x = np.random.default_rng(0).standard_normal((5, 3))
    module = fitted(KLSH, x, MULTI, 6, anchors=300, subset=30, kernel_width=1.0)
    assert (module.anchors, module.subset) == (5, 1)
    assert len(np.unique(of_layer(module)[0], axis=0)) == 5  # each training image once
    assert np.isfinite(encode(module, x)).all()


def test_bits_are_balanced_on_the_features_of_one_orthant():
    x = np.random.default_rng(1).uniform(5, 6, (200, 20))
    u = encode(fitted(KLSH, x, np.eye(2)[np.arange(200) % 2], 32, anchors=100, subset=25, kernel_width=1.0), x)
    assert np.abs((u >= 0).mean(axis=0) - 0.5).max() < 0.25


def test_its_codes_find_neighbours():
    x, labels = clusters(80, 10, 4)
    u = encode(fitted(KLSH, x, labels, 32, **SETTINGS), x)
    assert mean_average_precision(u, labels) > 2 / 4  # twice chance

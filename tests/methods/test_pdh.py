"""PDH: its steps against loops, the effect of decorrelation, and whether one view predicts the code of the other."""

import warnings

import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.errors import ConfigError
from deephash_cli.methods.parts.hash_layers import inverse_root, signs
from deephash_cli.methods.pdh import PDH, correlation, decorrelated

SETTINGS = {"second_view": "halves", "components": 8, "rounds": 2, "margin_weight": 0.1}
BOTH_VIEWS = pytest.mark.parametrize("second_view", ["halves", "noise"])
MULTI = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]])


def repeating_codes(n=100, bits=8, seed=0, noise=0.3):
    """Return signs of ``bits`` random combinations of three random numbers, plus some noise."""
    rng = np.random.default_rng(seed)
    return signs(rng.standard_normal((n, 3)) @ rng.standard_normal((3, bits)) + noise * rng.standard_normal((n, bits)))


def test_correlation_is_that_of_the_loops():
    y, total = repeating_codes(), 0.0
    for k in range(8):
        for m in range(8):
            total += (sum(y[i, k] * y[i, m] for i in range(len(y))) / len(y) - (k == m)) ** 2
    assert correlation(y) == pytest.approx(total)


@pytest.mark.parametrize("seed", range(5))
def test_decorrelation_leaves_codes_that_repeat_each_other_less(seed):
    y = repeating_codes(bits=24, seed=seed)
    other = decorrelated(y)
    assert set(np.unique(other)) == {-1.0, 1.0}
    assert correlation(other) < correlation(y)


@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
def test_decorrelation_never_leaves_codes_that_repeat_each_other_more(noise):
    for seed in range(20):
        y = repeating_codes(n=20, seed=seed, noise=noise)
        assert correlation(decorrelated(y)) <= correlation(y)


def test_the_matrix_before_the_signs_is_the_nearest_without_correlation():
    y, rng = repeating_codes(), np.random.default_rng(1)
    best = y @ inverse_root(y.T @ y / len(y), 1e-6)
    assert np.allclose(best.T @ best / len(y), np.eye(8))
    for _ in range(50):
        other = np.linalg.qr(y + rng.standard_normal(y.shape))[0] * np.sqrt(len(y))
        assert np.square(best - y).sum() <= np.square(other * np.where((other * y).sum(axis=0) >= 0, 1, -1) - y).sum()


def test_identical_bits_are_decorrelated_without_a_division_by_zero():
    y = np.repeat(repeating_codes(bits=1), 3, axis=1)
    assert np.isfinite(inverse_root(y.T @ y / len(y), 1e-6)).all()
    assert set(np.unique(decorrelated(y))) <= {-1.0, 1.0}


def test_zero_counts_as_plus_one():
    # With np.sign, codes would have three values, and an SVM three classes.
    assert signs(np.array([[0.0, -0.0, -1.0]])).tolist() == [[1.0, 1.0, -1.0]]


def test_bits_of_one_half_of_the_features_are_predicted_by_the_other():
    # This is the purpose of the method. The halves are known, because the first draw of the seed divides the features.
    x, labels = clusters(200, 24, 6, spread=0.3)
    module = fitted(PDH, x, labels, 8, **SETTINGS)
    weight = module.network.hash_layer.weight.numpy()
    first, second = np.array_split(np.random.default_rng(0).permutation(24), 2)
    centred = x - x.mean(axis=0)
    agree = signs(centred[:, first] @ weight[first]) == signs(centred[:, second] @ weight[second])
    assert agree.mean() > 0.9


def test_the_code_has_the_signs_of_the_sum_of_both_views_margins():
    x, labels = clusters(60, 12, 3)
    halves = fitted(PDH, x, labels, 4, **SETTINGS).network.hash_layer
    assert (np.abs(halves.weight.numpy()).sum(axis=1) > 0).all()
    assert np.allclose(halves.mean.numpy(), x.mean(axis=0), atol=1e-5)


@BOTH_VIEWS
def test_its_codes_find_neighbours(second_view):
    x, labels = clusters(80, 24, 4)
    u = encode(fitted(PDH, x, labels, 8, **{**SETTINGS, "second_view": second_view}), x)
    assert mean_average_precision(u, labels) > 2 / 4  # twice chance


@BOTH_VIEWS
def test_a_seed_is_a_draw_of_the_second_view(second_view):
    x, labels = clusters(40, 12, 2)
    settings = {**SETTINGS, "second_view": second_view}
    first, again, other = (encode(fitted(PDH, x, labels, 4, seed=seed, **settings), x) for seed in (0, 0, 1))
    assert (first == again).all()
    assert not np.allclose(first, other)


@BOTH_VIEWS
def test_few_images_with_and_without_labels_are_enough(second_view):
    x = np.random.default_rng(0).standard_normal((7, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        u = encode(fitted(PDH, x, MULTI, 5, **{**SETTINGS, "second_view": second_view, "margin_weight": 1e6}), x)
    assert np.isfinite(u).all()


def test_a_bit_that_all_images_share_stays_plus_one():
    # scikit-learn's SVM rejects targets of a single class.
    x = np.ones((10, 8))
    assert (encode(fitted(PDH, x, np.eye(2)[np.arange(10) % 2], 3, **SETTINGS), x) >= 0).all()


def test_more_bits_than_directions_of_a_view_are_refused():
    x, labels = clusters(30, 10, 2)
    with pytest.raises(ConfigError, match="each view of PDH needs as many principal directions as bits, 6, but"):
        fitted(PDH, x, labels, 6, **SETTINGS)


@pytest.mark.parametrize("setting", [{"second_view": "text"}, {"components": 0}, {"rounds": 0}, {"margin_weight": 0.0}])
def test_settings_out_of_range_are_refused(setting):
    x, labels = clusters(10, 8, 2)
    with pytest.raises((ValueError, TypeError)):  # a wrong word is a TypeError if the annotations are checked
        fitted(PDH, x, labels, 3, **{**SETTINGS, **setting})

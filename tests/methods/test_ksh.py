"""KSH against slow loops written from the paper, and finite differences."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.methods import ksh
from deephash_cli.methods.ksh import KSH, Residue, better, gram_root, refine, smooth_cost, spectral_start
from deephash_cli.methods.parts.hash_layers import signs

SETTINGS = {"anchors": 12, "sigma": 1.0, "labeled": 40, "iterations": 10, "tolerance": 0.01}
BITS = 5
SINGLE = np.eye(3, dtype=np.uint8)[np.arange(9) % 3]
MULTI = np.array(
    [[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]], np.uint8
)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def residue_matrix(labels, codes):
    """Return S = K S0 - sum of y y', pair by pair. An image is similar to itself even without labels."""
    s = np.empty((len(labels), len(labels)))
    for i, j in itertools.product(range(len(labels)), repeat=2):
        shared = i == j or any(a == 1 and b == 1 for a, b in zip(labels[i], labels[j], strict=True))
        s[i, j] = BITS * (1 if shared else -1) - sum(y[i] * y[j] for y in codes)
    return s


def residue_and_matrix(labels, count=2):
    residue, codes = Residue(labels, BITS), [signs(random(len(labels), seed=9 + k)) for k in range(count)]
    for y in codes:
        residue.subtract(y)
    return residue, residue_matrix(labels, codes)


@BOTH
@pytest.mark.parametrize("count", [0, 3])
def test_the_residue_is_that_of_the_loops(labels, count):
    residue, s = residue_and_matrix(labels, count)
    assert np.allclose(residue.product(np.eye(len(labels))), s)
    assert np.allclose(residue.product(random(len(labels))), s @ random(len(labels)))


@BOTH
def test_the_smooth_cost_is_that_of_the_loops(labels):
    residue, s = residue_and_matrix(labels)
    margins = random(len(labels))
    y = [2 / (1 + math.exp(-t)) - 1 for t in margins]
    expected = -sum(y[i] * s[i, j] * y[j] for i in range(len(y)) for j in range(len(y)))
    assert smooth_cost(margins, residue)[0] == pytest.approx(expected)


@BOTH
def test_the_gradient_is_that_of_finite_differences(labels):
    residue, _ = residue_and_matrix(labels)
    g, a = random(len(labels), 4, seed=1), random(4, seed=2)
    gradient = g.T @ smooth_cost(g @ a, residue)[1]
    for i, step in enumerate(1e-6 * np.eye(4)):
        slope = (smooth_cost(g @ (a + step), residue)[0] - smooth_cost(g @ (a - step), residue)[0]) / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-6)


def test_large_margins_have_a_finite_cost():
    # exp(-t) overflows at t = -800.
    cost, slope = smooth_cost(1e4 * random(9), residue_and_matrix(SINGLE)[0])
    assert math.isfinite(cost)
    assert np.isfinite(slope).all()


@BOTH
def test_the_start_is_the_leading_generalised_eigenvector(labels):
    residue, s = residue_and_matrix(labels)
    g = random(len(labels), 4)
    root = gram_root(g)
    q = g @ np.linalg.inv(root)
    a = np.linalg.solve(root, spectral_start(q.T @ residue.product(q)))
    _, vectors = scipy.linalg.eigh(g.T @ s @ g, g.T @ g)
    expected = vectors[:, -1] * math.sqrt(len(labels))
    assert np.allclose(a, expected * np.sign(a @ expected), rtol=1e-5, atol=1e-6)
    assert a @ g.T @ g @ a == pytest.approx(len(labels))


@BOTH
def test_the_refinement_lowers_the_smooth_cost(labels):
    residue, _ = residue_and_matrix(labels)
    g, a = random(len(labels), 4, seed=1), random(4, seed=2)
    costs = [smooth_cost(g @ refine(g, residue, a, n, 0.0), residue)[0] for n in (0, 1, 50)]
    assert costs[1] < costs[0]
    assert costs[2] < costs[1]


@BOTH
@pytest.mark.parametrize("seed", range(5))
def test_the_refined_weights_are_kept_only_if_the_true_signs_are_better(labels, seed):
    residue, s = residue_and_matrix(labels)
    g, a, other = random(len(labels), 4, seed=seed), random(4, seed=7), random(4, seed=8)
    chosen = better(g, residue, a, other)
    gains = [signs(g @ weights) @ s @ signs(g @ weights) for weights in (a, other, chosen)]
    assert gains[2] == max(gains[:2])
    assert better(g, residue, a, 2 * a) is a  # the same signs


def test_no_bit_is_worse_than_its_start(monkeypatch):
    x, labels = clusters(40, 6, 4, spread=1.5)
    gains = []

    def noted(g, residue, a, other):
        chosen = better(g, residue, a, other)
        gains.append([y @ residue.product(y) for y in (signs(g @ a), signs(g @ chosen))])
        return chosen

    monkeypatch.setattr(ksh, "better", noted)
    fitted(KSH, x, labels, 12, **SETTINGS)
    assert len(gains) == 12
    assert all(kept >= start for start, kept in gains)
    assert any(kept > start for start, kept in gains)


def test_each_bit_brings_the_products_of_codes_nearer_to_the_similarities():
    x, labels = clusters(40, 6, 4)
    y = np.where(encode(fitted(KSH, x, labels, 6, **SETTINGS), x) >= 0, 1.0, -1.0)
    target = 6 * (2 * (labels @ labels.T) - 1)
    errors = [((target - y[:, :k] @ y[:, :k].T) ** 2).sum() for k in range(7)]
    assert all(after < before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_codes_are_those_of_centred_kernels_of_the_stated_width(sigma):
    # sigma is the mean squared distance and is not squared again. The means are over the training set, not a batch.
    x, labels = clusters(40, 6, 4)
    module = fitted(KSH, x, labels, 6, **{**SETTINGS, "sigma": sigma})
    kernel, projection = module.network.hash_layer
    anchors, weight = kernel.anchors.numpy(), projection.weight.numpy()
    width = sigma * np.mean([((row - a) ** 2).sum() for row in x for a in anchors])
    values = np.array([[math.exp(-((row - a) ** 2).sum() / (2 * width)) for a in anchors] for row in x])
    expected = (values - values.mean(axis=0)) @ weight
    assert np.allclose(encode(module, x), expected, atol=1e-4 * np.abs(weight).sum(axis=0).max())
    assert np.allclose(encode(module, x[:1]), expected[:1], atol=1e-4 * np.abs(weight).sum(axis=0).max())


def test_a_margin_of_zero_is_plus_one():
    assert signs(np.array([0.0, -0.0, -1.0])).tolist() == [1, 1, -1]


@pytest.mark.parametrize("x", [np.zeros((20, 3)), np.ones((20, 3)), np.repeat(random(2, 3), 10, axis=0)])
def test_equal_images_and_more_anchors_than_images_give_finite_codes(x):
    # In these cases G'G is singular.
    module = fitted(KSH, x, SINGLE[np.arange(20) % 9], 8, **{**SETTINGS, "anchors": 300, "labeled": 1000})
    assert module.anchors == 20
    assert all(np.isfinite(value.numpy()).all() for value in module.network.state_dict().values())
    assert np.isfinite(encode(module, x)).all()


@pytest.mark.parametrize(
    "labels", [np.eye(4)[np.arange(80) % 4], np.eye(4)[np.arange(80) % 4] + np.eye(4)[np.arange(80) // 2 % 4]]
)
def test_codes_of_new_items_retrieve_what_shares_a_label(labels):
    labels = np.minimum(labels, 1)
    rng = np.random.default_rng(0)
    x = labels @ (3 * rng.standard_normal((4, 8))) + 0.3 * rng.standard_normal((80, 8))
    module = fitted(KSH, x[:40], labels[:40], 12, **SETTINGS)
    chance = (labels[40:] @ labels[40:].T > 0).mean()
    assert mean_average_precision(encode(module, x[40:]), labels[40:]) > (1 + chance) / 2


@pytest.mark.parametrize(
    ("name", "value"), [("anchors", 0), ("labeled", 1), ("iterations", -1), ("sigma", 0.0), ("tolerance", -1.0)]
)
def test_a_setting_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        fitted(KSH, *clusters(10, 3, 2), 4, **{**SETTINGS, name: value})

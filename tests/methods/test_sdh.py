"""SDH against slow loops written from the paper, and common mistakes of its re-implementations."""

import itertools
import math

import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.methods.sdh import SDH, codes_step

SETTINGS = {
    "anchors": 20,
    "sigma": 1.0,
    "classifier_ridge": 1.0,
    "embedding_weight": 0.1,
    "kernel_ridge": 0.01,
    "iterations": 5,
    "sweeps": 10,
}
MULTI = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]] * 5)


def multi_label(n=30, width=6):
    return np.random.default_rng(0).standard_normal((n, width)), MULTI


BOTH = pytest.mark.parametrize("data", [clusters(30, 6, 3), multi_label()], ids=["single-label", "multi-label"])


def squares(matrix):
    return sum(value**2 for row in matrix for value in row)


def objective(b, w, p, phi, y, module):
    """Return |Y - B W|^2 + lambda |W|^2 + nu (|B - F|^2 + delta |P|^2), computed image by image."""
    total = module.classifier_ridge * squares(w) + module.embedding_weight * module.kernel_ridge * squares(p)
    for i in range(len(b)):
        for c in range(y.shape[1]):
            total += (y[i, c] - sum(b[i, k] * w[k, c] for k in range(b.shape[1]))) ** 2
        for k in range(b.shape[1]):
            total += module.embedding_weight * (b[i, k] - phi[i] @ p[:, k]) ** 2
    return total


def kernels(module, x):
    """Return phi(x) of each row, computed by loops."""
    rbf = module.network.hash_layer.rbf
    return np.array(
        [[*(math.exp(-float(rbf.gamma) * ((a - row) ** 2).sum()) for a in rbf.anchors.numpy()), 1.0] for row in x]
    )


def start(module, x, labels):
    rng = np.random.default_rng(3)
    return kernels(module, x), labels.astype(float), rng.choice([-1.0, 1.0], size=(len(x), module.bits))


@BOTH
def test_the_objective_never_rises(data):
    module = fitted(SDH, *data, 8, **SETTINGS)
    phi, y, b = start(module, *data)
    values = []
    for iterations in range(1, 6):
        module.iterations = iterations
        values.append(objective(*module.alternate(phi, y, b), phi, y, module))
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(values))


@BOTH
def test_each_step_never_raises_the_objective(data):
    module = fitted(SDH, *data, 8, **{**SETTINGS, "iterations": 1})
    phi, y, b = start(module, *data)
    rng = np.random.default_rng(0)
    p, w = rng.standard_normal((phi.shape[1], 8)), rng.standard_normal((8, 3))
    new = codes_step(b, y, w, phi @ p, module.embedding_weight, 10)
    assert objective(new, w, p, phi, y, module) < objective(b, w, p, phi, y, module)
    # W is the best for the codes before the step, P for those after it.
    after, w, p = module.alternate(phi, y, b)
    for _ in range(20):
        other = w + 0.01 * rng.standard_normal(w.shape)
        assert objective(b, w, p, phi, y, module) < objective(b, other, p, phi, y, module)
        other = p + 0.01 * rng.standard_normal(p.shape)
        assert objective(after, w, p, phi, y, module) < objective(after, w, other, phi, y, module)


@BOTH
def test_no_flip_of_one_bit_lowers_the_objective_after_the_step_of_codes(data):
    module = fitted(SDH, *data, 6, **SETTINGS)
    phi, y, b = start(module, *data)
    rng = np.random.default_rng(0)
    p, w = rng.standard_normal((phi.shape[1], 6)), rng.standard_normal((6, 3))
    b = codes_step(b, y, w, phi @ p, module.embedding_weight, 50)
    for i in range(5):
        for k in range(6):
            other = b.copy()
            other[i, k] *= -1
            assert objective(b, w, p, phi, y, module) <= objective(other, w, p, phi, y, module)


def test_u_is_the_embedding_with_a_constant():
    # Without the constant, every image far from all anchors would have u = 0 and so the same code, all ones.
    x, labels = clusters(30, 6, 3)
    module = fitted(SDH, x, labels, 8, **SETTINGS)
    weight = module.network.hash_layer.weight.numpy()
    assert weight.shape == (21, 8)
    assert np.allclose(encode(module, x), kernels(module, x) @ weight, atol=1e-4)
    assert np.allclose(encode(module, np.full((1, 6), 1e3)), weight[-1], atol=1e-5)
    assert (weight[-1] != 0).all()


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_scale_of_features_does_not_matter(factor):
    # With one sigma for all features, features of another scale would have kernel values that are all 1 or all 0.
    x, labels = clusters(60, 6, 3)
    one, other = (encode(fitted(SDH, scale * x, labels, 8, **SETTINGS), scale * x) for scale in (1.0, factor))
    assert np.allclose(one, other, atol=1e-3)


def test_images_that_are_there_twice_do_not_make_it_fail():
    # Copies make the kernel matrix singular. Without delta the embedding would be undefined, or huge.
    x, labels = clusters(15, 6, 3)
    module = fitted(SDH, np.vstack([x, x]), np.vstack([labels, labels]), 8, **{**SETTINGS, "anchors": 30})
    u = encode(module, np.vstack([x, x]))
    assert np.allclose(u[:15], u[15:], atol=1e-3)
    assert np.abs(u).max() < 3  # near its codes


def test_images_that_are_all_the_same_work():
    assert np.isfinite(
        encode(fitted(SDH, np.ones((6, 4)), np.eye(2)[[0, 1] * 3], 4, **SETTINGS), np.ones((2, 4)))
    ).all()


def test_several_labels_none_and_fewer_images_than_anchors_work():
    module = fitted(SDH, *multi_label(), 16, **{**SETTINGS, "anchors": 1000})
    assert module.network.hash_layer.rbf.anchors.shape == (30, 6)
    assert np.isfinite(encode(module, multi_label()[0])).all()


def test_its_codes_retrieve():
    x, labels = clusters(150, 20, 5)
    others, other_labels = clusters(100, 20, 5, seed=9)
    u = encode(fitted(SDH, x, labels, 8, **{**SETTINGS, "anchors": 100}), others)
    assert mean_average_precision(u, other_labels) > 3 / 5  # chance is 1 / 5


@pytest.mark.parametrize(
    "change",
    [
        {"anchors": 0},
        {"sigma": 0.0},
        {"classifier_ridge": 0.0},
        {"embedding_weight": -1.0},
        {"kernel_ridge": 0.0},
        {"iterations": 0},
        {"sweeps": 0},
    ],
)
def test_settings_out_of_range_are_refused(change):
    x, labels = clusters(12, 4, 3)
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        fitted(SDH, x, labels, 4, **{**SETTINGS, **change})

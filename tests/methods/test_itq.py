import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.errors import ConfigError
from deephash_cli.methods.itq import ITQ, rotate


def error(v, rotation):
    """Return |B - V R|^2 for the best B, computed by loops."""
    total = 0.0
    for row in v:
        for column in rotation.T:
            value = sum(a * b for a, b in zip(row, column, strict=True))
            total += ((1 if value >= 0 else -1) - value) ** 2
    return total


def start(bits=6, n=60):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, bits)) * np.arange(1, bits + 1), scipy.stats.ortho_group.rvs(bits, random_state=1)


def test_its_objective_never_rises_and_the_rotation_stays_one():
    v, rotation = start()
    before = error(v, rotation)
    for _ in range(20):
        rotation = rotate(v, rotation)
        after = error(v, rotation)
        assert after <= before + 1e-9
        before = after
    assert np.allclose(rotation.T @ rotation, np.eye(6))


def test_the_rotation_is_the_best_for_the_codes_before():
    v, rotation = start(bits=3)
    codes = np.where(v @ rotation >= 0, 1, -1)
    best = np.square(codes - v @ rotate(v, rotation)).sum()
    for other in scipy.stats.ortho_group.rvs(3, size=200, random_state=2):
        assert best <= np.square(codes - v @ other).sum()


def test_the_transposed_factor_of_public_versions_is_not_monotone():
    # torch.svd returns D; NumPy and SciPy return D'. `VT.t() @ U.t()` with torch.svd stays near the random rotation.
    v, rotation = start(bits=16, n=200)
    right, wrong, errors = rotation, rotation, []
    for _ in range(30):
        right = rotate(v, right)
        c, _, d = np.linalg.svd(np.where(v @ wrong >= 0, 1.0, -1.0).T @ v)
        wrong = d @ c.T
        errors.append(error(v, wrong))
    assert max(np.diff(errors)) > 0
    assert error(v, right) < min(errors)


def test_the_codes_are_signs_of_centred_projected_rotated_features():
    x, labels = clusters(80, 10, 4)
    module = fitted(ITQ, x + 100, labels, 4, iterations=50)
    u = encode(module, x + 100)
    directions = np.linalg.svd(x - x.mean(0))[2][:4]
    spanned = (x - x.mean(0)) @ directions.T
    assert np.allclose(np.linalg.norm(u, axis=1), np.linalg.norm(spanned, axis=1), rtol=1e-3)  # only a rotation
    assert np.allclose(u.mean(0), 0, atol=1e-4)
    assert mean_average_precision(u, labels) > 2 / 4  # twice chance


def test_it_reaches_the_loss_of_the_right_update():
    # scipy solves the Procrustes problem by itself. A transposed factor, as in faiss' ITQTransform and in FIRe, stays
    # near the loss of the random rotation that it starts from.
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, 24)) * np.linspace(3, 1, 24)
    module = fitted(ITQ, x, np.eye(2)[np.arange(500) % 2], 16, iterations=50)
    v = (x - x.mean(0)) @ np.linalg.svd(x - x.mean(0))[2][:16].T

    def reached(update):
        rotation = scipy.stats.ortho_group.rvs(16, random_state=5)
        for _ in range(50):
            rotation = update(np.where(v @ rotation >= 0, 1.0, -1.0), rotation)
        return loss(v @ rotation)

    def transposed(codes, _):
        left, _, right = np.linalg.svd(codes.T @ v)
        return right @ left.T

    right = reached(lambda codes, _: scipy.linalg.orthogonal_procrustes(v, codes)[0])
    untouched = reached(lambda _, rotation: rotation)
    ours = loss(encode(module, x))
    assert ours == pytest.approx(right, rel=0.01)  # from another random rotation
    assert untouched - ours > 3 * (untouched - reached(transposed))


def loss(u):
    """Return the mean over vectors of the squared distance from the code of each."""
    return np.square(np.where(u >= 0, 1, -1) - u).sum(axis=1).mean()


def test_more_bits_than_directions_are_refused():
    x, labels = clusters(20, 5, 2)
    with pytest.raises(ConfigError, match="ITQ needs as many principal directions as bits, 8, but 20 training vectors"):
        fitted(ITQ, x, labels, 8, iterations=1)


def test_one_bit_works():
    x, labels = clusters(20, 5, 2)
    assert encode(fitted(ITQ, x, labels, 1, iterations=3), x).shape == (20, 1)

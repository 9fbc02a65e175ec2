import itertools

import numpy as np
import pytest
import scipy.stats
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.errors import ConfigError
from deephash_cli.methods.isohash import IsoHash, lift_and_project


def spread(variances, rotation):
    """Return max |diag(R' L R) - a| / a."""
    diagonal = [sum(variances[i] * rotation[i, k] ** 2 for i in range(len(variances))) for k in range(len(variances))]
    return max(abs(value - np.mean(variances)) for value in diagonal) / np.mean(variances)


@pytest.mark.parametrize("bits", [2, 12, 32])
def test_all_bits_get_the_same_variance(bits):
    variances = np.sort(np.random.default_rng(bits).exponential(size=bits))[::-1] ** 2
    rotation = scipy.stats.ortho_group.rvs(bits, random_state=0)
    for _ in range(100):
        rotation = lift_and_project(variances, rotation)
    assert spread(variances, rotation) < 1e-6
    assert np.allclose(rotation.T @ rotation, np.eye(bits))


@pytest.mark.parametrize("bits", [12, 32])
def test_eigenvectors_that_are_not_transposed_leave_the_variances_unequal(bits):
    # Public versions set R = Q and Z = R' L R, which is not a projection onto the matrices with the spectrum of L.
    variances = np.sort(np.random.default_rng(bits).exponential(size=bits))[::-1] ** 2
    rotation = scipy.stats.ortho_group.rvs(bits, random_state=0)
    for _ in range(100):
        rotation = lift_and_project(variances, rotation).T
    assert spread(variances, rotation) > 0.1


def test_the_distance_to_equal_variances_never_rises():
    # Lift and projection are nearest-point maps onto two sets, so the distance between their images cannot grow.
    variances = np.array([9.0, 4.0, 2.0, 1.0, 0.5])
    rotation = scipy.stats.ortho_group.rvs(5, random_state=1)
    distances = []
    for _ in range(30):
        diagonal = np.diag((rotation.T * variances) @ rotation)
        distances.append(np.square(diagonal - variances.mean()).sum())
        rotation = lift_and_project(variances, rotation)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(distances))


def test_the_bits_of_the_training_set_have_equal_variances():
    x, labels = clusters(300, 20, 5)
    u = encode(fitted(IsoHash, x + 50, labels, 8, iterations=100), x + 50)
    assert np.allclose(u.var(axis=0), u.var(axis=0).mean(), rtol=1e-3)
    assert np.allclose(u.mean(axis=0), 0, atol=1e-3)
    assert mean_average_precision(u, labels) > 2 / 5  # twice chance


def test_more_bits_than_directions_are_refused():
    x, labels = clusters(20, 5, 2)
    with pytest.raises(ConfigError, match="IsoHash needs as many principal directions as bits"):
        fitted(IsoHash, x, labels, 8, iterations=1)

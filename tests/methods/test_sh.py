"""SH against loops written from the paper."""

import math

import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.errors import ConfigError
from deephash_cli.methods.sh import SH, smoothest_modes

LENGTHS = np.array([3.0, 1.0, 2.9, 0.0])


def modes_of_a_box(lengths, bits):
    """Return (frequency, side, mode) of the smoothest modes, found among far more modes than needed."""
    every = [
        (mode * math.pi / length, side, mode)
        for side, length in enumerate(lengths)
        if length > 0
        for mode in range(1, 3 * bits + 3)
    ]
    return sorted(every)[:bits]


@pytest.mark.parametrize("bits", [1, 2, 7, 40])
def test_the_modes_are_those_of_lowest_frequency(bits):
    expected = modes_of_a_box(LENGTHS, bits)
    sides, frequencies = smoothest_modes(LENGTHS, bits)
    assert np.allclose(frequencies, [frequency for frequency, _, _ in expected])
    assert sides.tolist() == [side for _, side, _ in expected]


def test_a_long_side_has_several_bits_before_a_short_one_has_any():
    assert smoothest_modes(np.array([10.0, 3.0]), 4)[0].tolist() == [0, 0, 0, 1]


def paper_codes(x, bits):
    """Return the outputs of spectral hashing, computed step by step, with the product over all sides."""
    centred = x - x.mean(axis=0)
    count = min(bits, x.shape[1], len(x) - 1)
    v = centred @ np.linalg.svd(centred)[2][:count].T
    low, high = v.min(axis=0), v.max(axis=0)
    u = np.ones((len(x), bits))
    for k, (_, side, mode) in enumerate(modes_of_a_box(high - low, bits)):
        for i in range(len(x)):
            for d in range(count):
                omega = mode * math.pi / (high[d] - low[d]) if d == side else 0.0
                u[i, k] *= math.sin(omega * (v[i, d] - low[d]) + math.pi / 2)
    return u


@pytest.mark.parametrize("bits", [3, 20])  # fewer and more than features
def test_its_codes_are_those_of_the_loops(bits):
    # The sign of an eigenvector is arbitrary, and a mode counted from the other end of a side may change sign too.
    x = np.random.default_rng(0).uniform(size=(30, 5)) * [5, 4, 3, 2, 1] + 100
    u, expected = encode(fitted(SH, x, np.eye(2)[np.arange(30) % 2], bits), x), paper_codes(x, bits)
    direction = np.where((u * expected).sum(axis=0) >= 0, 1, -1)
    assert np.allclose(u, expected * direction, atol=2e-3)


def test_it_has_more_bits_than_features():
    x, labels = clusters(60, 3, 3)
    u = encode(fitted(SH, x, labels, 16), x)
    assert np.isfinite(u).all()
    assert len(np.unique(u >= 0, axis=1).T) == 16


def test_a_feature_that_never_changes_has_no_bits():
    # If its length of 0 were replaced by a tiny number, the box would have a side with a frequency of 1e16.
    x, labels = clusters(40, 4, 2)
    x[:, 2] = 7
    module = fitted(SH, x, labels, 12)
    assert np.abs(module.network.hash_layer.weight.numpy()[2]).max() < 1e-6
    assert np.isfinite(encode(module, x)).all()


def test_identical_features_are_refused():
    with pytest.raises(ConfigError, match="all of them are the same"):
        fitted(SH, np.ones((10, 4)), np.eye(2)[np.arange(10) % 2], 3)


def test_its_codes_find_neighbours():
    x, labels = clusters(80, 10, 4)
    assert mean_average_precision(encode(fitted(SH, x, labels, 8), x), labels) > 2 / 4  # twice chance

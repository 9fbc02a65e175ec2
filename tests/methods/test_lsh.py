import numpy as np
import pytest
from fitting import clusters, encode, fitted

from deephash_cli.methods.lsh import LSH

LABELS = np.eye(2)[np.arange(200) % 2]


def test_two_vectors_differ_in_a_share_of_bits_that_is_their_angle():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 30))
    x -= x.mean(axis=0)
    codes = encode(fitted(LSH, x, LABELS, 4000), x) >= 0
    for i, j in ((0, 1), (2, 3), (4, 5)):
        angle = np.arccos(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])) / np.pi
        assert (codes[i] != codes[j]).mean() == pytest.approx(angle, abs=4 * np.sqrt(0.25 / 4000))  # four deviations


def test_features_of_one_orthant_are_centred():
    # Without centring, nearly all features after a ReLU lie on the same side of most hyperplanes.
    x = np.random.default_rng(1).uniform(5, 6, (200, 20))
    share = (encode(fitted(LSH, x, LABELS, 64), x) >= 0).mean(axis=0)
    assert np.abs(share - 0.5).max() < 0.25


def test_a_seed_is_a_draw():
    x, labels = clusters(50, 8, 2)
    first, again, other = (encode(fitted(LSH, x, labels, 16, seed=seed), x) for seed in (0, 0, 1))
    assert (first == again).all()
    assert not np.allclose(first, other)

import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.errors import ConfigError
from deephash_cli.methods.itq import ITQ
from deephash_cli.methods.pcarr import PCARR


def test_it_is_itq_without_iterations():
    x, labels = clusters(80, 10, 4)
    ours = encode(fitted(PCARR, x, labels, 6, seed=3, scaling="unit"), x)
    assert np.array_equal(ours, encode(fitted(ITQ, x, labels, 6, seed=3, scaling="unit", iterations=0), x))
    assert mean_average_precision(ours, labels) > 2 / 4  # twice chance


def test_only_a_rotation_is_between_its_outputs_and_the_principal_components():
    x, labels = clusters(80, 10, 4)
    components = (x - x.mean(0)) @ np.linalg.svd(x - x.mean(0))[2][:5].T
    first, second = (encode(fitted(PCARR, x + 100, labels, 5, seed=seed), x + 100) for seed in (0, 1))
    for u in (first, second):
        rotation = np.linalg.lstsq(components, u, rcond=None)[0]
        assert np.allclose(components @ rotation, u, atol=1e-3)
        assert np.allclose(rotation.T @ rotation, np.eye(5), atol=1e-4)
    assert ((first >= 0) != (second >= 0)).any()  # each seed draws its own


def test_more_bits_than_directions_are_refused():
    x, labels = clusters(20, 5, 2)
    with pytest.raises(ConfigError, match="PCARR needs as many principal directions as bits, 8, but 20 training vecto"):
        fitted(PCARR, x, labels, 8)

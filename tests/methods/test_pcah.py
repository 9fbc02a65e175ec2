import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision
from sklearn.decomposition import PCA

from deephash_cli.errors import ConfigError
from deephash_cli.methods.pcah import PCAH


def test_it_gives_the_principal_components():
    x, labels = clusters(100, 12, 4)
    u = encode(fitted(PCAH, x, labels, 6), x)
    components = PCA(6, svd_solver="full").fit_transform(x)
    signs = np.sign((u * components).sum(axis=0))  # a direction has no sign of its own
    assert np.allclose(u * signs, components, atol=1e-4)
    assert mean_average_precision(u, labels) > 2 / 4  # twice chance


def test_as_many_bits_as_directions_work_and_one_more_is_refused():
    x, labels = clusters(40, 6, 2)
    assert encode(fitted(PCAH, x, labels, 6), x).shape == (40, 6)
    with pytest.raises(ConfigError, match=r"as bits, 7, but 40 training vectors of length 6 have 6: use fewer bits"):
        fitted(PCAH, x, labels, 7)
    with pytest.raises(ConfigError, match=r"5 training vectors of length 6 have 4"):
        fitted(PCAH, x[:5], labels[:5], 5)

import numpy as np
import pytest

from deephash_cli.data.pairs import require_pairs
from deephash_cli.errors import DataError


def test_one_class_is_refused():
    with pytest.raises(DataError, match="all 3 training images share a label"):
        require_pairs(np.ones((3, 1), np.uint8))


def test_every_class_once_is_refused():
    with pytest.raises(DataError, match="no two of the 3 training images share a label"):
        require_pairs(np.eye(3, dtype=np.uint8))


@pytest.mark.parametrize(
    "labels", [[[1, 0], [1, 0], [0, 1]], [[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1]], [[1], [1], [0]]]
)
def test_similar_and_dissimilar_pairs_are_enough(labels):
    require_pairs(np.array(labels, np.uint8))

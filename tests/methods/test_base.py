import pytest
import torch

from deephash_cli.errors import DataError
from deephash_cli.methods.base import _require_pairs


def test_one_class_is_refused():
    with pytest.raises(DataError, match="all 3 training images share a label"):
        _require_pairs(torch.ones(3, 1))


def test_every_class_once_is_refused():
    with pytest.raises(DataError, match="no two of the 3 training images share a label"):
        _require_pairs(torch.eye(3))


@pytest.mark.parametrize(
    "labels", [[[1, 0], [1, 0], [0, 1]], [[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1]], [[1], [1], [0]]]
)
def test_similar_and_dissimilar_pairs_are_enough(labels):
    _require_pairs(torch.tensor(labels, dtype=torch.float32))

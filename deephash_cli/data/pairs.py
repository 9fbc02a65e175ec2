"""Check that a training set has what a method learns from: pairs that share a label, and pairs that do not."""

import numpy as np
from jaxtyping import UInt8

from deephash_cli.errors import DataError

_BLOCK = 1024  # label sets that are compared with all others at a time


def require_pairs(labels: UInt8[np.ndarray, "n classes"]) -> None:
    """Refuse a training set without similar pairs or without dissimilar pairs.

    Args:
        labels: Multi-hot labels of the training set.

    Raises:
        DataError: If no two images share a label, or if all of them do.
    """
    if labels.sum(axis=0, dtype=np.int64).max(initial=0) < 2:
        raise DataError(
            f"no two of the {len(labels)} training images share a label, so there are no similar pairs to learn from"
        )
    kinds = np.unique(labels, axis=0).astype(np.float32)
    if all((kinds[start : start + _BLOCK] @ kinds.T > 0).all() for start in range(0, len(kinds), _BLOCK)):
        raise DataError(f"all {len(labels)} training images share a label: give at least two classes of images")

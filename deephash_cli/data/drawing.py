"""Draw rows of a data set at random: the same ones for the same seed, on every machine and with every NumPy."""

import numpy as np
from jaxtyping import Bool, Int64, UInt8


def permutation(count: int, *key: int) -> Int64[np.ndarray, " count"]:
    """Return the numbers below ``count`` in an order that depends on ``key`` alone.

    The order comes from sorting the generator's raw output, because NumPy promises that this stream will never change,
    but does not promise it for ``permutation``.
    """
    return np.argsort(np.random.default_rng(key).bit_generator.random_raw(count), kind="stable").astype(np.int64)


def evenly(labels: UInt8[np.ndarray, "n classes"], count: int, left_of_each: int = 0) -> Bool[np.ndarray, " n"]:
    """Choose rows as evenly over the classes as possible: each next row is one of a class that has the fewest so far.

    The rows of a class are taken in the order in which they are. A row with several labels counts for each of them, and
    rows without labels are not taken.

    Args:
        labels: Multi-hot labels.
        count: Number of rows to choose.
        left_of_each: Number of rows that each class must keep among those that are not chosen.

    Returns:
        Whether each row is chosen; fewer than ``count`` are if there are no more.
    """
    labels = labels.astype(bool)
    left = labels.sum(axis=0)
    queues = [iter(np.flatnonzero(labels[:, column])) for column in range(labels.shape[1])]
    taken = np.zeros(labels.shape[1])  # rows taken of each class; infinite if it can give no more
    chosen = np.zeros(len(labels), dtype=bool)
    for _ in range(count):
        position = None
        while position is None:
            column = int(taken.argmin()) if len(taken) else -1
            if column < 0 or np.isinf(taken[column]):
                return chosen
            position = next(
                (at for at in queues[column] if not chosen[at] and (left[labels[at]] > left_of_each).all()), None
            )
            if position is None:
                taken[column] = np.inf
        chosen[position] = True
        left -= labels[position]
        taken += labels[position]
    return chosen

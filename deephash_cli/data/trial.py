"""Reduce a divided data set to a few rows, to see in seconds whether a run works. Its numbers mean nothing."""

from dataclasses import replace

import numpy as np

from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.protocol import Split, split_of


def reduce(dataset: RetrievalDataset, split: Split, most: int) -> tuple[RetrievalDataset, Split]:
    """Keep at most ``most`` queries, training images and items of the database.

    Args:
        dataset: Data set that ``split`` divides.
        split: Division of the data set.
        most: Largest number of rows of each part.

    Returns:
        The data set of the rows that are kept, and its division. The name of the division ends in ``_trial``, so that
        its numbers are never compared with those of the whole. Both are unchanged if no part is larger than ``most``.
    """
    parts = [split.query, split.train, split.database]
    if max(map(len, parts)) <= most:
        return dataset, split
    order = np.random.default_rng(0)
    parts = [np.sort(order.permutation(part)[:most]) for part in parts]
    rows = np.unique(np.concatenate(parts))
    query, train, database = (np.searchsorted(rows, part) for part in parts)
    small = dataset.subset(rows)
    few = split_of(small, f"{split.name}_trial", split.version, split.seed, query, train, database)
    return small, replace(few, changes=split.changes)

"""Count neighbours on a GPU: used for validation, when training already holds the GPU.

The counts are those of `ranking.count`. Matrix products of signs are exact integers.
"""

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from deephash_cli.retrieval.codes import unpack

_PAIRS = 2**24  # largest number of pairs computed at a time


def count(
    query_packed: UInt8[np.ndarray, "q bytes"],
    database_packed: UInt8[np.ndarray, "n bytes"],
    bits: int,
    query_labels: UInt8[np.ndarray, "q classes"],
    database_labels: UInt8[np.ndarray, "n classes"],
    device: torch.device,
) -> Int64[np.ndarray, "q distances grades"]:
    """Count the database items at each distance that share 0, 1, ... labels with each query.

    The result is the same as ``shared`` of `ranking.count`, for multi-hot labels, computed on ``device``.

    Args:
        query_packed: Packed codes of the queries.
        database_packed: Packed codes of the database.
        bits: Code length.
        query_labels: Multi-hot labels of the queries.
        database_labels: Multi-hot labels of the database.
        device: The device to compute on.
    """
    query, database = (
        2 * torch.from_numpy(unpack(packed, bits)).to(device).float() - 1 for packed in (query_packed, database_packed)
    )
    labels, of_database = (torch.from_numpy(side).to(device).float() for side in (query_labels, database_labels))
    grades = 1 + max(1, min(int(side.sum(axis=1).max(initial=0)) for side in (query_labels, database_labels)))
    bins = (bits + 1) * grades
    shared = np.empty((len(query), bits + 1, grades), np.int64)
    rows = max(1, _PAIRS // max(1, len(database)))
    for start in range(0, len(query), rows):
        # Products of 1 and -1, and of 1 and 0, are exact in float32 and in TF32.
        distance = (bits - query[start : start + rows] @ database.T) / 2
        bin_ = (distance * grades + labels[start : start + rows] @ of_database.T).long()
        bin_ += bins * torch.arange(len(bin_), device=device)[:, None]
        counts = torch.bincount(bin_.flatten(), minlength=bins * len(bin_))
        shared[start : start + rows] = counts.view(-1, bits + 1, grades).cpu().numpy()
    return shared

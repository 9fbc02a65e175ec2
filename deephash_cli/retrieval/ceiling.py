"""Measure what binarizing cost: rank the database by the cosine of real-valued vectors, on both sides.

For the outputs of a network this is the ceiling of its binary codes, and for the features of a backbone that of every
hash layer above it, as far as cosine is concerned: a method that learns from labels can do better than its features.
"""

import numpy as np
from jaxtyping import Float, Float64, Int64

from deephash_cli.retrieval import metrics, ranking
from deephash_cli.retrieval.ranking import Labels

TOLERANCE = 1e-12  # cosines that are no further apart are tied
PAIRS = 2**26  # pairs of a query and a database item that are compared; more queries are a sample
_UNIT = 2.0**52  # a cosine becomes this many whole numbers, which is the resolution of float64 just below 1
_HELD = 2**25  # numbers of the database that are kept as float64; more are converted again for each part of the queries
_TOGETHER = 2**22  # pairs that are then ranked at a time, so that they are converted less often


def sample(rows: Int64[np.ndarray, " q"], database: int) -> Int64[np.ndarray, " m"]:
    """Return the queries for which a ceiling is computed: all, or a random sample if there are too many pairs.

    The sample is drawn with seed 0 from the raw stream of PCG64, which NumPy promises not to change.

    Args:
        rows: Row numbers of the queries, ascending.
        database: Number of database items.

    >>> sample(np.arange(4), 10**3).tolist(), len(sample(np.arange(1000), 10**6))
    ([0, 1, 2, 3], 67)
    """
    most = max(1, PAIRS // max(1, database))
    if len(rows) <= most:
        return rows
    return np.sort(rows[np.argsort(np.random.PCG64(0).random_raw(len(rows)), kind="stable")[:most]])


def average_precision(
    query: Float[np.ndarray, "q d"],
    database: Float[np.ndarray, "n d"],
    query_labels: Labels,
    database_labels: Labels,
    exclude: Int64[np.ndarray, " q"],
    threads: int | None = None,
) -> Float64[np.ndarray, " q"]:
    """Return the average precision of each query if the database is ranked by cosine, largest first.

    It is the expectation over all orders of ties. The cosine with a vector of zeros is 0.

    Args:
        query: Vectors of the queries.
        database: Vectors of the database.
        query_labels: Labels of the queries, as for `ranking.count`.
        database_labels: Labels of the database, in the same form.
        exclude: Position in the database of the item that is the query itself, or -1, for each query.
        threads: Number of threads, as for `ranking.count`.
    """
    n, width = database.shape
    is_held = database.size <= _HELD
    rows = n if is_held else max(1, _HELD // (8 * width))
    held = _unit(database) if is_held else database

    def scores(part: slice) -> Int64[np.ndarray, "m n"]:
        vectors, found = _unit(query[part]) * -_UNIT, np.empty((part.stop - part.start, n), np.int64)
        for start in range(0, n, rows):
            block = held[start : start + rows]
            found[:, start : start + rows] = np.rint(vectors @ (block if is_held else _unit(block)).T)
        return found

    def measure(total: Int64[np.ndarray, "m groups"], relevant: Int64[np.ndarray, "m groups"]) -> np.ndarray:
        return metrics.average_precision(metrics.Histograms(total, relevant))

    labels, together = (query_labels, database_labels), {} if is_held else {"pairs": _TOGETHER}
    return np.concatenate(
        list(ranking.grouped(scores, measure, *labels, exclude, int(TOLERANCE * _UNIT), threads, **together))
    )


def _unit(vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Return the vectors in float64, divided by their lengths."""
    vectors = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    vectors /= np.where(lengths > 0, lengths, 1)[:, None]
    return vectors

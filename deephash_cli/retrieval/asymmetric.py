"""Rank binary codes by the continuous code of a query, and measure the rankings: asymmetric distance.

The query keeps the output u of the network, and only the database is binarized: items are ranked by the inner product
of u with their codes as -1 and +1, largest first. Gordo, Perronnin, Gong and Lazebnik, "Asymmetric distances for binary
embeddings", TPAMI 2014. Nothing is searched differently otherwise: the database takes as many bits as before.

Inner products are exact: each float16 value is a whole multiple of 2^-24, so a sum of them is one as well, and a 64-bit
integer holds it. (float64 would be exact, too, up to 8,192 bits.) Two products are therefore equal or at least 6e-8
apart, and ties are as exact as those of Hamming distances.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float16, Int64

from deephash_cli.retrieval import metrics, ranking
from deephash_cli.retrieval.codes import CodeSet, packed_width

POLICY = (
    "_asymmetric ranks by the inner product of a query's continuous code (query_u.npy) with codes as -1 and 1, largest "
    "first; items with equal products (the sums are exact) are tied, and ties are averaged over all their orders"
)

_PAIRS = 2**20  # pairs of a query and a database item that a thread ranks at a time
_UNIT = 2.0**24  # the smallest positive float16 is 1 / _UNIT
_TABLE = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 1.0, -1.0)


def per_query(
    query: CodeSet,
    database: CodeSet,
    exclude: Int64[np.ndarray, " q"],
    ks: Sequence[int],
    map_at: Sequence[int],
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Measure the asymmetric ranking of each query, in expectation over all orders of the ties.

    Args:
        query: The queries, with continuous codes.
        database: The database.
        exclude: Position in the database of the item that is the query itself, or -1, for each query.
        ks: Cut-offs k of the precision.
        map_at: Ranks R of ``map_at_R_asymmetric``.
        threads: Number of threads, as for `ranking.count`.

    Returns:
        ``map_asymmetric`` (q,), ``map_at_<R>_asymmetric`` (q,) for each R, and ``precision_at_k_asymmetric`` (q, ks).
    """
    if query.u is None:
        raise ValueError("the queries have no continuous codes")
    u, codes, kernels = query.u, np.ascontiguousarray(database.packed.T), ranking._kernels()

    def scores(rows: slice) -> Int64[np.ndarray, "q n"]:
        return kernels.sums(_tables(u[rows]), codes)

    def measure(total: Int64[np.ndarray, "q groups"], relevant: Int64[np.ndarray, "q groups"]) -> dict[str, np.ndarray]:
        h = metrics.Histograms(total, relevant)
        return {
            "map_asymmetric": metrics.average_precision(h),
            **{f"map_at_{r}_asymmetric": metrics.average_precision_at(h, r) for r in map_at},
            "precision_at_k_asymmetric": metrics.precision_at(h, ks),
        }

    labels = query.labels, database.labels
    parts = list(ranking.grouped(scores, measure, *labels, exclude, tolerance=0, pairs=_PAIRS, threads=threads))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tables(u: Float16[np.ndarray, "q bits"]) -> Int64[np.ndarray, "q bytes 256"]:
    """Return, for each byte of a code and each of its values, its part of the negative inner product, in units."""
    q, bits = u.shape
    padded = np.zeros((q, packed_width(bits), 8))
    padded.reshape(q, -1)[:, :bits] = u
    return (padded @ (-_UNIT * _TABLE.T)).astype(np.int64)  # exact: eight multiples of a unit below 2^41 units

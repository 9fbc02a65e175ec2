"""Rescoring: an index finds a shortlist by Hamming distance, which the continuous codes of the queries then rank.

The score of an item is the inner product of the query's continuous code ``u`` with the item's code as -1 and +1. It
tells apart items at the same distance: those that differ from the query in bits where ``u`` is near 0 come first.
"""

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8

from deephash_cli.errors import ConfigError
from deephash_cli.retrieval import indexes, ranking
from deephash_cli.retrieval.by_prefix import ByPrefix

Ranked = tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]


def settle(method: str | None, shortlist: int, k: int) -> int | None:
    """Return the length of the shortlist to rescore; None if nothing is rescored.

    Args:
        method: ``asymmetric``, or None.
        shortlist: Length of the shortlist.
        k: Number of results that are kept of it.

    Raises:
        ConfigError: If the shortlist is too short for so many results.
    """
    if method is None:
        return None
    if shortlist < k:
        raise ConfigError(
            f"shortlist must be at least k, got shortlist={shortlist} and k={k}: rescoring adds no results"
        )
    return shortlist


def nearest(
    index: indexes.Index | ByPrefix,
    database: UInt8[np.ndarray, "n bytes"],
    queries: UInt8[np.ndarray, "q bytes"],
    u: Float[np.ndarray, "q bits"],
    k: int,
    shortlist: int,
    own: Int64[np.ndarray, " q"] | None = None,
) -> Ranked:
    """Find items with large scores: the index finds the nearest items, and the ``k`` with the largest scores are kept.

    If the shortlist is at least as long as the database, the index is not used: every item gets its score. Otherwise
    an item can be missed if it is not in the shortlist. Of items that tie for the last place of the shortlist, those
    that come first in the database are in it.

    Args:
        index: Index of the database.
        database: Packed codes of the database.
        queries: Packed codes of the queries.
        u: Continuous codes of the queries.
        k: Number of items to find for each query.
        shortlist: Number of nearest items that get a score.
        own: Position of each query in the database, to leave it out of its own results, or -1; None if the queries are
            not items of the database.

    Returns:
        Scores, distances and positions, as from `ranking.rescore`.

    Raises:
        ValueError: If the codes do not match each other.
    """
    if shortlist >= len(database):
        return ranking.asymmetric(u, queries, database, k, own)
    distances, positions = index.nearest(queries, shortlist if own is None else shortlist + 1)
    if own is not None:
        distances, positions = indexes.without(own, distances, positions)
    return ranking.rescore(u, database, distances, positions, k)


def within(
    index: indexes.Index | ByPrefix,
    database: UInt8[np.ndarray, "n bytes"],
    query: UInt8[np.ndarray, "1 bytes"],
    u: Float[np.ndarray, "1 bits"],
    radius: int,
) -> Ranked:
    """Find all items within a radius of one query, and rank them by their scores.

    Args:
        index: Index of the database.
        database: Packed codes of the database.
        query: Packed code of the query.
        u: Continuous code of the query.
        radius: Largest Hamming distance, in bits, of an item to find.

    Raises:
        ConfigError: If this kind of index cannot search within a radius.
    """
    distances, positions = next(index.within(query, radius))
    return ranking.rescore(u, database, distances[None], positions[None], len(positions))

"""All retrieval metrics of one pair of code sets, as one dictionary that JSON can hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from deephash_cli import metrics, ranking
from deephash_cli.codes import CodeSet, require_comparable
from deephash_cli.errors import ConfigError, DataError

POLICIES = {
    "ties": (
        "map, map_at_R, precision_at_k and recall_at_k are exact expectations over every order of equally distant "
        "items; map_stable keeps them in database order; map_best and map_worst put relevant ones first and last"
    ),
    "empty_query": "a query without a relevant item scores 0 and is counted",
    "empty_ball": "a Hamming ball without an item has precision 0",
    "map_at_denominator": (
        "map_at_R divides by the relevant items among the first R; a database smaller than R is ranked whole"
    ),
    "k_beyond_database": "precision_at_k divides by k even where the database is smaller than k",
    "self_match": "a database item with the id of the query is left out of that query's ranking",
}


def evaluate(
    query: CodeSet,
    database: CodeSet,
    ks: Sequence[int],
    map_at: Sequence[int],
    radius: int,
    pairs: int = ranking.PAIRS,
) -> dict[str, Any]:
    """Rank the database for every query and average every metric over all queries.

    The same codes give the same numbers to the last digit, however many pairs are worked on at once.

    Args:
        query: The searching side.
        database: The searched side.
        ks: Ranks at which precision and recall are reported; their order and repetitions do not matter.
        map_at: Ranks R for ``map_at_<R>``.
        radius: Radius of the Hamming ball for ``precision_within_<radius>`` and ``empty_ball_rate``.
        pairs: How many pairs of query and database item to hold in memory at once.

    Raises:
        ArtifactError: If the two sides differ in code length or in classes.
        ConfigError: If a rank is below 1 or the radius negative.
        DataError: If there is no query or no database item.
    """
    require_comparable(query, database)
    for name, side in (("query", query), ("database", database)):
        if not side.n:
            raise DataError(f"evaluation needs at least one image on each side, but the {name} set is empty")
    for name, ranks in (("k", ks), ("the R of map_at", map_at)):
        for rank in ranks:
            if rank < 1:
                raise ConfigError(f"{name} must be between 1 and the database size {database.n}, got {rank}")
    if radius < 0:
        raise ConfigError(f"radius must be between 0 and the code length {query.bits}, got {radius}")
    ks, map_at = sorted(set(ks)), sorted(set(map_at))

    h, stable = _rank(query, database, pairs)
    balance = np.abs(metrics.bit_balance(database.packed, database.bits) - 0.5)
    return {
        "map": _mean(metrics.average_precision(h)),
        "map_stable": _mean(stable),
        "map_best": _mean(metrics.average_precision_best(h)),
        "map_worst": _mean(metrics.average_precision_worst(h)),
        **{f"map_at_{r}": _mean(metrics.average_precision_at(h, r)) for r in map_at},
        "precision_at_k": {str(k): _mean(metrics.precision_at(h, k)) for k in ks},
        "recall_at_k": {str(k): _mean(metrics.recall_at(h, k)) for k in ks},
        f"precision_within_{radius}": _mean(metrics.precision_within(h, radius)),
        "empty_ball_rate": _mean(metrics.empty_ball(h, radius)),
        "pr_by_radius": {
            "radius": list(range(query.bits + 1)),
            "precision": metrics.precision_by_radius(h).mean(axis=0).tolist(),
            "recall": metrics.recall_by_radius(h).mean(axis=0).tolist(),
        },
        "bit_balance": {"mean_deviation": _mean(balance), "max_deviation": float(balance.max())},
        "unique_code_ratio": metrics.unique_ratio(database.packed),
        "queries": query.n,
        "database": database.n,
        "bits": query.bits,
        "queries_without_relevant": int((h.relevant.sum(axis=1) == 0).sum()),
        "k_beyond_database": [int(k) for k in ks if k > database.n],
        "policies": dict(POLICIES),
    }


def self_matches(query: CodeSet, database: CodeSet) -> Int64[np.ndarray, " q"]:
    """Position in the database of each query's own id, or -1 where it is not there."""
    positions = {name: position for position, name in enumerate(database.ids)}
    return np.fromiter((positions.get(name, -1) for name in query.ids), np.int64, count=query.n)


def _rank(query: CodeSet, database: CodeSet, pairs: int) -> tuple[metrics.Histograms, np.ndarray]:
    """Histograms, and the average precision in stable order, of all queries."""
    total, relevant = (np.empty((query.n, query.bits + 1), np.int64) for _ in range(2))
    stable = np.empty(query.n)
    for part in ranking.rank(
        query.packed,
        database.packed,
        query.bits,
        query.labels,
        database.labels,
        exclude=self_matches(query, database),
        pairs=pairs,
    ):
        total[part.queries], relevant[part.queries] = part.total, part.relevant
        stable[part.queries] = metrics.average_precision_of_ranking(part.relevance)
    return metrics.Histograms(total, relevant), stable


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))

"""Measure what binarizing cost: rank the database by the cosine of real-valued vectors, on both sides.

For the outputs of a network this is the ceiling of its binary codes, and for the features of a backbone that of every
hash layer above it, as far as cosine is concerned: a method that learns from labels can do better than its features.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from deephash_cli import npy
from deephash_cli.cache import features_folder
from deephash_cli.errors import ArtifactError
from deephash_cli.files import read_sealed, sha256_file
from deephash_cli.retrieval import metrics, ranking
from deephash_cli.retrieval.codes import CodeSet
from deephash_cli.retrieval.codes_folder import feature_rows
from deephash_cli.retrieval.ranking import Labels

TOLERANCE = 1e-12  # cosines that are no further apart are tied
PAIRS = 2**26  # pairs of a query and a database item that are compared; more queries are a sample
_UNIT = 2.0**52  # a cosine becomes this many whole numbers, which is the resolution of float64 just below 1
_HELD = 2**25  # numbers of the database that are kept as float64; more are converted again for each part of the queries
_TOGETHER, _TOGETHER_IF_NOT_HELD = 2**20, 2**22  # pairs that are ranked at a time

POLICY = (
    "map_outputs ranks by the cosine of the continuous codes of both sides (query_u.npy, database_u.npy), and "
    f"map_features by that of the backbone's features; cosines at most {TOLERANCE} apart are tied; beyond {PAIRS} "
    "pairs with database items a random sample of the queries (seed 0) is measured; lost_by_binarizing is map_outputs "
    "less map, both of these queries"
)


class Vectors(NamedTuple):
    """Vectors (images, d) of a data set, and the rows of the queries and of the database in it."""

    array: np.ndarray
    query: np.ndarray
    database: np.ndarray


def cached_features(folder: Path, manifest: dict[str, Any]) -> Vectors | None:
    """Return the features that the codes in a folder were made from, if they are still in the cache and intact.

    Args:
        folder: Codes folder.
        manifest: Manifest of the folder.

    Returns:
        The features; None if the codes were not made from features that are kept, or these are gone.

    Raises:
        ArtifactError: If the record of the rows is missing or damaged.
    """
    key, rows = (manifest["provenance"].get("features") or {}).get("key", ""), feature_rows(folder, manifest)
    if rows is None or not re.fullmatch("[0-9a-f]{32}", key):
        return None
    place = features_folder(key)
    try:
        array = npy.load(place / "features.npy")
        n, width = array.shape
        expected = {"n": n, "width": width, "sha256": sha256_file(place / "features.npy")}
        is_intact = read_sealed(place / "manifest.json") == expected
    except (ArtifactError, OSError, ValueError):
        return None
    is_there = is_intact and all(0 <= part.min(initial=0) <= part.max(initial=0) < n for part in rows)
    return Vectors(array, *rows) if is_there else None


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


def measure(
    query: CodeSet,
    database: CodeSet,
    rows: Int64[np.ndarray, " m"],
    exclude: Int64[np.ndarray, " m"],
    of_codes: Float64[np.ndarray, " m"],
    features: Vectors | None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Return ``map_outputs``, ``map_features`` if there are features, ``lost_by_binarizing``, and ``queries``.

    Args:
        query: The queries, with continuous codes.
        database: The database, with continuous codes.
        rows: Row numbers of the queries to measure, from `sample`.
        exclude: Position in the database of the item that is the query itself, or -1, for each of these queries.
        of_codes: Average precision of the binary codes for each of these queries.
        features: Features that the codes were made from; None if they are not known.
        threads: Number of threads, as for `ranking.count`.
    """
    if query.u is None or database.u is None:
        raise ValueError("the ceiling needs continuous codes of both sides")
    sides = query.labels[rows], database.labels, exclude, threads
    found = {"map_outputs": float(average_precision(query.u[rows], database.u.__getitem__, *sides).mean())}
    if features is not None:
        array, of_query, of_database = features
        of_features = average_precision(array[of_query[rows]], lambda part: array[of_database[part]], *sides)
        found["map_features"] = float(of_features.mean())
    lost = found["map_outputs"] - float(of_codes.mean())
    return {**found, "lost_by_binarizing": lost, "queries": len(rows)}


def average_precision(
    query: Float[np.ndarray, "q d"],
    database: Callable[[slice], Float[np.ndarray, "_ d"]],
    query_labels: Labels,
    database_labels: Labels,
    exclude: Int64[np.ndarray, " q"],
    threads: int | None = None,
) -> Float64[np.ndarray, " q"]:
    """Return the average precision of each query if the database is ranked by cosine, largest first.

    It is the expectation over all orders of ties. The cosine with a vector of zeros is 0.

    Args:
        query: Vectors of the queries.
        database: Function that returns the vectors of some consecutive database items.
        query_labels: Labels of the queries, as for `ranking.count`.
        database_labels: Labels of the database, in the same form.
        exclude: Position in the database of the item that is the query itself, or -1, for each query.
        threads: Number of threads, as for `ranking.count`.
    """
    n, width = len(database_labels), query.shape[1]
    rows = max(1, _HELD // (8 * width))
    blocks = [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
    held = [_unit(database(block)) for block in blocks] if n * width <= _HELD else None

    def scores(part: slice) -> Int64[np.ndarray, "m n"]:
        vectors, found = _unit(query[part]) * -_UNIT, np.empty((part.stop - part.start, n), np.int64)
        for number, block in enumerate(blocks):
            found[:, block] = np.rint(vectors @ (held[number] if held else _unit(database(block))).T)
        return found

    def measured(total: Int64[np.ndarray, "m groups"], relevant: Int64[np.ndarray, "m groups"]) -> np.ndarray:
        return metrics.average_precision(metrics.Histograms(total, relevant))

    tolerance, pairs = int(TOLERANCE * _UNIT), _TOGETHER if held else _TOGETHER_IF_NOT_HELD
    sides = query_labels, database_labels, exclude
    return np.concatenate(list(ranking.grouped(scores, measured, *sides, tolerance, pairs, threads)))


def _unit(vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Return the vectors in float64, divided by their lengths."""
    vectors = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    vectors /= np.where(lengths > 0, lengths, 1)[:, None]
    return vectors

"""Hamming rankings: count items by distance and shared labels, and find those nearest to a query or within a radius.

No function holds all pairs of queries and database items in memory. Codes of K bits have only K + 1 distances, so the
compiled loops count distances instead of sorting the database. Every count is an integer, and every sum is computed
query by query in the order of the database: neither the number of threads nor the grouping of the queries can change
a digit.

The inner loops are compiled by numba. Without numba, and for searches with few pairs, NumPy computes the same, about
fifteen times slower.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer, UInt8, UInt64

from deephash_cli.console import warn
from deephash_cli.errors import first_line
from deephash_cli.retrieval.codes import packed_width
from deephash_cli.retrieval.threads import in_order, settled

Labels = UInt8[np.ndarray, "_ classes"] | Integer[np.ndarray, " _"]
T = TypeVar("T")

_TOGETHER = 256  # queries in one part, which is what a thread works on at a time: their metrics stay in its cache
_ROWS = 2**16  # rows converted at a time
_FEW = 2**18  # pairs that NumPy compares in milliseconds, where importing numba and its compiled code takes much longer
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts for some consecutive queries.

    Attributes:
        queries: Rows of these queries among all queries.
        shared: Number of database items at each distance 0, 1, ... that share 0, 1, ... labels with the query.
        graded: The same with the labels that `count` got under ``graded``; without these, it is ``shared``.
        precision_sums: Sum of the precisions at the relevant items, in stable order: by distance, ties by position in
            the database. One column for the ranks up to each cut-off, and a last one for the whole order.
        hits: Number of relevant items in each of these sums.
    """

    queries: slice
    shared: Int64[np.ndarray, "q distances grades"]
    graded: Int64[np.ndarray, "q distances other_grades"]
    precision_sums: Float64[np.ndarray, "q sums"]
    hits: Int64[np.ndarray, "q sums"]


def count(
    query_packed: UInt8[np.ndarray, "q bytes"],
    database_packed: UInt8[np.ndarray, "n bytes"],
    bits: int,
    query_labels: Labels,
    database_labels: Labels,
    exclude: Int64[np.ndarray, " q"] | None = None,
    cuts: Sequence[int] = (),
    threads: int | None = None,
    graded: tuple[Labels, Labels] | None = None,
) -> Iterator[Counts]:
    """Count the database items at each distance from each query, by the number of labels that they share with it.

    Args:
        query_packed: Packed codes of the queries.
        database_packed: Packed codes of the database.
        bits: Code length.
        query_labels: Labels of the queries: multi-hot (q, classes), or class numbers (q,) with -1 for no label.
        database_labels: Labels of the database, in the same form.
        exclude: Position in the database of the item that is the query itself, or -1, for each query. This item is not
            counted. None excludes no item.
        cuts: Cut-offs, in ranks, of the sums of precisions in stable order.
        threads: Number of threads, which share the queries; None: OMP_NUM_THREADS, or as many as there are cores.
        graded: Other labels of the queries and of the database, by which items are counted as well.

    Returns:
        Counts for all queries in order, some queries at a time. With several threads, work starts at the call and
        continues while the caller processes the results.

    Raises:
        ValueError: If the arrays do not match. It is raised at the call, not with the first results.
    """
    _check_codes(query_packed, database_packed, bits)
    for side, packed, labels in (("query", query_packed, query_labels), ("database", database_packed, database_labels)):
        if len(packed) != len(labels):
            raise ValueError(f"{side} codes and labels must have equal lengths, got {len(packed)} and {len(labels)}")
    own = np.full(len(query_packed), -1) if exclude is None else np.ascontiguousarray(exclude)
    if len(own) != len(query_packed):
        raise ValueError(f"exclude must have one entry per query ({len(query_packed)}), got {len(own)}")
    if own.size and not -1 <= own.min() <= own.max() < len(database_packed):
        raise ValueError(
            f"exclude must be -1 or a position in the database of {len(database_packed)} items, "
            f"got values from {own.min()} to {own.max()}"
        )
    words = _words(query_packed).T.copy(), _words(database_packed)
    limits = np.minimum(np.array(cuts, np.float64), len(database_packed)).astype(np.int64)  # a cut-off can be 10**30
    relevant = _counter(*words, bits, query_labels, database_labels, own, limits)
    by_grade = None if graded is None else _counter(*words, bits, *graded, own, limits[:0])

    def part(rows: slice) -> Counts:
        shared, precision_sums, hits = relevant(rows)
        others = shared if by_grade is None else by_grade(rows)[0]
        return Counts(rows, shared, others, precision_sums, hits)

    return _in_parts(part, len(query_packed), threads)


def joined(counts: Iterable[Counts]) -> Iterator[Counts]:
    """Join small parts: the metrics of few queries take about as long as those of one part."""
    held: list[Counts] = []
    for part in counts:
        held.append(part)
        if part.queries.stop - held[0].queries.start >= _TOGETHER // 2:
            yield _as_one(held)
            held = []
    if held:
        yield _as_one(held)


def _as_one(parts: Sequence[Counts]) -> Counts:
    first = parts[0]
    if len(parts) == 1:
        return first
    shared = np.concatenate([part.shared for part in parts])
    return Counts(
        slice(first.queries.start, parts[-1].queries.stop),
        shared,
        shared if first.graded is first.shared else np.concatenate([part.graded for part in parts]),
        np.concatenate([part.precision_sums for part in parts]),
        np.concatenate([part.hits for part in parts]),
    )


def _counter(
    query_words: UInt64[np.ndarray, "q words"],
    database_words: UInt64[np.ndarray, "words n"],
    bits: int,
    query_labels: Labels,
    database_labels: Labels,
    own: Int64[np.ndarray, " q"],
    limits: Int64[np.ndarray, " cuts"],
) -> Callable[[slice], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prepare the counting by these labels, of the kernel that fits them, for some consecutive queries at a time."""
    kernels = _kernels()
    query_labels, database_labels, grades = _labels(query_labels, database_labels)
    if query_labels.ndim == 1:
        members, spans = _members(query_labels, database_labels)
        return lambda rows: kernels.count_classes(
            query_words[rows], database_words, members, spans[rows], own[rows], limits, bits
        )
    query_labels = query_labels.T.copy()
    return lambda rows: kernels.count_labels(
        query_words[rows], database_words, query_labels[rows], database_labels, own[rows], limits, bits, grades
    )


def nearest(
    query_packed: UInt8[np.ndarray, "q bytes"],
    database_packed: UInt8[np.ndarray, "n bytes"],
    bits: int,
    k: int,
    threads: int | None = None,
) -> tuple[Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Find the ``k`` nearest database items of each query, exactly.

    Args:
        query_packed: Packed codes of the queries.
        database_packed: Packed codes of the database.
        bits: Code length.
        k: Number of items to find for each query; if the database has fewer, all of them.
        threads: Number of threads; see `count`.

    Returns:
        Distances and positions in the database, sorted by distance, ties by position.

    Raises:
        ValueError: If the codes do not match, or if ``k`` is below 1.
    """
    _check_codes(query_packed, database_packed, bits)
    if k < 1:
        raise ValueError(f"k must be between 1 and the database size {len(database_packed)}, got {k}")
    query_words, database_words = _words(query_packed).T.copy(), _words(database_packed)
    k, kernels = min(k, len(database_packed)), _for_search(len(query_packed) * len(database_packed))
    if not k or not len(query_packed):
        return np.empty((len(query_packed), k), np.int64), np.empty((len(query_packed), k), np.int64)
    parts = list(
        _in_parts(lambda rows: kernels.nearest(query_words[rows], database_words, bits, k), len(query_words), threads)
    )
    distances, positions = (np.concatenate(side) for side in zip(*parts, strict=True))
    return distances, positions


def within(
    query_packed: UInt8[np.ndarray, "q bytes"],
    database_packed: UInt8[np.ndarray, "n bytes"],
    bits: int,
    radius: int,
    threads: int | None = None,
) -> Iterator[tuple[Int64[np.ndarray, " hits"], Int64[np.ndarray, " hits"]]]:
    """Find every database item at most ``radius`` away from each query, exactly.

    Args:
        query_packed: Packed codes of the queries.
        database_packed: Packed codes of the database.
        bits: Code length.
        radius: Largest distance, in bits, of an item to find.
        threads: Number of threads; see `count`.

    Returns:
        For each query in order, the distances and positions in the database, sorted by distance, ties by position.
        Only a few queries' results are in memory at a time, since a large radius finds the whole database.

    Raises:
        ValueError: If the codes do not match, or if ``radius`` is below 0. It is raised at the call.
    """
    _check_codes(query_packed, database_packed, bits)
    if radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    query_words, database_words = _words(query_packed).T.copy(), _words(database_packed)
    kernels = _for_search(len(query_packed) * len(database_packed))
    return _in_parts(
        lambda rows: kernels.within(query_words[rows], database_words, bits, radius), len(query_words), threads, most=1
    )


def rescore(
    u: Float[np.ndarray, "q bits"],
    database_packed: UInt8[np.ndarray, "n bytes"],
    distances: Int64[np.ndarray, "q found"],
    positions: Int64[np.ndarray, "q found"],
    k: int,
    threads: int | None = None,
) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Rank items that a search found by their scores, and keep the first ``k``.

    The score is the inner product of the query's continuous code with the code of the item as -1 and +1, in double
    precision. The largest score comes first; equal scores are in the order of distance, then of position.

    Args:
        u: Continuous codes of the queries. Infinite values count as the largest that float16 can hold.
        database_packed: Packed codes of the database.
        distances: Hamming distances of the items that were found for each query.
        positions: Positions of these items in the database; negative ones are no items and are left out.
        k: Number of items to keep for each query.
        threads: Number of threads; see `count`.

    Returns:
        Scores, distances and positions. Where there are fewer than ``k`` items, NaN and -1 follow the last one.

    Raises:
        ValueError: If the continuous codes do not match the database, or hold NaN.
    """
    values, codes = _values(u, database_packed.shape[1]), np.ascontiguousarray(database_packed)
    kernels = _for_search(distances.size)
    distances, positions = (np.ascontiguousarray(side, np.int64) for side in (distances, positions))
    return _by_score(
        lambda rows: kernels.rescore(values[rows], codes, distances[rows], positions[rows], k), len(u), k, threads
    )


def asymmetric(
    u: Float[np.ndarray, "q bits"],
    query_packed: UInt8[np.ndarray, "q bytes"],
    database_packed: UInt8[np.ndarray, "n bytes"],
    k: int,
    exclude: Int64[np.ndarray, " q"] | None = None,
    threads: int | None = None,
) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Find the ``k`` items with the largest scores, exactly: every item gets its score, which `rescore` describes.

    Args:
        u: Continuous codes of the queries, as for `rescore`.
        query_packed: Packed codes of the queries, which the distances are from.
        database_packed: Packed codes of the database.
        k: Number of items to find for each query; if the database has fewer, all of them.
        exclude: Position in the database of the item that is the query itself, or -1, for each query. This item is not
            found. None excludes no item.
        threads: Number of threads; see `count`.

    Returns:
        Scores, distances and positions, as from `rescore`.

    Raises:
        ValueError: If the continuous codes do not match the database, or hold NaN.
    """
    _require_same_width("codes", query_packed, database_packed)
    values, k = _values(u, database_packed.shape[1]), min(k, len(database_packed))
    kernels = _for_search(len(query_packed) * len(database_packed))
    own = np.full(len(u), -1) if exclude is None else np.ascontiguousarray(exclude)
    queries, codes = (np.ascontiguousarray(side) for side in (query_packed, database_packed))
    return _by_score(
        lambda rows: kernels.asymmetric(values[rows], queries[rows], codes, own[rows], k), len(u), k, threads
    )


def grouped(
    scores: Callable[[slice], Int64[np.ndarray, "q n"]],
    measure: Callable[[Int64[np.ndarray, "q groups"], Int64[np.ndarray, "q groups"]], T],
    query_labels: Labels,
    database_labels: Labels,
    exclude: Int64[np.ndarray, " q"],
    tolerance: int,
    pairs: int,
    threads: int | None = None,
) -> Iterator[T]:
    """Rank the database by any score, and count the items that are tied and those of them that are relevant.

    Args:
        scores: Function that returns the scores of all database items for some consecutive queries, in an array of its
            own; the lowest score comes first. Scores lie between -2^61 and 2^61.
        measure: Function that is called with the numbers of items (q, groups) and of relevant items of each group of
            ties, in order of score, for some consecutive queries. An item is relevant if it shares a label with the
            query. Neighbouring groups in which no item is relevant are counted as one, and so are neighbouring groups
            in which all are: no metric depends on the order inside of these. Zeros follow a query's last group.
        query_labels: Labels of the queries, as for `count`.
        database_labels: Labels of the database, in the same form.
        exclude: Position in the database of the item that is the query itself, or -1, for each query, as for `count`.
        tolerance: Largest difference of two scores that are tied. Ties are passed on: items are in one group if each
            differs by no more from the next one.
        pairs: Number of pairs of a query and an item that a thread ranks at a time, which bounds its memory.
        threads: Number of threads; see `count`.

    Returns:
        The results of ``measure`` in the order of the queries.
    """
    kernels, n = _kernels(), len(database_labels)
    query_labels, database_labels, _ = _labels(query_labels, database_labels)

    def part(rows: slice) -> T:
        keys = scores(rows)
        keys <<= 1
        keys |= _relevant(query_labels[..., rows], database_labels)
        own = exclude[rows]
        keys[np.flatnonzero(own >= 0), own[own >= 0]] = np.iinfo(np.int64).max  # sorted to the end, and not counted
        keys.sort(axis=1)
        return measure(*kernels.groups(keys, n - (own >= 0), tolerance))

    return _in_parts(part, len(exclude), threads, most=max(1, pairs // max(1, n)))


def check_side(side: str, packed: UInt8[np.ndarray, "n bytes"], bits: int) -> None:
    """Check the width of packed codes, and that their padding bits, which would add distance, are zero.

    Args:
        side: Name of the side for the message: ``query`` or ``database``.
        packed: Packed codes.
        bits: Code length.

    Raises:
        ValueError: If the width does not match ``bits``, or if a padding bit is one.
    """
    if bits < 1 or packed.shape[1] != packed_width(bits):
        raise ValueError(f"codes of {bits} bits take {packed_width(bits)} bytes a row, got {packed.shape[1]}")
    if bits % 8 and (packed[:, -1] >> (bits % 8)).any():
        raise ValueError(f"padding bits of the {side} codes must be zero, got ones: they would count as distance")


def _values(u: Float[np.ndarray, "q bits"], width: int) -> Float64[np.ndarray, "q places"]:
    """Check continuous codes, and return them with a 0 for each padding bit of a code of ``width`` bytes."""
    if u.ndim != 2 or packed_width(u.shape[1]) != width:
        raise ValueError(f"continuous codes must have one value for each bit of {width} bytes, got {u.shape}")
    if np.isnan(u).any():
        raise ValueError(f"continuous codes must be numbers, got NaN in row {int(np.isnan(u).any(axis=1).argmax())}")
    values = np.zeros((len(u), 8 * width))
    values[:, : u.shape[1]] = np.clip(u, -_LARGEST, _LARGEST)
    return values


def _by_score(
    work: Callable[[slice], tuple[np.ndarray, ...]], q: int, k: int, threads: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join the scores, distances and positions of all parts."""
    if not q or not k:
        return np.empty((q, k)), np.empty((q, k), np.int64), np.empty((q, k), np.int64)
    scores, distances, positions = (np.concatenate(side) for side in zip(*_in_parts(work, q, threads), strict=True))
    return scores, distances, positions


def _for_search(pairs: int) -> ModuleType:
    """Return the loops for a search that compares so many pairs of a query and an item."""
    if pairs > _FEW:
        return _kernels()
    from deephash_cli.retrieval.kernels import vectorized

    return vectorized


@cache
def _kernels() -> ModuleType:
    try:
        from deephash_cli.retrieval.kernels import compiled
    except ImportError as error:
        from deephash_cli.retrieval.kernels import vectorized

        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):  # it is installed, but broken
            warn(f"numba cannot be imported, so counting takes about fifteen times as long: {first_line(error)}")
        return vectorized
    return compiled


def _in_parts(work: Callable[[slice], T], queries: int, threads: int | None, most: int | None = None) -> Iterator[T]:
    """Yield results for some queries at a time, in order."""
    threads = settled(threads)
    # Several parts per thread: the caller processes the first ones meanwhile, and waits for little at the end.
    size = max(1, min(most or _TOGETHER, -(-queries // (4 * threads)) if threads > 1 else queries))
    slices = [slice(start, min(start + size, queries)) for start in range(0, queries, size)]
    return in_order(work, slices, threads if len(slices) > 1 else 1)


def _check_codes(query_packed: np.ndarray, database_packed: np.ndarray, bits: int) -> None:
    _require_same_width("codes", query_packed, database_packed)
    check_side("query", query_packed, bits)
    check_side("database", database_packed, bits)


def _require_same_width(what: str, query: np.ndarray, database: np.ndarray) -> None:
    if query.shape[1] != database.shape[1]:
        raise ValueError(
            f"query and database {what} must have the same width, got {query.shape[1]} and {database.shape[1]}"
        )


def _words(rows: UInt8[np.ndarray, "n bytes"]) -> np.ndarray:
    """Regroup bytes into 64-bit words, (words, n). Added bytes are zero on both sides and add no distance.

    Codes of 8 bytes are words already: they are not copied, so that a memory-mapped file stays on disk.
    """
    n, width = rows.shape
    if width == 8 and rows.flags.c_contiguous and rows.flags.aligned:
        return np.asarray(rows).view(np.uint64).reshape(1, n)
    words = np.empty((-(-width // 8), n), np.uint64)
    for start in range(0, n, _ROWS):
        block = np.zeros((min(_ROWS, n - start), 8 * len(words)), np.uint8)
        block[:, :width] = rows[start : start + _ROWS]
        words[:, start : start + _ROWS] = block.view(np.uint64).T
    return words


def _labels(query: np.ndarray, database: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Convert labels to class numbers (n,) if no image has two labels, otherwise to bit sets, (words, n).

    Returns:
        The labels of both sides, and an upper limit of the number of shared labels, plus one.
    """
    if query.ndim != database.ndim:
        raise ValueError("query and database labels must both be multi-hot or both be class numbers, got one of each")
    if query.ndim == 1:
        return query, database, 2
    _require_same_width("labels", query, database)
    query, database = _label_words(query), _label_words(database)
    most, most_in_database = (
        int(np.bitwise_count(words).sum(axis=0, dtype=np.int64).max(initial=0)) for words in (query, database)
    )
    if max(most, most_in_database) > 1:
        return query, database, max(2, min(most, most_in_database) + 1)
    return _class_numbers(query), _class_numbers(database), 2


def _relevant(query: np.ndarray, database: np.ndarray) -> Bool[np.ndarray, "q n"]:
    """Whether each query shares a label with each item, from labels that `_labels` converted."""
    if query.ndim == 1:
        return (query[:, None] == database) & (query[:, None] >= 0)
    shares = np.zeros((query.shape[1], database.shape[1]), np.bool_)
    for words, items in zip(query, database, strict=True):
        shares |= (words[:, None] & items) != 0
    return shares


def _label_words(labels: UInt8[np.ndarray, "n classes"]) -> np.ndarray:
    n, classes = labels.shape
    width = max(1, -(-classes // 8))
    packed = np.empty((n, width), np.uint8)
    for start in range(0, n, _ROWS):
        block = np.zeros((min(_ROWS, n - start), 8 * width), np.uint8)  # rows of whole bytes: all are packed as one
        block[:, :classes] = labels[start : start + _ROWS]
        packed[start : start + _ROWS] = np.packbits(block, bitorder="little").reshape(-1, width)
    return _words(packed)


def _class_numbers(words: np.ndarray) -> Int64[np.ndarray, " n"]:
    """The class number of each image, or -1 if it has no class."""
    numbers = np.full(words.shape[1], -1)
    for position, row in enumerate(words):
        zeros_below = np.bitwise_count((row & -row) - np.uint64(1))
        np.copyto(numbers, 64 * position + zeros_below.astype(np.int64), where=row != 0)
    return numbers


def _members(query: Integer[np.ndarray, " q"], database: Integer[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the database items, class by class, and for each query the range of those of its class."""
    most = int(database.max(initial=0))
    classes = np.where(database < 0, most + 1, database).astype(np.min_scalar_type(most + 1))
    members = np.argsort(classes, kind="stable").astype(np.uint32)
    in_order = classes[members]
    spans = np.stack([np.searchsorted(in_order, query, side=side) for side in ("left", "right")], axis=1)
    spans[(query < 0) | (query > most)] = 0  # classes without an item in the database
    return members, spans

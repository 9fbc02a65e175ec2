"""The same inner loops with NumPy alone, for use without numba: about fifteen times slower, with the same digits."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int64, UInt, UInt8, UInt32, UInt64

_PAIRS = 2**20  # pairs processed at a time: about 5 MB of work space, close to the size of the processor's cache
_BLOCK = 2**15  # database items that an inner loop reads at a time


def count_classes(
    query_words: UInt64[np.ndarray, "q words"],
    database_words: UInt64[np.ndarray, "words n"],
    members: UInt32[np.ndarray, " n"],
    spans: Int64[np.ndarray, "q 2"],
    exclude: Int64[np.ndarray, " q"],
    cuts: Int64[np.ndarray, " cuts"],
    bits: int,
) -> tuple[Int64[np.ndarray, "q distances 2"], Float64[np.ndarray, "q sums"], Int64[np.ndarray, "q sums"]]:
    """Counts when every image has at most one class: see `compiled.count_classes`."""

    def grades_of(rows: slice) -> UInt8[np.ndarray, "rows n"]:
        out = np.zeros((rows.stop - rows.start, database_words.shape[1]), np.uint8)
        for row, (first, last) in zip(out, spans[rows], strict=True):
            row[members[first:last]] = 1
        return out

    return _count(query_words, database_words, grades_of, exclude, cuts, bits, grades=2)


def count_labels(
    query_words: UInt64[np.ndarray, "q words"],
    database_words: UInt64[np.ndarray, "words n"],
    query_labels: UInt64[np.ndarray, "q label_words"],
    database_labels: UInt64[np.ndarray, "label_words n"],
    exclude: Int64[np.ndarray, " q"],
    cuts: Int64[np.ndarray, " cuts"],
    bits: int,
    grades: int,
) -> tuple[Int64[np.ndarray, "q distances grades"], Float64[np.ndarray, "q sums"], Int64[np.ndarray, "q sums"]]:
    """Counts when images can have several labels: see `compiled.count_labels`."""

    def grades_of(rows: slice) -> UInt[np.ndarray, "rows n"]:
        return _counted_bits(query_labels[rows], database_labels, np.bitwise_and, grades - 1)

    return _count(query_words, database_words, grades_of, exclude, cuts, bits, grades)


def nearest(
    query_words: UInt64[np.ndarray, "q words"], database_words: UInt64[np.ndarray, "words n"], bits: int, k: int
) -> tuple[Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Distances and positions of the first ``k`` items by distance and position. See `ranking.nearest`."""
    q, n = len(query_words), database_words.shape[1]
    distances, positions = (np.empty((q, k), np.int64) for _ in range(2))
    for rows in _slices(q, n):
        for row, distance in enumerate(
            _counted_bits(query_words[rows], database_words, np.bitwise_xor, bits), rows.start
        ):
            positions[row] = _stable_order(distance)[:k]
            distances[row] = distance[positions[row]]
    return distances, positions


def within(
    query_words: UInt64[np.ndarray, "1 words"], database_words: UInt64[np.ndarray, "words n"], bits: int, radius: int
) -> tuple[Int64[np.ndarray, " hits"], Int64[np.ndarray, " hits"]]:
    """Distances and positions of the items within ``radius`` of one query. See `ranking.within`."""
    (distance,) = _counted_bits(query_words, database_words, np.bitwise_xor, bits)
    positions = np.flatnonzero(distance <= radius)
    positions = positions[_stable_order(distance[positions])]
    return distance[positions].astype(np.int64), positions


def rescore(
    values: Float64[np.ndarray, "q places"],
    codes: UInt8[np.ndarray, "n bytes"],
    distances: Int64[np.ndarray, "q found"],
    positions: Int64[np.ndarray, "q found"],
    k: int,
) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Scores, distances and positions of the first ``k`` of the given items: see `compiled.rescore`."""
    ranked = _nothing_ranked(len(values), k)
    for i, (row, distance, position) in enumerate(zip(values, distances, positions, strict=True)):
        there = position >= 0
        _rank(ranked, i, _scores(row, codes[position[there]]), distance[there], position[there])
    return ranked


def asymmetric(
    values: Float64[np.ndarray, "q places"],
    queries: UInt8[np.ndarray, "q bytes"],
    codes: UInt8[np.ndarray, "n bytes"],
    exclude: Int64[np.ndarray, " q"],
    k: int,
) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Scores, distances and positions of the first ``k`` items of the database: see `compiled.asymmetric`."""
    ranked = _nothing_ranked(len(values), k)
    for i, row in enumerate(values):
        scores = _scores(row, codes)
        if exclude[i] >= 0:
            scores[exclude[i]] = -np.inf
        lowest = np.partition(scores, len(scores) - k)[len(scores) - k]
        positions = np.flatnonzero((scores >= lowest) & (scores > -np.inf))
        distances = np.bitwise_count(codes[positions] ^ queries[i]).sum(axis=1, dtype=np.int64)
        _rank(ranked, i, scores[positions], distances, positions)
    return ranked


def _scores(values: Float64[np.ndarray, " places"], codes: UInt8[np.ndarray, "n bytes"]) -> Float64[np.ndarray, " n"]:
    """Add up what the bytes of each code add to the score, in the order of the compiled loop."""
    scores = np.zeros(len(codes))
    for byte, column in zip(values.reshape(-1, 8), codes.T, strict=True):
        table = np.zeros(1)  # what each value of this byte adds
        for value in byte:
            table = np.concatenate([table - value, table + value])  # this bit is 0, this bit is 1
        scores += table[column]
    return scores


def _rank(
    ranked: tuple[np.ndarray, ...], i: int, scores: np.ndarray, distances: np.ndarray, positions: np.ndarray
) -> None:
    order = np.lexsort((positions, distances, -scores))[: ranked[0].shape[1]]
    for out, values in zip(ranked, (scores, distances, positions), strict=True):
        out[i, : len(order)] = values[order]


def _nothing_ranked(q: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.full((q, k), np.nan), np.full((q, k), -1), np.full((q, k), -1)


def sums(tables: Int64[np.ndarray, "q bytes 256"], codes: UInt8[np.ndarray, "bytes n"]) -> Int64[np.ndarray, "q n"]:
    """Add up entries of tables: see `compiled.sums`."""
    out = np.zeros((len(tables), codes.shape[1]), np.int64)
    for byte, column in enumerate(codes):
        for row, table in zip(out, tables[:, byte], strict=True):
            row += table[column]
    return out


def groups(
    keys: Int64[np.ndarray, "q n"], counts: Int64[np.ndarray, " q"], tolerance: int
) -> tuple[Int64[np.ndarray, "q groups"], Int64[np.ndarray, "q groups"]]:
    """Count the items, and the relevant items, of each group of ties: see `compiled.groups`."""
    found = [_groups(row[:count], tolerance) for row, count in zip(keys, counts, strict=True)]
    totals, hits = np.zeros((2, len(keys), max((1, *(len(total) for total, _ in found)))), np.int64)
    for i, (total, relevant) in enumerate(found):
        totals[i, : len(total)], hits[i, : len(total)] = total, relevant
    return totals, hits


def _groups(keys: Int64[np.ndarray, " n"], tolerance: int) -> tuple[np.ndarray, np.ndarray]:
    if not len(keys):
        return keys, keys
    starts = np.flatnonzero(np.diff(keys >> 1, prepend=(keys[0] >> 1) - tolerance - 1) > tolerance)
    size, relevant = np.diff(starts, append=len(keys)), np.add.reduceat(keys & 1, starts)
    kind = np.where(relevant == 0, 0, np.where(relevant == size, 1, 2))
    firsts = np.flatnonzero((np.diff(kind, prepend=-1) != 0) | (kind == 2))
    return np.add.reduceat(size, firsts), np.add.reduceat(relevant, firsts)


def _count(
    query_words: UInt64[np.ndarray, "q words"],
    database_words: UInt64[np.ndarray, "words n"],
    grades_of: Callable[[slice], UInt[np.ndarray, "rows n"]],
    exclude: Int64[np.ndarray, " q"],
    cuts: Int64[np.ndarray, " cuts"],
    bits: int,
    grades: int,
) -> tuple[Int64[np.ndarray, "q distances grades"], Float64[np.ndarray, "q sums"], Int64[np.ndarray, "q sums"]]:
    q, n = len(query_words), database_words.shape[1]
    shared = np.empty((q, bits + 1, grades), np.int64)
    precision_sums, hits = np.zeros((q, len(cuts) + 1)), np.zeros((q, len(cuts) + 1), np.int64)
    for rows in _slices(q, n):
        # The largest distance plus one marks an excluded item: it comes last and is not relevant.
        distances = _counted_bits(query_words[rows], database_words, np.bitwise_xor, bits + 1)
        for i, distance, grade in zip(range(rows.start, rows.stop), distances, grades_of(rows), strict=True):
            if exclude[i] >= 0:
                distance[exclude[i]], grade[exclude[i]] = bits + 1, 0
            shared[i] = _histogram(distance, grade, bits, grades)
            relevant = np.flatnonzero(grade)
            ranks = _ranks(distance)[relevant]
            precisions = (np.searchsorted(np.sort(ranks), ranks) + 1) / ranks
            for c, cut in enumerate([*cuts, n]):
                within = precisions[ranks <= cut]
                hits[i, c] = len(within)
                # cumsum adds one value after the other in the order of the database, as the compiled loop does.
                precision_sums[i, c] = np.cumsum(within)[-1] if len(within) else 0.0
    return shared, precision_sums, hits


def _slices(q: int, n: int) -> list[slice]:
    size = max(1, _PAIRS // max(1, n))
    return [slice(start, min(start + size, q)) for start in range(0, q, size)]


def _counted_bits(
    query: UInt64[np.ndarray, "q words"], database: UInt64[np.ndarray, "words n"], operation: np.ufunc, largest: int
) -> UInt[np.ndarray, "q n"]:
    """Number of 1 bits in the operation's result for each pair, in an integer type that can hold ``largest``."""
    out = np.zeros((len(query), database.shape[1]), np.min_scalar_type(largest))
    for start in range(0, database.shape[1], _BLOCK):
        block = out[:, start : start + _BLOCK]
        for word, items in enumerate(database[:, start : start + _BLOCK]):
            block += np.bitwise_count(operation(query[:, word, None], items))
    return out


def _histogram(
    distance: UInt[np.ndarray, " n"], grade: UInt[np.ndarray, " n"], bits: int, grades: int
) -> Int64[np.ndarray, "distances grades"]:
    counts = np.zeros((bits + 2) * grades, np.int64)
    for start in range(0, len(distance), _PAIRS):
        keys = distance[start : start + _PAIRS].astype(np.int64) * grades + grade[start : start + _PAIRS]
        counts += np.bincount(keys, minlength=len(counts))
    return counts.reshape(-1, grades)[: bits + 1]


def _stable_order(distance: UInt[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    # For integers of 8 and 16 bits NumPy's stable sort is a radix sort, which takes linear time.
    return np.argsort(distance, kind="stable")


def _ranks(distance: UInt[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Rank of each item, from 1, by distance and position."""
    ranks = np.empty(len(distance), np.int64)
    ranks[_stable_order(distance)] = np.arange(1, len(distance) + 1)
    return ranks

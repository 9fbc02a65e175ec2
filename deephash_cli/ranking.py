"""Hamming rankings: distances, histograms of them, and the stable order, in memory that does not grow with the queries.

Nothing here holds all pairs of queries and database items at once: pairs are worked through in chunks, and every number
that comes out is an integer or a truth value, so that the size of a chunk cannot change it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

PAIRS = 2**20  # pairs a chunk: about 5 MB of work space, near the processor's cache
_BLOCK = 2**15  # database items that an inner loop reads at once: its 8-byte words stay in cache


@dataclass(frozen=True, eq=False)
class Ranked:
    """Consecutive queries and how the database ranks for each of them.

    Attributes:
        queries: Which queries these are.
        total: Number of database items at each distance.
        relevant: Number of relevant database items at each distance.
        relevance: Whether the item at each rank is relevant; rank by distance, ties by position in the database. A
            pair that was excluded comes last and is not relevant.
    """

    queries: slice
    total: Int64[np.ndarray, "q distances"]
    relevant: Int64[np.ndarray, "q distances"]
    relevance: Bool[np.ndarray, "q n"]


def distances(
    query_packed: UInt8[np.ndarray, "q bytes"], database_packed: UInt8[np.ndarray, "n bytes"]
) -> Shaped[np.ndarray, "q n"]:
    """Hamming distances of all pairs, uint8 where they fit and uint16 where not. For all pairs of a small problem only.

    Raises:
        ValueError: If the codes differ in width.
    """
    _require_same_width("codes", query_packed, database_packed)
    query, database = _words(query_packed), _words(database_packed)
    out = np.empty((len(query_packed), len(database_packed)), _distance_type(query_packed.shape[1]))
    rows = max(1, PAIRS // max(1, len(database_packed)))
    for start in range(0, len(out), rows):
        _fill_distances(query[:, start : start + rows], database, out[start : start + rows])
    return out


def similar(
    query_labels: UInt8[np.ndarray, "q classes"], database_labels: UInt8[np.ndarray, "n classes"]
) -> Bool[np.ndarray, "q n"]:
    """Whether each pair shares at least one label. For all pairs of a small problem only."""
    query, database, single = _label_keys(query_labels, database_labels)
    out = np.empty((len(query_labels), len(database_labels)), np.bool_)
    rows = max(1, PAIRS // max(1, len(database_labels)))
    for start in range(0, len(out), rows):
        _fill_similar(query[:, start : start + rows], database, single, out[start : start + rows])
    return out


def histograms(
    query_packed: UInt8[np.ndarray, "q bytes"],
    database_packed: UInt8[np.ndarray, "n bytes"],
    bits: int,
    query_labels: UInt8[np.ndarray, "q classes"],
    database_labels: UInt8[np.ndarray, "n classes"],
    exclude: Int64[np.ndarray, " q"] | None = None,
    pairs: int = PAIRS,
) -> tuple[Int64[np.ndarray, "q distances"], Int64[np.ndarray, "q distances"]]:
    """Count database items, and relevant ones, at each distance from each query. Nothing is sorted.

    Args:
        query_packed: Codes of the queries.
        database_packed: Codes of the database.
        bits: Code length.
        query_labels: Multi-hot labels of the queries.
        database_labels: Multi-hot labels of the database.
        exclude: For each query the position of the database item that is the query itself, or -1; left out.
        pairs: How many pairs to hold at once.

    Returns:
        ``total`` and ``relevant``, a column for each distance from 0 to ``bits``.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    sides = _Sides.build(query_packed, database_packed, bits, query_labels, database_labels, exclude, pairs)
    counts = np.zeros((sides.q, bits + 1, 2), np.int64)
    columns = min(sides.n, pairs)
    for queries in sides.chunks(pairs):
        for start in range(0, sides.n, max(1, columns)):
            counts[queries] += _count(*sides.compare(queries, slice(start, min(start + columns, sides.n))), bits)
    return counts.sum(axis=2), np.ascontiguousarray(counts[:, :, 1])


def rank(
    query_packed: UInt8[np.ndarray, "q bytes"],
    database_packed: UInt8[np.ndarray, "n bytes"],
    bits: int,
    query_labels: UInt8[np.ndarray, "q classes"],
    database_labels: UInt8[np.ndarray, "n classes"],
    exclude: Int64[np.ndarray, " q"] | None = None,
    pairs: int = PAIRS,
) -> Iterator[Ranked]:
    """Histograms as `histograms` makes them, and the stable ranking as well, from one look at each pair.

    Args:
        query_packed: Codes of the queries.
        database_packed: Codes of the database.
        bits: Code length.
        query_labels: Multi-hot labels of the queries.
        database_labels: Multi-hot labels of the database.
        exclude: For each query the position of the database item that is the query itself, or -1; left out.
        pairs: How many pairs to hold at once; a whole row of the database is held in any case.

    Returns:
        The queries in order, some at a time.

    Raises:
        ValueError: If the arrays do not fit together; at the call, not at the first chunk.
    """
    return _ranked(
        _Sides.build(query_packed, database_packed, bits, query_labels, database_labels, exclude, pairs), pairs
    )


def _ranked(sides: "_Sides", pairs: int) -> Iterator[Ranked]:
    for queries in sides.chunks(pairs):
        distance, relevant = sides.compare(queries, slice(0, sides.n))
        counts = _count(distance, relevant, sides.bits)
        relevance = np.empty_like(relevant)
        for row in range(len(relevance)):
            # On integers of 8 and 16 bits NumPy's stable sort is a radix sort: linear, the faster for being stable.
            order = np.argsort(distance[row], kind="stable")
            np.take(relevant[row], order, out=relevance[row])
        yield Ranked(queries, counts.sum(axis=2), np.ascontiguousarray(counts[:, :, 1]), relevance)


@dataclass(frozen=True, eq=False)
class _Sides:
    """Both sides in the layout that the inner loops read: machine words, one row a word."""

    query_words: np.ndarray
    database_words: np.ndarray
    query_keys: np.ndarray
    database_keys: np.ndarray
    single: bool
    exclude: np.ndarray | None
    bits: int
    distance_type: type[np.unsignedinteger]

    @classmethod
    def build(
        cls,
        query_packed: np.ndarray,
        database_packed: np.ndarray,
        bits: int,
        query_labels: np.ndarray,
        database_labels: np.ndarray,
        exclude: np.ndarray | None,
        pairs: int,
    ) -> "_Sides":
        _require_same_width("codes", query_packed, database_packed)
        _require_same_width("labels", query_labels, database_labels)
        if bits < 1 or query_packed.shape[1] != -(-bits // 8):
            raise ValueError(f"codes of {bits} bits take {-(-bits // 8)} bytes a row, got {query_packed.shape[1]}")
        for side, packed, labels in (
            ("query", query_packed, query_labels),
            ("database", database_packed, database_labels),
        ):
            if len(packed) != len(labels):
                raise ValueError(
                    f"{side} codes and labels must have equal lengths, got {len(packed)} and {len(labels)}"
                )
            if bits % 8 and (packed[:, -1] >> (bits % 8)).any():
                raise ValueError(
                    f"padding bits of the {side} codes must be zero, got ones: they would count as distance"
                )
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        if exclude is not None:
            if len(exclude) != len(query_packed):
                raise ValueError(f"exclude must have one entry a query ({len(query_packed)}), got {len(exclude)}")
            if exclude.size and not -1 <= exclude.min() <= exclude.max() < len(database_packed):
                raise ValueError(
                    f"exclude must be -1 or a position in the database of {len(database_packed)} items, "
                    f"got values from {exclude.min()} to {exclude.max()}"
                )
        query_keys, database_keys, single = _label_keys(query_labels, database_labels)
        return cls(
            query_words=_words(query_packed),
            database_words=_words(database_packed),
            query_keys=query_keys,
            database_keys=database_keys,
            single=single,
            exclude=exclude,
            bits=bits,
            distance_type=_distance_type(query_packed.shape[1]),
        )

    @property
    def q(self) -> int:
        return self.query_words.shape[1]

    @property
    def n(self) -> int:
        return self.database_words.shape[1]

    def chunks(self, pairs: int) -> Iterator[slice]:
        rows = max(1, pairs // max(1, self.n))
        for start in range(0, self.q, rows):
            yield slice(start, min(start + rows, self.q))

    def compare(self, queries: slice, items: slice) -> tuple[np.ndarray, np.ndarray]:
        """Distances and relevance of some pairs; an excluded pair lies beyond every other and is not relevant."""
        shape = (queries.stop - queries.start, items.stop - items.start)
        distance, relevant = np.empty(shape, self.distance_type), np.empty(shape, np.bool_)
        _fill_distances(self.query_words[:, queries], self.database_words[:, items], distance)
        _fill_similar(self.query_keys[:, queries], self.database_keys[:, items], self.single, relevant)
        if self.exclude is not None:
            own = self.exclude[queries]
            rows = np.flatnonzero((own >= items.start) & (own < items.stop))
            columns = own[rows] - items.start
            distance[rows, columns] = self.bits + 1
            relevant[rows, columns] = False
        return distance, relevant


def _require_same_width(what: str, query: np.ndarray, database: np.ndarray) -> None:
    if query.shape[1] != database.shape[1]:
        raise ValueError(
            f"query and database {what} must have the same width, got {query.shape[1]} and {database.shape[1]}"
        )


def _distance_type(width: int) -> type[np.unsignedinteger]:
    # One value above the largest distance marks excluded pairs.
    return np.uint8 if 8 * width + 1 <= np.iinfo(np.uint8).max else np.uint16


def _words(packed: np.ndarray) -> np.ndarray:
    """Regroup bytes into the fewest machine words, (words, n). Added bytes are zero on both sides: no distance."""
    n, width = packed.shape
    size = next((size for size in (1, 2, 4, 8) if size >= width), 8)
    padded = -(-width // size) * size
    if padded != width:
        wide = np.zeros((n, padded), np.uint8)
        wide[:, :width] = packed
        packed = wide
    return np.ascontiguousarray(np.ascontiguousarray(packed).view(f"u{size}").T)


def _label_keys(query_labels: np.ndarray, database_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Labels as keys (words, n), and whether keys are to be compared (class numbers) or intersected (sets of bits).

    Where no image has two labels, sharing one means having the same class, which is one comparison however many classes
    there are.
    """
    if all(not labels.size or labels.sum(axis=1).max() <= 1 for labels in (query_labels, database_labels)):
        classes = query_labels.shape[1]
        key_type = np.min_scalar_type(classes + 1)
        # An image without a label gets a number that the other side never has.
        query, database = (
            np.where(labels.any(axis=1), labels.argmax(axis=1), nothing).astype(key_type)[None]
            if classes
            else np.full((1, len(labels)), nothing, key_type)
            for labels, nothing in ((query_labels, classes), (database_labels, classes + 1))
        )
        return query, database, True
    query, database = (_words(np.packbits(labels, axis=1)) for labels in (query_labels, database_labels))
    return query, database, False


def _fill_distances(query: np.ndarray, database: np.ndarray, out: np.ndarray) -> None:
    for start in range(0, database.shape[1], _BLOCK):
        block = out[:, start : start + _BLOCK]
        for word in range(len(query)):
            different = query[word, :, None] ^ database[word, start : start + _BLOCK]
            if word == 0:
                block[...] = np.bitwise_count(different)
            else:
                block += np.bitwise_count(different)


def _fill_similar(query: np.ndarray, database: np.ndarray, single: bool, out: np.ndarray) -> None:
    for start in range(0, database.shape[1], _BLOCK):
        block = out[:, start : start + _BLOCK]
        for word in range(len(query)):
            if single:
                np.equal(query[word, :, None], database[word, start : start + _BLOCK], out=block)
            elif word == 0:
                np.not_equal(query[word, :, None] & database[word, start : start + _BLOCK], 0, out=block)
            else:
                block |= (query[word, :, None] & database[word, start : start + _BLOCK]) != 0


def _count(distance: np.ndarray, relevant: np.ndarray, bits: int) -> np.ndarray:
    """Histogram (q, bits + 1, 2) of the distances of irrelevant and relevant items; excluded pairs fall outside."""
    # Distance and relevance in one number: one pass counts both.
    keys = np.left_shift(distance, 1, dtype=np.uint8 if 2 * bits + 3 <= np.iinfo(np.uint8).max else np.uint32)
    keys |= relevant
    counts = np.empty((len(keys), 2 * (bits + 2)), np.int64)
    for row in range(len(keys)):
        counts[row] = sum(
            np.bincount(keys[row, start : start + PAIRS], minlength=counts.shape[1])
            for start in range(0, max(1, keys.shape[1]), PAIRS)
        )
    return counts.reshape(len(keys), bits + 2, 2)[:, : bits + 1]

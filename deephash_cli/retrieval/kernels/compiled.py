"""Inner loops compiled by numba. Each query makes one pass over the database, with XOR, popcount and counting together.

The database is processed in blocks. Distances and shared labels of a block are computed first, in loops that the
compiler turns into vector instructions; their results stay in the nearest cache. The functions release Python's
interpreter lock, so that threads can work on different queries. Compiled code is cached on disk beside this file, or
in numba's cache folder if the former is read-only.
"""

import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, no_type_check

import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt32, UInt64
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 2048  # database items processed at a time
LANES = 64  # items compared at once: the answers are the 64 bits of one machine word
# A note describes a relevant item in one 64-bit word: the number of items seen at its distance so far, itself included
# (32 bits); its distance (17 bits); and, if images can have several labels, the number of shared labels (15 bits).
_ONE, _DISTANCE, _GRADE = np.uint64(1), np.uint64(32), np.uint64(49)
_LOW_17, _LOW_32 = np.uint64(2**17 - 1), np.uint64(2**32 - 1)

_inner = njit(nogil=True, error_model="numpy")


@intrinsic
@no_type_check
def _popcount(_typing, _word):
    def generate(_context, builder, _signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@no_type_check
def _counter_of_bits(operation):
    """Make a loop that counts the 1 bits of an operation on a query's words and each item's, from ``start`` on."""

    @no_type_check
    def count(query, database, start, out):
        stop = start + out.shape[0]
        word, items = query[0], database[0, start:stop]
        for j in range(out.shape[0]):
            out[j] = _popcount(operation(word, items[j]))
        for w in range(1, query.shape[0]):
            word, items = query[w], database[w, start:stop]
            for j in range(out.shape[0]):
                out[j] += _popcount(operation(word, items[j]))

    # Numba distinguishes functions of the same name by a counter, which differs between processes. With one name for
    # both, a process that loads code cached by two other processes could get one function in place of the other.
    count.__qualname__ += f"_{operation.__name__}"
    return _inner(count)


_distances = _counter_of_bits(operator.xor)
_grades = _counter_of_bits(operator.and_)  # number of labels that items share with the query


@intrinsic
@no_type_check
def _equal(_typing, array, _start, _value):
    """Compare LANES elements from ``start`` on with ``value``: one bit per element, the first in the lowest place."""

    def generate(context, builder, _signature, arguments):
        vector = ir.VectorType(context.get_data_type(array.dtype), LANES)
        data = context.make_array(array)(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, array, data, [arguments[1]], wraparound=False)
        elements = builder.load(builder.bitcast(place, vector.as_pointer()), align=1)
        unknown, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        value = builder.shuffle_vector(builder.insert_element(unknown, arguments[2], first), unknown, everywhere)
        return builder.bitcast(builder.icmp_unsigned("==", elements, value), ir.IntType(64))

    return types.uint64(array, types.intp, array.dtype), generate


@_inner
@no_type_check
def _tally(distance, seen, states):
    """Count the items of a block at each distance, and store the count at the end of each group of LANES items.

    The block must consist of whole groups. Every group is compared with each distance from the smallest to the largest
    in the block: there are few distances, and no comparison waits for a counter in memory.
    """
    nearest, farthest = distance[0], distance[0]
    for j in range(distance.shape[0]):
        if distance[j] < nearest:
            nearest = distance[j]
        if distance[j] > farthest:
            farthest = distance[j]
    for d in range(nearest, farthest + 1):
        count, state = seen[d], states[d]
        for lane in range(distance.shape[0] // LANES):
            count += _popcount(_equal(distance, lane * LANES, distance.dtype.type(d)))
            state[lane] = count
        seen[d] = count


@no_type_check
def _count_classes(
    query_words, database_words, members, spans, exclude, cuts, distance, notes, shared, precision_sums, hits
):
    n, distances = database_words.shape[1], shared.shape[1]
    seen, states = np.empty(distances + 1, np.uint64), np.empty((distances + 1, BLOCK // LANES), np.uint64)
    nearer, relevant = np.empty(distances, np.int64), np.empty(distances, np.int64)
    for i in range(query_words.shape[0]):
        for d in range(distances):
            relevant[d] = 0
        for d in range(distances + 1):  # each counter holds its distance in the same bits as a note
            seen[d] = np.uint64(d) << _DISTANCE
        member, last = spans[i, 0], spans[i, 1]
        n_notes = 0
        own = exclude[i]
        for part in range(2):  # the items before the excluded item, then those after it
            start = 0 if part == 0 else own + 1
            stop = n if part == 1 else max(own, 0)
            if member < last and members[member] == start - 1:
                member += 1
            for first in range(start, stop, BLOCK):
                size = min(BLOCK, stop - first)
                _distances(query_words[i], database_words, first, distance[:size])
                whole = -(-size // LANES) * LANES
                for j in range(size, whole):
                    distance[j] = distances  # fill the last group with a distance whose count is not used
                _tally(distance[:whole], seen, states)
                while member < last and members[member] < first + size:
                    # Items seen up to this one: the count at the end of its group less those after it in the group.
                    j = members[member] - first
                    d = distance[j]
                    lane = j >> 6  # index of its group of 64
                    later = _popcount(_equal(distance, lane << 6, d) >> np.uint64(j & 63) >> _ONE)
                    notes[n_notes] = states[d, lane] - later
                    relevant[d] += 1
                    n_notes += 1
                    member += 1
        for d in range(distances):
            total = np.int64(seen[d] & _LOW_32)
            shared[i, d, 0], shared[i, d, 1] = total - relevant[d], relevant[d]
        _average(notes[:n_notes], shared[i], cuts, nearer, relevant, precision_sums[i], hits[i])


@no_type_check
def _count_labels(
    query_words, database_words, query_labels, database_labels, exclude, cuts, distance, grade, notes, shared,
    precision_sums, hits,
):  # fmt: skip
    n, distances, grades = database_words.shape[1], shared.shape[1], shared.shape[2]
    seen = np.empty(distances, np.uint64)
    nearer, relevant = np.empty(distances, np.int64), np.empty(distances, np.int64)
    for i in range(query_words.shape[0]):
        for d in range(distances):
            seen[d] = np.uint64(d) << _DISTANCE
            for g in range(grades):
                shared[i, d, g] = 0
        n_notes = np.uint64(0)
        own = exclude[i]
        for part in range(2):
            start = 0 if part == 0 else own + 1
            stop = n if part == 1 else max(own, 0)
            for first in range(start, stop, BLOCK):
                size = min(BLOCK, stop - first)
                _distances(query_words[i], database_words, first, distance[:size])
                _grades(query_labels[i], database_labels, first, grade[:size])
                for j in range(size):
                    # Every item writes a note, which the next one overwrites unless this item is relevant: a branch
                    # would often be mispredicted.
                    d = distance[j]
                    note = seen[d] + _ONE
                    seen[d] = note
                    notes[n_notes] = note | (np.uint64(grade[j]) << _GRADE)
                    n_notes += np.uint64(grade[j] > 0)
        for note in notes[:n_notes]:
            shared[i, (note >> _DISTANCE) & _LOW_17, note >> _GRADE] += 1
        for d in range(distances):
            shared[i, d, 0] = np.int64(seen[d] & _LOW_32)
            for g in range(1, grades):
                shared[i, d, 0] -= shared[i, d, g]
        _average(notes[:n_notes], shared[i], cuts, nearer, relevant, precision_sums[i], hits[i])


@_inner
@no_type_check
def _average(notes, shared, cuts, nearer, hits_nearer, precision_sums, hits):
    """Sum the precisions at the relevant items of one query, in the order of the database."""
    total, found = 0, 0
    for d in range(shared.shape[0]):
        nearer[d], hits_nearer[d] = total, found
        total += shared[d, 0]
        for g in range(1, shared.shape[1]):
            total, found = total + shared[d, g], found + shared[d, g]
    last_cut, precision_sum = 0, 0.0
    for c in range(cuts.shape[0]):
        precision_sums[c], hits[c], last_cut = 0.0, 0, max(last_cut, cuts[c])
    for note in notes:
        d = (note >> _DISTANCE) & _LOW_17
        hits_nearer[d] += 1
        rank = nearer[d] + np.int64(note & _LOW_32)
        precision = np.float64(hits_nearer[d]) / np.float64(rank)
        precision_sum += precision
        if rank <= last_cut:
            for c in range(cuts.shape[0]):
                if rank <= cuts[c]:
                    precision_sums[c] += precision
                    hits[c] += 1
    precision_sums[cuts.shape[0]], hits[cuts.shape[0]] = precision_sum, notes.shape[0]


@no_type_check
def _nearest(query_words, database_words, distance, out_distance, out_position):
    n, k = database_words.shape[1], out_distance.shape[1]
    room = 2 * k + BLOCK
    candidate, position = np.empty(room, np.int64), np.empty(room, np.int64)
    at = np.zeros(64 * query_words.shape[1] + 2, np.int64)
    for i in range(query_words.shape[0]):
        worst = at.shape[0]  # largest distance of a candidate
        count = 0
        for first in range(0, n, BLOCK):
            size = min(BLOCK, n - first)
            near = distance[:size]
            _distances(query_words[i], database_words, first, near)
            any_near = False
            for j in range(size):
                any_near |= near[j] <= worst
            if any_near:
                for j in range(size):
                    candidate[count], position[count] = near[j], first + j
                    count += near[j] <= worst
            if count >= 2 * k or first + size >= n:
                # Keep the first k by distance and position. A later item must be nearer than the last of them.
                at[:] = 0
                for c in range(count):
                    at[candidate[c] + 1] += 1
                for d in range(1, at.shape[0]):
                    at[d] += at[d - 1]
                for c in range(count):
                    d = candidate[c]
                    if at[d] < k:
                        out_distance[i, at[d]], out_position[i, at[d]] = d, position[c]
                    at[d] += 1
                count = min(count, k)
                for c in range(count):
                    candidate[c], position[c] = out_distance[i, c], out_position[i, c]
                if count == k:
                    worst = candidate[k - 1] - 1


@no_type_check
def _within(query_words, database_words, radius, distance, out_distance, out_position, counts):
    n = database_words.shape[1]
    for i in range(query_words.shape[0]):
        count = 0
        for first in range(0, n, BLOCK):
            size = min(BLOCK, n - first)
            near = distance[:size]
            _distances(query_words[i], database_words, first, near)
            any_near = False
            for j in range(size):
                any_near |= near[j] <= radius[0]
            if any_near:
                for j in range(size):
                    if near[j] <= radius[0]:
                        out_distance[count], out_position[count] = near[j], first + j
                        count += 1
        counts[i] = count


@no_type_check
def _sums(tables, codes, sums):
    n = codes.shape[1]
    for i in range(tables.shape[0]):
        for first in range(0, n, BLOCK):
            stop = min(first + BLOCK, n)
            table = tables[i, 0]
            for j in range(first, stop):
                sums[i, j] = table[codes[0, j]]
            for byte in range(1, codes.shape[0]):
                table = tables[i, byte]
                for j in range(first, stop):
                    sums[i, j] += table[codes[byte, j]]


@no_type_check
def _groups(keys, counts, tolerance, totals, hits, found):
    for i in range(keys.shape[0]):
        ranked, of_group, hits_of_group = keys[i, : counts[i]], totals[i], hits[i]
        # Kinds of groups: 0 if no item is relevant, 1 if all are, 2 if some are. Nothing here branches on a kind, which
        # would often be mispredicted: a group of the same kind as the one before replaces its numbers.
        group, last, total, relevant_total, start, relevant = -1, -1, 0, 0, 0, 0
        for j in range(ranked.shape[0]):
            relevant += ranked[j] & 1
            if j + 1 < ranked.shape[0] and (ranked[j + 1] >> 1) - (ranked[j] >> 1) <= tolerance[0]:
                continue
            size = j + 1 - start
            kind = np.int64(relevant > 0) << np.int64(relevant < size)
            goes_on = np.int64(kind == last) & np.int64(kind < 2)
            group += 1 - goes_on
            total, relevant_total = total * goes_on + size, relevant_total * goes_on + relevant
            of_group[group], hits_of_group[group] = total, relevant_total
            last, start, relevant = kind, j + 1, 0
        found[i] = group + 1


def count_classes(
    query_words: UInt64[np.ndarray, "q words"],
    database_words: UInt64[np.ndarray, "words n"],
    members: UInt32[np.ndarray, " n"],
    spans: Int64[np.ndarray, "q 2"],
    exclude: Int64[np.ndarray, " q"],
    cuts: Int64[np.ndarray, " cuts"],
    bits: int,
) -> tuple[Int64[np.ndarray, "q distances 2"], Float64[np.ndarray, "q sums"], Int64[np.ndarray, "q sums"]]:
    """Counts when every image has at most one class: see `ranking.count`.

    Args:
        query_words: Codes of the queries, as 64-bit words.
        database_words: Codes of the database, as 64-bit words.
        members: Positions of the database items, class by class; ascending within a class.
        spans: Start and end, in ``members``, of the items of each query's class.
        exclude: Position of the item to exclude for each query, or -1.
        cuts: Cut-offs of the sums of precisions, in ranks.
        bits: Code length.

    Returns:
        Number of items at each distance that share no label and that share one; sums of precisions for each cut-off and
        for the whole order; the number of relevant items in each sum.
    """
    inputs = (query_words, database_words, members, spans, exclude, cuts)
    longest = int((spans[:, 1] - spans[:, 0]).max(initial=0))
    work = np.empty(BLOCK, np.min_scalar_type(bits + 1)), np.empty(longest, np.uint64)
    outputs = (*work, *_results(len(query_words), bits, 2, len(cuts)))
    _run(_count_classes, inputs, outputs)
    return outputs[2:]


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
    """Counts when images can have several labels, given as bit sets: see `ranking.count`.

    Args:
        query_words: Codes of the queries, as 64-bit words.
        database_words: Codes of the database, as 64-bit words.
        query_labels: Labels of the queries, one bit per class, as 64-bit words.
        database_labels: Labels of the database, one bit per class, as 64-bit words.
        exclude: Position of the item to exclude for each query, or -1.
        cuts: Cut-offs of the sums of precisions, in ranks.
        bits: Code length.
        grades: An upper limit of the number of labels that a query and an item share, plus one.

    Returns:
        Number of items at each distance that share 0, 1, ... labels; sums of precisions for each cut-off and for the
        whole order; the number of relevant items in each sum.
    """
    inputs = (query_words, database_words, query_labels, database_labels, exclude, cuts)
    work = (
        np.empty(BLOCK, np.min_scalar_type(bits)),
        np.empty(BLOCK, np.min_scalar_type(grades - 1)),
        np.empty(database_words.shape[1] + 1, np.uint64),
    )
    outputs = (*work, *_results(len(query_words), bits, grades, len(cuts)))
    _run(_count_labels, inputs, outputs)
    return outputs[3:]


def nearest(
    query_words: UInt64[np.ndarray, "q words"], database_words: UInt64[np.ndarray, "words n"], bits: int, k: int
) -> tuple[Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Distances and positions of the first ``k`` items by distance and position. See `ranking.nearest`."""
    inputs = (query_words, database_words)
    outputs = (
        np.empty(BLOCK, np.min_scalar_type(bits)),
        *(np.empty((len(query_words), k), np.int64) for _ in range(2)),
    )
    _run(_nearest, inputs, outputs)
    return outputs[1], outputs[2]


def within(
    query_words: UInt64[np.ndarray, "1 words"], database_words: UInt64[np.ndarray, "words n"], bits: int, radius: int
) -> tuple[Int64[np.ndarray, " hits"], Int64[np.ndarray, " hits"]]:
    """Distances and positions of the items within ``radius`` of one query. See `ranking.within`."""
    n = database_words.shape[1]
    inputs = (query_words, database_words, np.array([min(radius, bits)]))
    # Space for the whole database; the system provides memory only for the part that is written.
    work = np.empty(BLOCK, np.min_scalar_type(bits))
    distances, positions, counts = np.empty(n, np.min_scalar_type(bits)), np.empty(n, np.int64), np.zeros(1, np.int64)
    _run(_within, inputs, (work, distances, positions, counts))
    distances, positions = distances[: counts[0]], positions[: counts[0]]
    order = np.argsort(distances, kind="stable")  # linear time on small integers
    return distances[order].astype(np.int64), positions[order]


def sums(tables: Int64[np.ndarray, "q bytes 256"], codes: UInt8[np.ndarray, "bytes n"]) -> Int64[np.ndarray, "q n"]:
    """Add up, for each query and item, the entries of the query's tables at the bytes of the item's code."""
    out = np.empty((len(tables), codes.shape[1]), np.int64)
    _run(_sums, (tables, codes), (out,))
    return out


def groups(
    keys: Int64[np.ndarray, "q n"], counts: Int64[np.ndarray, " q"], tolerance: int
) -> tuple[Int64[np.ndarray, "q groups"], Int64[np.ndarray, "q groups"]]:
    """Count the items, and the relevant items, of each group of ties. See `ranking.grouped`.

    Args:
        keys: For each query in ascending order: twice the score of an item, plus 1 if it is relevant.
        counts: Number of keys of each query, from the first, that are items.
        tolerance: Difference of the scores of two neighbours in this order up to which they are tied.

    Returns:
        Numbers of items and of relevant items. Neighbouring groups without a relevant item are one group here, and so
        are those with relevant items only: the order inside them does not matter. Zeros follow the last group.
    """
    totals, hits = (np.empty(keys.shape, np.int64) for _ in range(2))  # the system provides memory only where written
    found = np.empty(len(keys), np.int64)
    _run(_groups, (keys, counts, np.array([tolerance])), (totals, hits, found))
    most = max(1, int(found.max(initial=0)))
    is_group = np.arange(most) < found[:, None]
    return totals[:, :most] * is_group, hits[:, :most] * is_group


def _run(function: Callable[..., None], inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    # Inputs are declared as read-only arrays: then arrays that can be written to are accepted as well.
    read = [_array(array.dtype, array.ndim, readonly=True) for array in inputs]
    written = [_array(array.dtype, array.ndim, readonly=False) for array in outputs]
    _compiled(function, *read, *written)(*inputs, *outputs)


@cache
def _compiled(function: Callable[..., None], *argument_types: Any) -> Callable[..., None]:
    try:
        return njit(argument_types, nogil=True, error_model="numpy", cache=True)(function)
    except (RuntimeError, OSError):  # no folder to cache it in, or no space left
        return njit(argument_types, nogil=True, error_model="numpy")(function)


def _results(q: int, bits: int, grades: int, cuts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.empty((q, bits + 1, grades), np.int64), np.empty((q, cuts + 1)), np.empty((q, cuts + 1), np.int64)


@cache
def _array(dtype: np.dtype, dimensions: int, readonly: bool) -> Any:
    return types.Array(getattr(types, dtype.name), dimensions, "C", readonly=readonly)

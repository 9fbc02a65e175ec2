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
STEP = 32  # a search for many items looks at one of so many blocks first
LANES = 64  # items compared at once: the answers are the 64 bits of one machine word
NOTES = 64  # notes processed at a time: the processor begins the next ones while it adds up the precisions of these
# A note describes a relevant item in one 64-bit word: the number of items seen at its distance so far, itself included
# (32 bits); its distance (17 bits); and, if images can have several labels, the number of shared labels (15 bits).
_ONE, _DISTANCE, _GRADE = np.uint64(1), np.uint64(32), np.uint64(49)
_HIT = np.uint64(2**32)  # a rank and its number of hits: the items up to it (32 bits), and the relevant ones among them
_PLACE, _LOW_47 = np.uint64(47), np.uint64(2**47 - 1)  # a found item: its distance, then its position (47 bits)
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


@no_type_check
def _comparison(predicate):
    """Make the code of a comparison of LANES elements of an array with one value, which numba's compiler inserts."""

    def generate(context, builder, signature, arguments):
        array = signature.args[0]
        vector = ir.VectorType(context.get_data_type(array.dtype), LANES)
        data = context.make_array(array)(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, array, data, [arguments[1]], wraparound=False)
        elements = builder.load(builder.bitcast(place, vector.as_pointer()), align=1)
        unknown, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        value = builder.shuffle_vector(builder.insert_element(unknown, arguments[2], first), unknown, everywhere)
        return builder.bitcast(builder.icmp_unsigned(predicate, elements, value), ir.IntType(64))

    return generate


@intrinsic
@no_type_check
def _equal(_typing, array, _start, _value):
    """Compare LANES elements from ``start`` on with ``value``: one bit per element, the first in the lowest place."""
    return types.uint64(array, types.intp, array.dtype), _comparison("==")


@intrinsic
@no_type_check
def _at_most(_typing, array, _start, _value):
    """Find the elements that are at most ``value`` among LANES of them, as `_equal` finds those that equal it."""
    return types.uint64(array, types.intp, array.dtype), _comparison("<=")


@intrinsic
@no_type_check
def _lowest(_typing, _word):
    """Return the place of the lowest 1 bit of a word that is not 0."""

    def generate(_context, builder, _signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


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


@_inner
@no_type_check
def _first_from(members, start, stop, position):
    """Return the first of the places from ``start`` to ``stop`` whose member is at this position or behind it."""
    while start < stop:
        middle = (start + stop) >> 1
        if members[middle] < position:
            start = middle + 1
        else:
            stop = middle
    return start


@_inner
@no_type_check
def _note(members, member, end, first, distance, states, relevant, notes, n_notes):
    """Write the notes of the relevant items of a block, and count them by distance."""
    some, some_notes = members[member:end], notes[n_notes:]
    for k in range(some.shape[0]):  # from 0, because numba tests whether any other index is negative
        j = np.uint64(some[k]) - np.uint64(first)
        d = distance[j]
        lane = j >> np.uint64(6)  # index of its group of 64
        # Items seen up to this one: the count at the end of its group less those after it in the group.
        later = _popcount(_equal(distance, np.int64(lane << np.uint64(6)), d) >> (j & np.uint64(63)) >> _ONE)
        some_notes[k] = states[d, lane] - later
        relevant[d] += 1


@no_type_check
def _count_classes(
    query_words, database_words, members, spans, exclude, cuts, distance, notes, shared, precision_sums, hits
):
    n, distances = database_words.shape[1], shared.shape[1]
    seen, states = np.empty(distances + 1, np.uint64), np.empty((distances + 1, BLOCK // LANES), np.uint64)
    nearer, relevant = np.empty(distances, np.uint64), np.empty(distances, np.int64)
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
                end = _first_from(members, member, last, first + size)
                _note(members, member, end, first, distance, states, relevant, notes, n_notes)
                member, n_notes = end, n_notes + end - member
        for d in range(distances):
            total = np.int64(seen[d] & _LOW_32)
            shared[i, d, 0], shared[i, d, 1] = total - relevant[d], relevant[d]
        _average(notes[:n_notes], shared[i], cuts, nearer, precision_sums[i], hits[i])


@no_type_check
def _count_labels(
    query_words, database_words, query_labels, database_labels, exclude, cuts, distance, grade, notes, shared,
    precision_sums, hits,
):  # fmt: skip
    n, distances, grades = database_words.shape[1], shared.shape[1], shared.shape[2]
    seen, nearer = np.empty(distances, np.uint64), np.empty(distances, np.uint64)
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
        _average(notes[:n_notes], shared[i], cuts, nearer, precision_sums[i], hits[i])


@_inner
@no_type_check
def _average(notes, shared, cuts, nearer, precision_sums, hits):
    """Sum the precisions at the relevant items of one query, in the order of the database.

    Args:
        notes: Notes of the relevant items.
        shared: Number of items at each distance that share 0, 1, ... labels.
        cuts: Ranks up to which each sum goes; the last one is the number of items.
        nearer: Space for the rank before the first item at each distance, and its number of hits.
        precision_sums: Space for the sums.
        hits: Space for the number of relevant items in each sum.
    """
    total = np.uint64(0)
    for d in range(shared.shape[0]):
        nearer[d] = total
        for g in range(shared.shape[1]):
            total += np.uint64(shared[d, g]) * (_ONE if g == 0 else _ONE + _HIT)
    ranks, precisions = np.empty(NOTES), np.empty(NOTES)
    precision_sums[:], hits[:] = 0, 0
    last = precision_sums.shape[0] - 1
    for first in range(0, notes.shape[0], NOTES):
        size = min(NOTES, notes.shape[0] - first)
        some = notes[first : first + size]
        for k in range(size):
            d = (some[k] >> _DISTANCE) & _LOW_17
            hit = nearer[d] + _HIT
            nearer[d] = hit
            some[k] = hit + (some[k] & _LOW_32)
        for k in range(size):
            ranks[k] = np.float64(some[k] & _LOW_32)
            precisions[k] = np.float64(some[k] >> _DISTANCE) / ranks[k]
        whole = precision_sums[last]
        for c in range(max(1, last)):
            count, cut = 0, cuts[c]
            # Each addition waits for the one before it: the whole sum is free beside that up to a cut-off.
            whole, to_cut = precision_sums[last], precision_sums[c]
            for k in range(size):
                whole += precisions[k]
                is_inside = ranks[k] <= cut
                to_cut += precisions[k] if is_inside else 0.0
                count += is_inside
            precision_sums[c], hits[c] = to_cut, hits[c] + count
        precision_sums[last], hits[last] = whole, first + size


@_inner
@no_type_check
def _collect(query, database, step, k, limit, distance, found, seen):
    """Collect the items that may be among the ``k`` nearest to a query.

    Args:
        query: Words of the query.
        database: Words of the database, (words, n).
        step: 1 to look at every block of items, 2 to look at every second one, and so on.
        k: Number of nearest items.
        limit: Largest distance of an item to collect.
        distance: Space for the distances of a block.
        found: Space for the items, in the order of the database.
        seen: Space for the number of items at each distance.

    Returns:
        The number of items in ``found``; the distance of the k-th nearest of them, of which ``seen`` has the number of
        items up to there; and this number in total. If it is below ``k``, there are fewer items within ``limit``.
    """
    farthest, inside, count = limit, 0, 0
    seen[:] = 0
    for first in range(0, database.shape[1], step * BLOCK):
        size = min(BLOCK, database.shape[1] - first)
        _distances(query, database, first, distance[:size])
        before = count
        for start in range(0, size, LANES):
            near = _at_most(distance, start, distance.dtype.type(limit))
            if size - start < LANES:  # what follows the last item is not an item
                near &= (_ONE << np.uint64(size - start)) - _ONE
            while near:
                j = start + np.int64(_lowest(near))
                found[count] = np.uint64(distance[j]) << _PLACE | np.uint64(first + j)
                seen[distance[j]] += 1
                count += 1
                near &= near - _ONE
        inside += count - before
        while inside - seen[farthest] >= k:
            inside -= seen[farthest]
            farthest -= 1
        if inside < k:
            continue
        limit = farthest - 1  # a later item must be nearer than the k-th, because ties go by position
        if limit < 0:
            break
        if count + BLOCK > found.shape[0]:  # drop the items that are no longer among the k nearest
            seen[farthest] -= inside - k
            inside, left, before, count = k, seen[farthest], count, 0
            for c in range(before):
                d = np.int64(found[c] >> _PLACE)
                found[count] = found[c]
                count += d < farthest or (d == farthest and left > 0)
                left -= d == farthest
    return count, farthest, inside


@no_type_check
def _nearest(query_words, database_words, distance, found, out_distance, out_position):
    n, k = database_words.shape[1], out_distance.shape[1]
    seen = np.empty(64 * query_words.shape[1] + 1, np.int64)
    largest = min(seen.shape[0] - 1, np.int64(np.iinfo(distance.dtype).max))
    for i in range(query_words.shape[0]):
        limit = largest
        if k >= 8 * STEP and n >= 4 * STEP * BLOCK:
            # A sample of the blocks tells about how far the k-th item is, so that few farther items are collected.
            share = k / STEP
            _, farthest, inside = _collect(
                query_words[i], database_words, STEP, int(share + 4 * np.sqrt(share)), largest, distance, found, seen
            )
            limit = farthest
        count, farthest, inside = _collect(query_words[i], database_words, 1, k, limit, distance, found, seen)
        if inside < k:  # the sample was not like the rest
            count, farthest, _ = _collect(query_words[i], database_words, 1, k, largest, distance, found, seen)
        start = 0  # each distance starts after the items that are nearer
        for d in range(farthest + 1):
            seen[d], start = start, start + seen[d]
        for c in range(count):
            d = np.int64(found[c] >> _PLACE)
            if d <= farthest and seen[d] < k:
                out_distance[i, seen[d]], out_position[i, seen[d]] = d, np.int64(found[c] & _LOW_47)
                seen[d] += 1


@_inner
@no_type_check
def _is_before(score, distance, position, other_score, other_distance, other_position):
    """Return whether an item comes before another: by score, largest first, then by distance, then by position."""
    if score != other_score:
        return score > other_score
    if distance != other_distance:
        return distance < other_distance
    return position < other_position


@_inner
@no_type_check
def _sink(scores, distances, positions, size, at):
    """Repair a heap whose first item is the last in order, after the item at ``at`` has changed."""
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _is_before(
            scores[child], distances[child], positions[child],
            scores[child + 1], distances[child + 1], positions[child + 1],
        ):  # fmt: skip
            child += 1
        if not _is_before(
            scores[at], distances[at], positions[at], scores[child], distances[child], positions[child]
        ):  # fmt: skip
            return
        _swap(scores, distances, positions, at, child)
        at = child


@_inner
@no_type_check
def _swap(scores, distances, positions, a, b):
    scores[a], scores[b] = scores[b], scores[a]
    distances[a], distances[b] = distances[b], distances[a]
    positions[a], positions[b] = positions[b], positions[a]


@_inner
@no_type_check
def _offer(scores, distances, positions, count, score, distance, position):
    """Keep an item if it is among the first so far, and return the number of items that are kept."""
    k = scores.shape[0]
    if count < k:
        scores[count], distances[count], positions[count] = score, distance, position
        if count + 1 == k:
            for at in range(k // 2 - 1, -1, -1):
                _sink(scores, distances, positions, k, at)
        return count + 1
    if _is_before(score, distance, position, scores[0], distances[0], positions[0]):
        scores[0], distances[0], positions[0] = score, distance, position
        _sink(scores, distances, positions, k, 0)
    return k


@_inner
@no_type_check
def _settle(scores, distances, positions, count):
    """Sort the items that were kept, and mark the places that are left as empty."""
    if count < scores.shape[0]:  # not yet a heap
        for at in range(count // 2 - 1, -1, -1):
            _sink(scores, distances, positions, count, at)
    for size in range(count - 1, 0, -1):
        _swap(scores, distances, positions, 0, size)
        _sink(scores, distances, positions, size, 0)
    scores[count:], distances[count:], positions[count:] = np.nan, -1, -1


@_inner
@no_type_check
def _tabulate(values, table):
    """Write into a row for each byte of a code what each value of this byte adds to the score."""
    for byte in range(table.shape[0]):
        row, size = table[byte], 1
        row[0] = 0.0
        for value in values[8 * byte : 8 * byte + 8]:
            for j in range(size):
                row[size + j] = row[j] + value  # this bit is 1
                row[j] -= value  # this bit is 0
            size *= 2


@no_type_check
def _rescore(values, codes, distances, positions, out_score, out_distance, out_position):
    k, table = out_score.shape[1], np.empty((codes.shape[1], 256))
    for i in range(values.shape[0]):
        _tabulate(values[i], table)
        kept = out_score[i], out_distance[i], out_position[i]
        count = 0
        for c in range(positions.shape[1]):
            position = positions[i, c]
            if position < 0:
                continue
            score = 0.0
            for byte in range(codes.shape[1]):
                score += table[byte, codes[position, byte]]
            if count < k or score >= kept[0][0]:
                count = _offer(*kept, count, score, distances[i, c], position)
        _settle(*kept, count)


@no_type_check
def _asymmetric(values, queries, codes, exclude, out_score, out_distance, out_position):
    k, table = out_score.shape[1], np.empty((codes.shape[1], 256))
    for i in range(values.shape[0]):
        _tabulate(values[i], table)
        kept = out_score[i], out_distance[i], out_position[i]
        count = 0
        for position in range(codes.shape[0]):
            score = 0.0
            for byte in range(codes.shape[1]):
                score += table[byte, codes[position, byte]]
            if (count < k or score >= kept[0][0]) and position != exclude[i]:
                distance = np.int64(0)
                for byte in range(codes.shape[1]):
                    distance += np.int64(_popcount(np.uint64(queries[i, byte] ^ codes[position, byte])))
                count = _offer(*kept, count, score, distance, position)
        _settle(*kept, count)


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
    inputs = (query_words, database_words, members, spans, exclude, _sums_to(cuts, database_words))
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
    inputs = (query_words, database_words, query_labels, database_labels, exclude, _sums_to(cuts, database_words))
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
        np.empty(2 * k + 8 * BLOCK, np.uint64),
        *(np.empty((len(query_words), k), np.int64) for _ in range(2)),
    )
    _run(_nearest, inputs, outputs)
    return outputs[2], outputs[3]


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


def rescore(
    values: Float64[np.ndarray, "q places"],
    codes: UInt8[np.ndarray, "n bytes"],
    distances: Int64[np.ndarray, "q found"],
    positions: Int64[np.ndarray, "q found"],
    k: int,
) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Scores, distances and positions of the first ``k`` of the given items. See `ranking.rescore`.

    Args:
        values: Continuous codes of the queries, one value for each bit of the bytes of a code; 0 for padding bits.
        codes: Packed codes of the database.
        distances: Distances of the items.
        positions: Positions of the items in the database; items with a negative position are left out.
        k: Number of items to keep.
    """
    outputs = _ranked(len(values), k)
    _run(_rescore, (values, codes, distances, positions), outputs)
    return outputs


def asymmetric(
    values: Float64[np.ndarray, "q places"],
    queries: UInt8[np.ndarray, "q bytes"],
    codes: UInt8[np.ndarray, "n bytes"],
    exclude: Int64[np.ndarray, " q"],
    k: int,
) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Scores, distances and positions of the first ``k`` items of the whole database. See `ranking.asymmetric`.

    Args:
        values: Continuous codes of the queries, as for `rescore`.
        queries: Packed codes of the queries, which the distances are from.
        codes: Packed codes of the database.
        exclude: Position of the item to exclude for each query, or -1.
        k: Number of items to find.
    """
    outputs = _ranked(len(values), k)
    _run(_asymmetric, (values, queries, codes, exclude), outputs)
    return outputs


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


def _sums_to(cuts: Int64[np.ndarray, " cuts"], database_words: np.ndarray) -> Float64[np.ndarray, " sums"]:
    """Return the ranks up to which precisions are summed: the cut-offs, and the number of items."""
    return np.append(cuts, database_words.shape[1]).astype(np.float64)


def _results(q: int, bits: int, grades: int, cuts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.empty((q, bits + 1, grades), np.int64), np.empty((q, cuts + 1)), np.empty((q, cuts + 1), np.int64)


def _ranked(q: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.empty((q, k)), np.empty((q, k), np.int64), np.empty((q, k), np.int64)


@cache
def _array(dtype: np.dtype, dimensions: int, readonly: bool) -> Any:
    return types.Array(getattr(types, dtype.name), dimensions, "C", readonly=readonly)

"""Retrieval metrics: arrays in, one value a query out; the caller averages.

Codes of K bits have only K + 1 distances, so most database items tie with many others. A metric that reads a sorted
list then depends on an order that nobody chose. Here all but one metric are functions of two histograms (how many
items, and how many relevant ones, lie at each distance), as exact expectations over every order that the ties allow.
McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008; He, Cakir, Bargal and Sclaroff, "Hashing as tie-aware learning to rank", CVPR 2018.

A query without a relevant item scores 0 in every metric: it is never skipped.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

Denominator = Literal["hits", "min", "relevant"]

_ROWS = 2**16  # codes to unpack at once

_SERIES_FROM = 64  # from here on four terms of the asymptotic series give every digit of a float64
_FROM, _TO = np.arange(_SERIES_FROM + 1)[:, None], np.arange(_SERIES_FROM + 1)[None, :]
# Sum of 1/t for FROM < t <= TO. Each entry is its own sum: a difference of two harmonic numbers would lose digits.
_SHORT_SUMS = np.cumsum(np.where(_TO > _FROM, 1.0 / np.maximum(_TO, 1), 0.0), axis=1)


@dataclass(frozen=True, eq=False)
class Histograms:
    """How many database items, and how many relevant ones, lie at each distance 0, 1, ... from each query.

    Raises:
        ValueError: If a count is negative, or more items are relevant than there are.
    """

    total: Int64[np.ndarray, "q distances"]
    relevant: Int64[np.ndarray, "q distances"]

    def __post_init__(self) -> None:
        if self.total.shape != self.relevant.shape or self.total.ndim != 2 or self.total.shape[1] == 0:
            raise ValueError(
                f"total and relevant must have the same shape (queries, distances), "
                f"got {self.total.shape} and {self.relevant.shape}"
            )
        if (self.relevant < 0).any() or (self.relevant > self.total).any():
            raise ValueError("relevant must lie between 0 and total at every distance, got counts outside")


def average_precision(h: Histograms) -> Float64[np.ndarray, " q"]:
    """Average precision over the whole ranking, in expectation over all orders of the ties. Divides by N+.

    >>> h = Histograms(total=np.array([[3, 1]]), relevant=np.array([[1, 0]]))
    >>> average_precision(h).round(6)  # the relevant item is first, second or third: (1 + 1/2 + 1/3) / 3
    array([0.611111])
    """
    return _over(_expected_terms(h).sum(axis=1), h.relevant.sum(axis=1))


def average_precision_best(h: Histograms) -> Float64[np.ndarray, " q"]:
    """Average precision if relevant items came first in every tie: the upper bound over all orders.

    >>> average_precision_best(Histograms(total=np.array([[3, 1]]), relevant=np.array([[1, 0]])))
    array([1.])
    """
    nearer, hits = _before(h.total), _before(h.relevant)
    # Sum over t = 1..p of (N+ + t) / (N + t), the relevant items at ranks N + 1 to N + p.
    terms = h.relevant + (hits - nearer) * _harmonic(nearer, h.relevant)
    return _over(terms.sum(axis=1), h.relevant.sum(axis=1))


def average_precision_worst(h: Histograms) -> Float64[np.ndarray, " q"]:
    """Average precision if relevant items came last in every tie: the lower bound over all orders.

    >>> average_precision_worst(Histograms(total=np.array([[4, 1]]), relevant=np.array([[1, 0]])))
    array([0.25])
    """
    nearer, hits = _before(h.total) + h.total - h.relevant, _before(h.relevant)
    terms = h.relevant + (hits - nearer) * _harmonic(nearer, h.relevant)
    return _over(terms.sum(axis=1), h.relevant.sum(axis=1))


def average_precision_at(h: Histograms, r: int, denominator: Denominator = "hits") -> Float64[np.ndarray, " q"]:
    """Average precision of the first ``r`` ranks, in expectation over all orders of the ties.

    Published numbers differ in what they divide by: ``"hits"``, the relevant items among the first ``r`` (the habit in
    hashing, which rewards finding little early); ``"min"``, the smaller of ``r`` and N+; ``"relevant"``, N+ (TREC).
    Without a relevant item among the first ``r`` the value is 0. A database smaller than ``r`` is ranked whole.

    Raises:
        ValueError: If ``r`` is below 1 or ``denominator`` is none of the three.

    >>> h = Histograms(total=np.array([[1, 2]]), relevant=np.array([[1, 1]]))
    >>> [average_precision_at(h, 2, denominator).item() for denominator in ("hits", "min", "relevant")]
    [1.0, 0.75, 0.75]
    """
    if denominator not in get_args(Denominator):
        raise ValueError(f"denominator must be one of {', '.join(get_args(Denominator))}, got {denominator!r}")
    cut = _cut(h, r)
    complete = np.where(cut.complete, _expected_terms(h), 0.0).sum(axis=1)
    if denominator == "hits":
        return _expected_over_hits(complete, cut)
    partial = _tie_terms(cut.nearer, cut.hits, cut.size, cut.relevant, cut.inside)
    relevant = h.relevant.sum(axis=1)
    return _over(complete + partial, np.minimum(relevant, r) if denominator == "min" else relevant)


def precision_at(h: Histograms, k: int) -> Float64[np.ndarray, " q"]:
    """Share of relevant items among the first ``k``, in expectation over ties. Divides by ``k`` always.

    So a database smaller than ``k`` counts as filled up with irrelevant items.

    Raises:
        ValueError: If ``k`` is below 1.

    >>> precision_at(Histograms(total=np.array([[1, 4]]), relevant=np.array([[1, 2]])), 2)
    array([0.75])
    """
    return _expected_hits(_cut(h, k)) / k


def recall_at(h: Histograms, k: int) -> Float64[np.ndarray, " q"]:
    """Share of the query's relevant items that are among the first ``k``, in expectation over ties.

    Raises:
        ValueError: If ``k`` is below 1.

    >>> recall_at(Histograms(total=np.array([[1, 4]]), relevant=np.array([[1, 2]])), 2)
    array([0.5])
    """
    return _over(_expected_hits(_cut(h, k)), h.relevant.sum(axis=1))


def precision_by_radius(h: Histograms) -> Float64[np.ndarray, "q distances"]:
    """Share of relevant items in the Hamming ball of each radius 0, 1, ...; an empty ball has precision 0.

    >>> precision_by_radius(Histograms(total=np.array([[0, 2, 2]]), relevant=np.array([[0, 2, 0]])))
    array([[0. , 1. , 0.5]])
    """
    return _over(np.cumsum(h.relevant, axis=1), np.cumsum(h.total, axis=1))


def recall_by_radius(h: Histograms) -> Float64[np.ndarray, "q distances"]:
    """Share of the query's relevant items that lie in the Hamming ball of each radius 0, 1, ...

    >>> recall_by_radius(Histograms(total=np.array([[0, 2, 2]]), relevant=np.array([[0, 1, 1]])))
    array([[0. , 0.5, 1. ]])
    """
    return _over(np.cumsum(h.relevant, axis=1), h.relevant.sum(axis=1, keepdims=True))


def precision_within(h: Histograms, radius: int) -> Float64[np.ndarray, " q"]:
    """Share of relevant items in one Hamming ball; an empty ball has precision 0.

    Raises:
        ValueError: If ``radius`` is negative.

    >>> h = Histograms(total=np.array([[0, 0, 0, 9], [1, 1, 2, 6]]), relevant=np.array([[0, 0, 0, 9], [1, 1, 1, 0]]))
    >>> precision_within(h, 2)
    array([0.  , 0.75])
    """
    return precision_by_radius(h)[:, _column(h, radius)]


def empty_ball(h: Histograms, radius: int) -> Bool[np.ndarray, " q"]:
    """Whether no database item lies in the Hamming ball: a lookup of that radius returns nothing.

    Raises:
        ValueError: If ``radius`` is negative.

    >>> empty_ball(Histograms(total=np.array([[0, 0, 0, 9], [1, 1, 2, 6]]), relevant=np.zeros((2, 4), np.int64)), 2)
    array([ True, False])
    """
    return np.cumsum(h.total, axis=1)[:, _column(h, radius)] == 0


def average_precision_of_ranking(relevance: Bool[np.ndarray, "q n"]) -> Float64[np.ndarray, " q"]:
    """Average precision of one given order: relevance by rank, nearest first. Divides by N+.

    >>> average_precision_of_ranking(np.array([[True, False, False, True], [False, False, False, False]]))
    array([0.75, 0.  ])
    """
    rows, ranks = np.nonzero(relevance)
    relevant = np.bincount(rows, minlength=len(relevance))
    # np.nonzero goes row by row: the i-th hit of a row is the i-th after all hits of the rows before.
    hits = np.arange(1, len(rows) + 1) - np.repeat(np.cumsum(relevant) - relevant, relevant)
    return _over(np.bincount(rows, weights=hits / (ranks + 1.0), minlength=len(relevance)), relevant)


def bit_balance(packed: UInt8[np.ndarray, "n bytes"], bits: int) -> Float64[np.ndarray, " {bits}"]:
    """Share of codes in which each bit is one; 0.5 is balance, 0 or 1 a bit that says nothing.

    >>> bit_balance(np.array([[0b01], [0b11]], np.uint8), bits=2)
    array([1. , 0.5])
    """
    ones = np.zeros(bits, np.int64)
    for start in range(0, len(packed), _ROWS):
        block = np.unpackbits(packed[start : start + _ROWS], axis=1, count=bits, bitorder="little")
        ones += block.sum(axis=0, dtype=np.int64)
    return _over(ones, np.full(bits, len(packed)))


def unique_ratio(packed: UInt8[np.ndarray, "n bytes"]) -> float:
    """Number of different codes by number of codes: near 0, the codes have collapsed.

    >>> unique_ratio(np.array([[1], [1], [2], [2]], np.uint8))
    0.5
    """
    if not len(packed):
        return 0.0
    return len(np.unique(packed, axis=0)) / len(packed)


@dataclass(frozen=True, eq=False)
class _Cut:
    """A ranking cut after rank k: complete groups of ties, and the group that the cut goes through.

    ``nearer`` and ``hits`` count the items and the relevant items in complete groups; ``size`` and ``relevant`` those
    of the group that is cut, of which ``inside`` places are before the cut (none if the cut falls between two groups).
    """

    complete: np.ndarray  # (q, distances)
    nearer: np.ndarray
    hits: np.ndarray
    size: np.ndarray
    relevant: np.ndarray
    inside: np.ndarray


def _cut(h: Histograms, k: int) -> _Cut:
    if k < 1:
        n = int(h.total.sum(axis=1).max(initial=0))
        raise ValueError(f"k must be between 1 and the database size {n}, got {k}")
    complete = np.cumsum(h.total, axis=1) <= k
    nearer, hits = np.where(complete, h.total, 0).sum(axis=1), np.where(complete, h.relevant, 0).sum(axis=1)
    whole = complete.all(axis=1)
    # Groups are complete up to some distance: their number is the column of the first that is not.
    group = np.where(whole, 0, complete.sum(axis=1))[:, None]
    size = np.where(whole, 1, np.take_along_axis(h.total, group, axis=1)[:, 0])
    relevant = np.where(whole, 0, np.take_along_axis(h.relevant, group, axis=1)[:, 0])
    return _Cut(complete, nearer, hits, size, relevant, inside=np.where(whole, 0, k - nearer))


def _expected_hits(cut: _Cut) -> np.ndarray:
    return cut.hits + cut.inside * cut.relevant / cut.size


def _expected_over_hits(complete: np.ndarray, cut: _Cut) -> np.ndarray:
    """Expectation of (sum of precisions at hits) / (number of hits), where the cut makes both of them random.

    How many hits of the group that is cut fall before the cut is hypergeometric.
    """
    values = _over(complete, cut.hits)
    for row in np.flatnonzero(cut.inside).tolist():
        one = slice(row, row + 1)
        drawn, probability = _hypergeometric(int(cut.size[row]), int(cut.relevant[row]), int(cut.inside[row]))
        # Given their number, the hits are spread over the places before the cut as over a group of that size.
        terms = complete[one] + _tie_terms(cut.nearer[one], cut.hits[one], cut.inside[one], drawn, cut.inside[one])
        values[row] = (probability * _over(terms, cut.hits[one] + drawn)).sum()
    return values


def _hypergeometric(size: int, relevant: int, drawn: int) -> tuple[np.ndarray, np.ndarray]:
    """How many of ``drawn`` items are relevant: the possible numbers and their probabilities.

    From the likeliest number outwards, each probability is a fraction of its neighbour: no factorial, no logarithm, and
    nothing that overflows. What underflows is negligible.
    """
    low, high = max(0, drawn - (size - relevant)), min(drawn, relevant)
    hits = np.arange(low, high + 1)
    mode = min(max((drawn + 1) * (relevant + 1) // (size + 2), low), high)
    up, down = np.arange(mode, high, dtype=np.float64), np.arange(mode, low, -1, dtype=np.float64)
    rest = size - relevant - drawn
    above = np.cumprod((relevant - up) * (drawn - up) / ((up + 1) * (rest + up + 1)))
    below = np.cumprod(down * (rest + down) / ((relevant - down + 1) * (drawn - down + 1)))
    weights = np.concatenate([below[::-1], [1.0], above])
    return hits, weights / weights.sum()


def _expected_terms(h: Histograms) -> np.ndarray:
    """Expected sum of precisions at the relevant items of each group of ties, (q, distances)."""
    return _tie_terms(_before(h.total), _before(h.relevant), h.total, h.relevant, h.total)


def _tie_terms(
    nearer: np.ndarray, hits: np.ndarray, size: np.ndarray, relevant: np.ndarray, ranks: np.ndarray
) -> np.ndarray:
    """Expected sum of precisions at relevant items over the first ``ranks`` places of a group of ties.

    With A items and P hits before the group, and p of its n items relevant, place t holds a relevant item with
    probability p/n; then (t - 1) (p - 1)/(n - 1) more are expected before it in the group. So

        p/n * sum over t = 1..ranks of [P + 1 + c (t - 1)] / (A + t),   c = (p - 1)/(n - 1),

    and (P + 1 + c (t - 1)) / (A + t) = c + (P + 1 - c (A + 1)) / (A + t) leaves a sum of reciprocals.
    """
    c = np.where(size > 1, (relevant - 1.0) / np.maximum(size - 1.0, 1.0), 0.0)
    sums = c * ranks + (hits + 1.0 - c * (nearer + 1.0)) * _harmonic(nearer, ranks)
    return relevant / np.maximum(size, 1) * sums


def _harmonic(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Sum of 1/(start + t) for t = 1..count, to the last digits even where it is a small step far out.

    A table of harmonic numbers would lose them: its differences, multiplied by ``start``, carry the sums' rounding.
    Short sums are looked up; beyond, H(b) - H(a) = ln(b/a) + 1/2x - 1/12x^2 + 1/120x^4 - 1/252x^6 from x = a to b.
    """
    stop = start + count
    short = _SHORT_SUMS[np.minimum(start, _SERIES_FROM), np.minimum(stop, _SERIES_FROM)]
    a, b = np.maximum(start, float(_SERIES_FROM)), np.maximum(stop, float(_SERIES_FROM))
    a2, b2 = 1 / (a * a), 1 / (b * b)
    series = np.log1p((b - a) / a) - (b - a) / (2 * a * b)
    return short + series - (b2 - a2) / 12 + (b2 * b2 - a2 * a2) / 120 - (b2 * b2 * b2 - a2 * a2 * a2) / 252


def _before(counts: np.ndarray) -> np.ndarray:
    """Number of items at smaller distances, for each distance."""
    return np.cumsum(counts, axis=1) - counts


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient that is 0 where there is nothing to divide by: no relevant item, an empty ball, no hit."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)


def _column(h: Histograms, radius: int) -> int:
    if radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    return min(radius, h.total.shape[1] - 1)  # a larger ball holds no more than the whole database

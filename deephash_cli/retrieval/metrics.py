"""Retrieval metrics. Each takes arrays and returns one value per query; the caller averages.

Codes of K bits have only K + 1 distances, so most database items tie with many others. A metric that reads a sorted
list then depends on an order that nobody chose. Here every metric is computed from histograms (how many items, and
how many relevant ones, lie at each distance) as the exact expectation over all orders that the ties allow.
McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008; He, Cakir, Bargal and Sclaroff, "Hashing as tie-aware learning to rank", CVPR 2018.

A query without a relevant item scores 0 in every metric; it is never skipped. Each query's value is computed from its
own row alone, in an order that does not depend on the other rows, so splitting the queries changes no digit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, UInt8, UInt64

Denominator = Literal["hits", "min", "relevant"]
K = TypeVar("K")

_ROWS = 2**16  # codes counted at a time
_QUERIES = 2**10  # queries processed at a time where each needs its own array
_STEPS = 32  # numbers of hits weighted at a time
_NEGLIGIBLE = 1e-20  # weight of a number of hits, relative to the most likely number, below which it is left out
_DRAWS = 2**16  # queries drawn at a time: they stay in the cache

_SERIES_FROM = 64  # from here on, three terms of the asymptotic series give every digit of a float64
_FROM, _TO = np.arange(_SERIES_FROM + 1)[:, None], np.arange(_SERIES_FROM + 1)[None, :]
# Sum of 1/t for FROM < t <= TO. Each entry is its own sum: a difference of two harmonic numbers would lose digits.
_SHORT_SUMS = np.cumsum(np.where(_TO > _FROM, 1.0 / np.maximum(_TO, 1), 0.0), axis=1)


@dataclass(frozen=True, eq=False)
class Histograms:
    """How many database items, and how many relevant ones, lie at each distance 0, 1, ... from each query.

    Attributes:
        total: Number of items.
        relevant: Number of relevant items.
        shared: Number of items that share exactly 0, 1, 2, ... labels with each query, from which `total` and
            `relevant` were made. None: a relevant item shares one label.

    Raises:
        ValueError: If a count is negative, or if more items are relevant than lie at a distance.
    """

    total: Int64[np.ndarray, "q distances"]
    relevant: Int64[np.ndarray, "q distances"]
    shared: Int64[np.ndarray, "q distances grades"] | None = None

    def __post_init__(self) -> None:
        if self.total.shape != self.relevant.shape or self.total.ndim != 2 or self.total.shape[1] == 0:
            raise ValueError(
                f"total and relevant must have the same shape (queries, distances), "
                f"got {self.total.shape} and {self.relevant.shape}"
            )
        if (self.relevant < 0).any() or (self.relevant > self.total).any():
            raise ValueError("relevant must lie between 0 and total at every distance, got counts outside this range")

    @staticmethod
    def of_shared(shared: Int64[np.ndarray, "q distances grades"]) -> "Histograms":
        """Build histograms from graded relevance: an item is relevant if it shares at least one label with the query.

        Args:
            shared: Number of items at each distance that share exactly 0, 1, 2, ... labels with each query.

        Raises:
            ValueError: If a count is negative.

        >>> Histograms.of_shared(np.array([[[5, 0, 2], [7, 1, 0]]])).relevant
        array([[2, 1]])
        """
        if (shared < 0).any():
            raise ValueError("shared must hold numbers of items, got a negative number")
        total = np.einsum("qdg->qd", shared)  # several times faster than a sum when there are few grades
        return Histograms(total, total - shared[:, :, 0], shared)

    @cached_property
    def within(self) -> Int64[np.ndarray, "q distances"]:
        """Number of items in the Hamming ball of each radius."""
        return np.cumsum(self.total, axis=1)

    @cached_property
    def hits_within(self) -> Int64[np.ndarray, "q distances"]:
        """Number of relevant items in the Hamming ball of each radius."""
        return np.cumsum(self.relevant, axis=1)

    @cached_property
    def precisions_within(self) -> Float64[np.ndarray, "q distances"]:
        """Expected sum, over the relevant items in the Hamming ball of each radius, of the precision at their rank."""
        nearer, hits = self.within - self.total, self.hits_within - self.relevant
        return np.cumsum(_tie_terms(nearer, hits, self.total, self.relevant, self.total), axis=1)

    @cached_property
    def labels(self) -> Int64[np.ndarray, "q distances"]:
        """Number of labels that the items at each distance share with the query."""
        if self.shared is None or self.shared.shape[2] <= 2:
            return self.relevant
        return np.einsum("qdg,g->qd", self.shared, np.arange(self.shared.shape[2]))

    @cached_property
    def labels_within(self) -> Int64[np.ndarray, "q distances"]:
        """Number of labels that the items in the Hamming ball of each radius share with the query."""
        return self.hits_within if self.labels is self.relevant else np.cumsum(self.labels, axis=1)

    @cached_property
    def mean_labels(self) -> Float64[np.ndarray, "q distances"]:
        """Mean number of labels that the relevant items at each distance share with the query; 1 without any."""
        return np.where(self.relevant > 0, _over(self.labels, self.relevant), 1.0)

    @cached_property
    def acgs_within(self) -> Float64[np.ndarray, "q distances"]:
        """Expected sum, over the relevant items in the Hamming ball of each radius, of the ACG at their rank."""
        if self.labels is self.relevant:
            return self.precisions_within
        nearer, labels = self.within - self.total, self.labels_within - self.labels
        terms = _tie_terms(nearer, labels, self.total, self.relevant, self.total, self.mean_labels)
        return np.cumsum(terms, axis=1)

    def cut(self, ks: tuple[int, ...]) -> "_Cut":
        """Find the groups of ties that the first k items end in."""
        return self._once(("cut", ks), lambda: _cut(self.total, self.within, ks))

    def hits_among_first(self, ks: tuple[int, ...]) -> Float64[np.ndarray, "q ks"]:
        """Expected number of relevant items among the first k."""
        return self._once(("hits", ks), lambda: _expected_among_first(self.cut(ks), self.relevant, self.hits_within))

    def precision_among_first(self, r: int) -> Float64[np.ndarray, " q"]:
        """Expected mean, over the relevant items among the first r, of the precision at their rank."""
        nearer, ones = self.hits_within - self.relevant, np.ones(self.total.shape)
        return self._once(("precision", r), lambda: _expected_at(self, r, self.precisions_within, nearer, ones))

    def acg_among_first(self, r: int) -> Float64[np.ndarray, " q"]:
        """Expected mean, over the relevant items among the first r, of the ACG at their rank."""
        if self.labels is self.relevant:
            return self.precision_among_first(r)
        return _expected_at(self, r, self.acgs_within, self.labels_within - self.labels, self.mean_labels)

    def _once(self, key: tuple[str, Any], compute: Callable[[], K]) -> K:
        """Return what several metrics need, computed at its first use."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[tuple[str, Any], Any]:
        return {}


def average_precision(h: Histograms) -> Float64[np.ndarray, " q"]:
    """Average precision over the whole ranking, in expectation over all orders of the ties.

    Divides by N+, the query's number of relevant items.

    >>> h = Histograms(total=np.array([[3, 1]]), relevant=np.array([[1, 0]]))
    >>> average_precision(h).round(6)  # the relevant item is first, second or third: (1 + 1/2 + 1/3) / 3
    array([0.611111])
    """
    return _over(h.precisions_within[:, -1], h.hits_within[:, -1])


def average_precision_best(h: Histograms) -> Float64[np.ndarray, " q"]:
    """Average precision if relevant items came first in every tie: the upper bound over all orders.

    >>> average_precision_best(Histograms(total=np.array([[3, 1]]), relevant=np.array([[1, 0]])))
    array([1.])
    """
    return _average_precision_of_runs(h, h.within - h.total)


def average_precision_worst(h: Histograms) -> Float64[np.ndarray, " q"]:
    """Average precision if relevant items came last in every tie: the lower bound over all orders.

    >>> average_precision_worst(Histograms(total=np.array([[4, 1]]), relevant=np.array([[1, 0]])))
    array([0.25])
    """
    return _average_precision_of_runs(h, h.within - h.relevant)


def average_precision_at(h: Histograms, r: int, denominator: Denominator = "hits") -> Float64[np.ndarray, " q"]:
    """Average precision of the first ``r`` ranks, in expectation over all orders of the ties.

    Published numbers differ in their denominator. ``"hits"`` divides by the number of relevant items among the first
    ``r``, as is usual in hashing; this rewards finding few items early. ``"min"`` divides by the smaller of ``r`` and
    N+, the query's number of relevant items; ``"relevant"`` divides by N+ (TREC). If no relevant item is among the
    first ``r``, the value is 0. A database smaller than ``r`` is ranked whole.

    Raises:
        ValueError: If ``r`` is below 1, or if ``denominator`` is not one of the three.

    >>> h = Histograms(total=np.array([[1, 2]]), relevant=np.array([[1, 1]]))
    >>> [average_precision_at(h, 2, denominator).item() for denominator in ("hits", "min", "relevant")]
    [1.0, 0.75, 0.75]
    """
    if denominator not in get_args(Denominator):
        raise ValueError(f"denominator must be one of {', '.join(get_args(Denominator))}, got {denominator!r}")
    if denominator == "hits":
        return h.precision_among_first(r)
    cut = h.cut((r,))
    complete, relevant = np.take(_shifted(h.precisions_within), cut.group), np.take(h.relevant, cut.group)
    hits = np.take(h.hits_within, cut.group) - relevant
    sums = (complete + _tie_terms(cut.nearer, hits, cut.size, relevant, cut.inside))[:, 0]
    all_relevant = h.hits_within[:, -1]
    return _over(sums, np.minimum(all_relevant, r) if denominator == "min" else all_relevant)


def precision_at(h: Histograms, ks: Sequence[int]) -> Float64[np.ndarray, "q ks"]:
    """Share of relevant items among the first k, in expectation over ties.

    Always divides by k, as if a database smaller than k were filled up with irrelevant items.

    Raises:
        ValueError: If a k is below 1.

    >>> precision_at(Histograms(total=np.array([[1, 4]]), relevant=np.array([[1, 2]])), [1, 2, 10])
    array([[1.  , 0.75, 0.3 ]])
    """
    return h.hits_among_first(tuple(ks)) / np.array(ks, np.float64)


def recall_at(h: Histograms, ks: Sequence[int]) -> Float64[np.ndarray, "q ks"]:
    """Share of the query's relevant items that are among the first k, in expectation over ties.

    Raises:
        ValueError: If a k is below 1.

    >>> recall_at(Histograms(total=np.array([[1, 4]]), relevant=np.array([[1, 2]])), [1, 3, 10])
    array([[0.33333333, 0.66666667, 1.        ]])
    """
    return _over(h.hits_among_first(tuple(ks)), h.hits_within[:, -1:])


def curve_ranks(n: int, points: int = 50) -> list[int]:
    """Ranks from 1 to ``n`` for a precision-recall curve by rank: at most ``points``, each a constant ratio apart.

    Small ranks would lie closer together than whole numbers; points that round to the same rank are kept once.

    Raises:
        ValueError: If ``n`` is below 1 or ``points`` below 2.

    >>> curve_ranks(1000, points=10)
    [1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    """
    if n < 1 or points < 2:
        raise ValueError(f"a curve needs at least 1 item and 2 points, got n = {n} and points = {points}")
    return np.unique(np.rint(np.geomspace(1, n, points)).astype(np.int64)).tolist()


def precision_by_radius(h: Histograms) -> Float64[np.ndarray, "q distances"]:
    """Share of relevant items in the Hamming ball of each radius 0, 1, ...; an empty ball has precision 0.

    >>> precision_by_radius(Histograms(total=np.array([[0, 2, 2]]), relevant=np.array([[0, 2, 0]])))
    array([[0. , 1. , 0.5]])
    """
    return _over(h.hits_within, h.within)


def recall_by_radius(h: Histograms) -> Float64[np.ndarray, "q distances"]:
    """Share of the query's relevant items that lie in the Hamming ball of each radius 0, 1, ...

    >>> recall_by_radius(Histograms(total=np.array([[0, 2, 2]]), relevant=np.array([[0, 1, 1]])))
    array([[0. , 0.5, 1. ]])
    """
    return _over(h.hits_within, h.hits_within[:, -1:])


def precision_within(h: Histograms, radius: int) -> Float64[np.ndarray, " q"]:
    """Share of relevant items in one Hamming ball; an empty ball has precision 0.

    Raises:
        ValueError: If ``radius`` is negative.

    >>> h = Histograms(total=np.array([[0, 0, 0, 9], [1, 1, 2, 6]]), relevant=np.array([[0, 0, 0, 9], [1, 1, 1, 0]]))
    >>> precision_within(h, 2)
    array([0.  , 0.75])
    """
    column = _column(h, radius)
    return _over(h.hits_within[:, column], h.within[:, column])


def recall_within(h: Histograms, radius: int) -> Float64[np.ndarray, " q"]:
    """Share of the query's relevant items that lie in one Hamming ball.

    Raises:
        ValueError: If ``radius`` is negative.

    >>> recall_within(Histograms(total=np.array([[1, 1, 2, 6]]), relevant=np.array([[1, 0, 1, 2]])), 2)
    array([0.5])
    """
    return _over(h.hits_within[:, _column(h, radius)], h.hits_within[:, -1])


def average_precision_within(h: Histograms, radius: int) -> Float64[np.ndarray, " q"]:
    """Average precision of the items in one Hamming ball, in expectation over all orders of the ties.

    Divides by the relevant items in the ball, and is 0 without one: mAP@H<=radius of Cao, Long, Liu and Wang, "Deep
    Cauchy hashing for Hamming space retrieval", CVPR 2018.

    Raises:
        ValueError: If ``radius`` is negative.

    >>> average_precision_within(Histograms(total=np.array([[1, 1, 6]]), relevant=np.array([[0, 1, 5]])), 1)
    array([0.5])
    """
    column = _column(h, radius)
    return _over(h.precisions_within[:, column], h.hits_within[:, column])


def empty_ball(h: Histograms, radius: int) -> Bool[np.ndarray, " q"]:
    """Whether the Hamming ball contains no database item, so that a lookup with this radius has no result.

    Raises:
        ValueError: If ``radius`` is negative.

    >>> empty_ball(Histograms(total=np.array([[0, 0, 0, 9], [1, 1, 2, 6]]), relevant=np.zeros((2, 4), np.int64)), 2)
    array([ True, False])
    """
    return h.within[:, _column(h, radius)] == 0


def ndcg_at(h: Histograms, ks: Sequence[int]) -> Float64[np.ndarray, "q ks"]:
    """Normalized discounted cumulative gain of the first k: its expectation over ties, divided by the ideal gain.

    An item that shares g labels with the query has gain 2^g - 1, discounted at rank i by 1 / log2(1 + i). The ideal
    gain is that of the best order of the whole database. A database smaller than k is ranked whole. Järvelin and
    Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002; gains of Burges et al., ICML 2005.

    Args:
        h: Histograms of the queries; those made by `Histograms.of_shared` know how many labels the items share.
        ks: Cut-offs k, in ranks.

    Raises:
        ValueError: If a k is below 1.

    >>> h = Histograms.of_shared(np.array([[[0, 1, 0], [0, 0, 1]]]))
    >>> ndcg_at(h, [1, 2]).round(6)  # 1/3, (1 + 3 / log2(3)) / (3 + 1 / log2(3))
    array([[0.333333, 0.796708]])
    """
    shared = h.shared if h.shared is not None else np.stack([h.total - h.relevant, h.relevant], axis=2)
    of_grade = np.einsum("qdg->qg", shared)
    grades = np.arange(shared.shape[2], dtype=np.int32)  # the type that ldexp takes as exponent
    # Only ratios of gains matter: divided by 2^largest they cannot overflow. No item has a grade above the largest.
    largest = (grades * (of_grade > 0)).max(axis=1)[:, None]
    gains = np.ldexp(1.0, np.minimum(grades - largest, 0)) - np.ldexp(1.0, -largest)
    at_distance = np.zeros(shared.shape[:2])
    for grade in grades[1:].tolist():
        at_distance += gains[:, grade, None] * shared[:, :, grade]
    best = of_grade[:, ::-1]
    dcg, ideal = _discounted_gains(
        [
            (h.cut(tuple(ks)), h.within, _over(at_distance, h.total)),
            (_cut(best, np.cumsum(best, axis=1), ks), np.cumsum(best, axis=1), gains[:, ::-1]),
        ]
    )
    return np.divide(dcg, ideal, out=np.zeros_like(dcg), where=ideal > 0)


def acg_at(h: Histograms, ks: Sequence[int]) -> Float64[np.ndarray, "q ks"]:
    """Average number of labels that the first k items share with the query, in expectation over ties.

    Always divides by k, as if a database smaller than k were filled up with items that share no label. Järvelin and
    Kekäläinen, "IR evaluation methods for retrieving highly relevant documents", SIGIR 2000.

    Args:
        h: Histograms of the queries; those made by `Histograms.of_shared` know how many labels the items share.
        ks: Cut-offs k, in ranks.

    Raises:
        ValueError: If a k is below 1.

    >>> acg_at(Histograms.of_shared(np.array([[[0, 1, 0], [1, 0, 1]]])), [1, 2, 3])
    array([[1., 1., 1.]])
    """
    if h.labels is h.relevant:
        return precision_at(h, ks)
    return _expected_among_first(h.cut(tuple(ks)), h.labels, h.labels_within) / np.array(ks, np.float64)


def wap(h: Histograms) -> Float64[np.ndarray, " q"]:
    """Weighted average precision over the whole ranking, in expectation over all orders of the ties.

    The mean over the ranks of the relevant items of the average number of labels that the items up to this rank share
    with the query (ACG). Relevant items share at least one label. Zhao, Huang, Wang and Tan, "Deep semantic ranking
    based hashing for multi-label image retrieval", CVPR 2015. If no two images share two labels, it is average
    precision.

    Args:
        h: Histograms of the queries; those made by `Histograms.of_shared` know how many labels the items share.

    >>> h = Histograms.of_shared(np.array([[[0, 0, 1], [1, 1, 0]]]))
    >>> wap(h)  # ranks 1 and 3, or 1 and 2: (2 + (1 + 3/2) / 2) / 2
    array([1.625])
    """
    return _over(h.acgs_within[:, -1], h.hits_within[:, -1])


def wap_at(h: Histograms, r: int) -> Float64[np.ndarray, " q"]:
    """Weighted average precision of the first ``r`` ranks, in expectation over all orders of the ties.

    Divides by the number of relevant items among the first ``r``, as `average_precision_at` does by default. If there
    is none, the value is 0. A database smaller than ``r`` is ranked whole.

    Args:
        h: Histograms of the queries; those made by `Histograms.of_shared` know how many labels the items share.
        r: Cut-off, in ranks.

    Raises:
        ValueError: If ``r`` is below 1.

    >>> h = Histograms.of_shared(np.array([[[0, 0, 1], [1, 1, 0]]]))
    >>> wap_at(h, 2)  # 2, or (2 + 3/2) / 2
    array([1.875])
    """
    return h.acg_among_first(r)


def bootstrap_interval(
    values: Float64[np.ndarray, "q *columns"], level: float, resamples: int, seed: int
) -> tuple[Float64[np.ndarray, "*columns"], Float64[np.ndarray, "*columns"]]:
    """Percentile bootstrap interval of the mean over queries: the range of means that other samples would give.

    All columns use the same resamples. They are drawn from the raw stream of PCG64, which NumPy promises not to
    change. Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.

    Args:
        values: One value per query, or one per query and metric.
        level: Share of the resampled means that lie in the interval, such as 0.95.
        resamples: Number of resamples. Each has as many queries as ``values``, drawn with replacement.
        seed: Random seed for drawing the resamples.

    Returns:
        The lower and the upper bounds, each in the shape of one query's values.

    Raises:
        ValueError: If there is no query, ``level`` is not between 0 and 1, or ``resamples`` is below 1.

    >>> low, high = bootstrap_interval(np.arange(100.0), level=0.95, resamples=1000, seed=0)
    >>> round(low.item()), round(high.item())
    (44, 55)
    """
    if not len(values):
        raise ValueError("a bootstrap needs at least one query, got none")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"level must lie between 0 and 1 and resamples be at least 1, got level {level} and {resamples} resamples"
        )
    q = len(values)
    columns = np.ascontiguousarray(values.reshape(q, -1).T)
    means = np.empty((len(columns), resamples))
    source = np.random.PCG64(seed)
    words = (q + 1) // 2  # 64-bit words per resample: each gives two draws
    at_once = max(1, _DRAWS // q)
    for start in range(0, resamples, at_once):
        block = slice(start, min(start + at_once, resamples))
        raw = source.random_raw((block.stop - start) * words).reshape(-1, words)
        halves = raw.astype("<u8", copy=False).view("<u4")[:, :q].astype(np.uint64)
        drawn = (halves * np.uint64(q) >> np.uint64(32)).view(np.int64)
        for column, row in zip(columns, means, strict=True):
            np.mean(np.take(column, drawn), axis=1, out=row[block])
    bounds = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)
    low, high = (side.reshape(values.shape[1:]) for side in bounds)
    return low, high


def mean_by_class(
    values: Float64[np.ndarray, " q"],
    labels: UInt8[np.ndarray, "q {classes}"] | Integer[np.ndarray, " q"],
    classes: int,
) -> tuple[Float64[np.ndarray, " {classes}"], Int64[np.ndarray, " {classes}"]]:
    """Mean over the queries of each class, and the number of these queries; both are 0 for a class without queries.

    Args:
        values: One value per query.
        labels: Multi-hot labels of the queries, or one class number per query, -1 for no class.
        classes: Number of classes.

    Raises:
        ValueError: If a class number is not below ``classes``.

    >>> mean_by_class(np.array([0.5, 1.0, 0.25]), np.array([0, 0, 2]), classes=3)
    (array([0.75, 0.  , 0.25]), array([2, 0, 1]))
    """
    if labels.ndim == 2:
        queries, carried = np.nonzero(labels)
    else:
        queries = np.flatnonzero(labels >= 0)
        carried = labels[queries]
    counts = np.bincount(carried, minlength=classes)
    if len(counts) > classes:
        raise ValueError(f"labels must lie below the number of classes {classes}, got {len(counts) - 1}")
    return _over(np.bincount(carried, weights=values[queries], minlength=classes), counts), counts


def hardest(values: Float64[np.ndarray, " q"], n: int) -> Int64[np.ndarray, " hardest"]:
    """Positions of the ``n`` lowest values, lowest first; equal values are in order of position.

    >>> hardest(np.array([0.5, 0.1, 0.5, 0.9]), 2)
    array([1, 0])
    """
    return np.argsort(values, kind="stable")[:n]


def bit_balance(packed: UInt8[np.ndarray, "n bytes"], bits: int) -> Float64[np.ndarray, " {bits}"]:
    """Share of codes in which each bit is 1: 0.5 is balanced, and a bit at 0 or 1 carries no information.

    >>> bit_balance(np.array([[0b01], [0b11]], np.uint8), bits=2)
    array([1. , 0.5])
    """
    ones = np.zeros(bits, np.int64)
    for columns in _columns(packed, bits):
        ones += np.bitwise_count(columns).sum(axis=1, dtype=np.int64)
    return _over(ones, np.array(len(packed)))


def bit_correlation(packed: UInt8[np.ndarray, "n bytes"], bits: int) -> Float64[np.ndarray, "{bits} {bits}"]:
    """Correlation of each pair of bits over the codes; 0 for a bit that never changes, also on the diagonal.

    >>> bit_correlation(np.array([[0b000], [0b101], [0b111], [0b010]], np.uint8), bits=3)
    array([[1., 0., 1.],
           [0., 1., 0.],
           [1., 0., 1.]])
    """
    both = np.zeros((bits, bits), np.int64)  # how often both bits are 1 in the same code
    for columns in _columns(packed, bits):  # faster than a product of matrices, and without its threads
        for bit, column in enumerate(columns):
            both[bit, bit:] += np.bitwise_count(column & columns[bit:]).sum(axis=1, dtype=np.int64)
    both = np.triu(both) + np.triu(both, 1).T
    n, ones = len(packed), both.diagonal()
    spread = np.sqrt(ones * (n - ones).astype(np.float64))
    return _over(n * both - np.outer(ones, ones), np.outer(spread, spread))


def _columns(packed: UInt8[np.ndarray, "n bytes"], bits: int) -> Iterator[UInt64[np.ndarray, "{bits} words"]]:
    """Yield the values of each bit in some thousand codes at a time: 64 codes a word, and zeros after the last code."""
    for start in range(0, len(packed), _ROWS):
        codes = np.ascontiguousarray(packed[start : start + _ROWS].T)
        columns = np.zeros((bits, 8 * -(-codes.shape[1] // 64)), np.uint8)
        for bit, column in enumerate(columns):
            values = np.packbits(codes[bit // 8] & np.uint8(1 << bit % 8))
            column[: len(values)] = values
        yield columns.view(np.uint64)


def unique_ratio(packed: UInt8[np.ndarray, "n bytes"]) -> float:
    """Number of different codes divided by the number of codes; near 0, the codes have collapsed.

    >>> unique_ratio(np.array([[1], [1], [2], [2]], np.uint8))
    0.5
    """
    n, width = packed.shape
    if not n:
        return 0.0
    padded = np.zeros((n, max(width, 8)), np.uint8)  # up to 64 bits: a machine word; more: a string of bytes
    padded[:, :width] = packed
    codes = padded.view(np.uint64 if width <= 8 else f"S{width}")[:, 0]
    codes.sort()
    return (1 + int(np.count_nonzero(codes[1:] != codes[:-1]))) / n


@dataclass(frozen=True, eq=False)
class _Cut:
    """The group of ties that each cut of each ranking goes through or ends; every array is (q, ks).

    ``group`` is the position of this group in the flattened histograms, ``nearer`` the number of items before it and
    ``size`` its number of items, of which ``inside`` lie before the cut. For an empty database ``group`` is the
    query's first group, and the other three are 0.
    """

    group: np.ndarray
    nearer: np.ndarray
    size: np.ndarray
    inside: np.ndarray


def _cut(total: np.ndarray, within: np.ndarray, ks: Sequence[int]) -> _Cut:
    items = within[:, -1:]
    n = int(items.max(initial=0))
    for k in ks:
        if k < 1:
            raise ValueError(f"k must be between 1 and the database size {n}, got {k}")
    ranks = np.minimum(np.array([min(k, n) for k in ks], np.int64), items)
    # This offset puts each query's cumulative counts above the previous query's: one search finds all ranks.
    base = np.arange(len(within))[:, None] * (n + 1)
    group = np.searchsorted((within + base).ravel(), (ranks + base).ravel()).reshape(ranks.shape)
    size = np.take(total, group)
    nearer = np.take(within, group) - size
    return _Cut(group, nearer, size, ranks - nearer)


def _expected_among_first(cut: _Cut, amount: np.ndarray, amount_within: np.ndarray) -> np.ndarray:
    """Expected amount (relevant items, shared labels) among the items before each cut, (q, ks)."""
    of_group = np.take(amount, cut.group)
    return np.take(amount_within, cut.group) - of_group + cut.inside * of_group / np.maximum(cut.size, 1)


def _average_precision_of_runs(h: Histograms, nearer: np.ndarray) -> np.ndarray:
    """Average precision if the relevant items of each distance follow ``nearer`` items without a gap."""
    hits = h.hits_within - h.relevant
    # With P hits and A items before them, p relevant items take the ranks A + 1 to A + p. Their precisions add up to
    # the sum over t = 1..p of (P + t) / (A + t) = p + (P - A) * (sum over t of 1 / (A + t)).
    terms = h.relevant + (hits - nearer) * _harmonic(nearer, h.relevant)
    return _over(np.ascontiguousarray(terms).sum(axis=1), h.hits_within[:, -1])


def _expected_at(
    h: Histograms, r: int, sums_within: np.ndarray, gains_nearer: np.ndarray, mean_gains: np.ndarray
) -> np.ndarray:
    """Expectation of (sum over the hits among the first ``r`` of the mean gain so far) / (number of these hits), (q,).

    Args:
        h: Histograms of the queries.
        r: Cut-off, in ranks.
        sums_within: Expected sum over the hits in the Hamming ball of each radius, (q, distances).
        gains_nearer: Sum of the gains of the items nearer than each distance, (q, distances).
        mean_gains: Mean gain of the relevant items at each distance, (q, distances).
    """
    cut = h.cut((r,))
    relevant = np.take(h.relevant, cut.group)
    hits = np.take(h.hits_within, cut.group) - relevant
    complete, gains, gain = (np.take(of, cut.group) for of in (_shifted(sums_within), gains_nearer, mean_gains))
    columns = (complete, hits, cut.nearer, cut.size, relevant, cut.inside, gains, gain)
    blocks = [slice(start, start + _QUERIES) for start in range(0, max(len(hits), 1), _QUERIES)]
    return np.concatenate([_expected_over_hits(*(column[block] for column in columns)) for block in blocks])


def _expected_over_hits(
    complete: np.ndarray,
    hits: np.ndarray,
    nearer: np.ndarray,
    size: np.ndarray,
    relevant: np.ndarray,
    inside: np.ndarray,
    gains: np.ndarray,
    gain: np.ndarray,
) -> np.ndarray:
    """Expectation of (sum of mean gains at hits) / (number of hits) when the cut makes both random.

    All arguments are (q, 1). Let h be the number of ``relevant`` items of the cut group that fall before the cut; it
    is hypergeometric. Given h, these items are spread over the ``inside`` places before the cut as over a group of
    that size, which adds a h + b h (h - 1) to the sum: see ``_tie_terms``. Which of the relevant items fall before the
    cut does not depend on h, so each of them has the mean ``gain`` of all.

    The sum starts at the most likely h and goes outwards. Each weight is computed as a fraction of its neighbour's,
    until it is negligible: without factorials or logarithms, nothing can overflow. Past the last possible h the
    fraction is 0.
    """
    reciprocals, places = _harmonic(nearer, inside), np.maximum(inside, 1)
    a = (gains + gain) * reciprocals / places
    b = gain * (inside - (nearer + 1) * reciprocals) / (places * np.maximum(inside - 1, 1))

    def value(rows: np.ndarray, h: np.ndarray) -> np.ndarray:
        return _over(complete[rows] + h * (a[rows] + b[rows] * (h - 1)), hits[rows] + h)

    everyone = np.arange(len(hits))
    likeliest = (inside + 1) * (relevant + 1) // (size + 2)
    sums, weights = value(everyone, likeliest)[:, 0], np.ones(len(hits))
    # One hit more before the cut: a hit after the cut swaps places with a miss before it. One hit fewer: the reverse.
    falling = relevant - likeliest, inside - likeliest
    rising = likeliest, size - relevant - inside + likeliest
    for sign in (1, -1):
        rows, weight, steps = everyone, np.ones((len(hits), 1)), np.arange(1.0, _STEPS + 1)
        while len(rows):
            fractions = (falling[0][rows] + 1 - steps) * (falling[1][rows] + 1 - steps)
            fractions /= (rising[0][rows] + steps) * (rising[1][rows] + steps)
            weight = weight[:, -1:] * np.cumprod(fractions, axis=1)
            weight[weight < _NEGLIGIBLE] = 0
            sums[rows] += (weight * value(rows, likeliest[rows] + sign * steps)).sum(axis=1)
            weights[rows] += weight.sum(axis=1)
            more = weight[:, -1] > 0
            rows, weight, steps = rows[more], weight[more], steps + _STEPS
        falling, rising = rising, falling
    return sums / weights


def _discounted_gains(rankings: Sequence[tuple[_Cut, np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Expected discounted gain of the first k, (q, ks), for each ranking.

    Args:
        rankings: The cuts of each ranking, all after the same ranks; the numbers of items in each group of ties and
            before it, (q, groups); and the mean gains in each group, (q, groups).
    """
    cuts = [cut for cut, _, _ in rankings]
    last = int((cuts[0].nearer + cuts[0].inside).max(initial=0))  # the last rank that any cut includes
    # Differences of these prefix sums are used: in float64, small steps at late ranks would lose digits.
    discounts = np.zeros(last + 1, np.longdouble)
    np.cumsum(1 / np.log2(np.arange(2.0, last + 2)), dtype=np.longdouble, out=discounts[1:])
    gains = []
    for cut, within, gain in rankings:
        group = cut.group - gain.shape[1] * np.arange(len(gain))[:, None]  # its place among those of its own query
        used = slice(int(group.max(initial=0)) + 1)  # no cut is in a later group
        until = discounts[np.minimum(within[:, used], last)]
        complete = np.cumsum(gain[:, used] * np.diff(until, axis=1, prepend=0).astype(np.float64), axis=1)
        inside = discounts[cut.nearer + cut.inside] - discounts[cut.nearer]
        before = np.take_along_axis(_shifted(complete), group, axis=1)
        gains.append(before + np.take(gain, cut.group) * inside.astype(np.float64))
    return gains


def _tie_terms(
    nearer: np.ndarray,
    hits: np.ndarray,
    size: np.ndarray,
    relevant: np.ndarray,
    ranks: np.ndarray,
    gain: np.ndarray | int = 1,
) -> np.ndarray:
    """Expected sum of precisions at relevant items over the first ``ranks`` places of a group of ties.

    With A items and P hits before the group, and p of its n items relevant, place t holds a relevant item with
    probability p/n; then (t - 1) (p - 1)/(n - 1) more are expected before it in the group. So

        p/n * sum over t = 1..ranks of [P + 1 + c (t - 1)] / (A + t),   c = (p - 1)/(n - 1),

    and (P + 1 + c (t - 1)) / (A + t) = c + (P + 1 - c (A + 1)) / (A + t) leaves a sum of reciprocals.

    If each hit has a gain other than 1, P is the sum of the gains before the group. A hit of the group adds the mean
    gain g of its relevant items, whatever its own gain is: P + 1 becomes P + g, and c becomes g c.
    """
    c = gain * (relevant - 1) / np.maximum(size - 1, 1)
    sums = c * ranks + (hits + gain - c * (nearer + 1)) * _harmonic(nearer, ranks)
    return relevant / np.maximum(size, 1) * sums


def _harmonic(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Sum of 1/(start + t) for t = 1..count, accurate to the last digits even if ``start`` is large.

    Differences of tabulated harmonic numbers would be inaccurate: multiplied by ``start``, they amplify the rounding of
    the table. The terms with start + t <= 64 come from a table in which each entry is its own sum. For the other terms,
    H(n) = ln(x) + constant + 1/24x^2 - 7/960x^4 + 31/8064x^6, where x = n + 1/2.
    """
    stop = start + count
    x, y = np.maximum(start, _SERIES_FROM) + 0.5, np.maximum(stop, _SERIES_FROM) + 0.5
    cell = np.minimum(start, _SERIES_FROM) * len(_SHORT_SUMS) + np.minimum(stop, _SERIES_FROM)
    return np.take(_SHORT_SUMS, cell) + np.log1p((y - x) / x) + (_correction(y) - _correction(x))


def _correction(x: np.ndarray) -> np.ndarray:
    y = 1 / (x * x)
    return y * (1 / 24 - y * (7 / 960 - y * (31 / 8064)))


def _shifted(cumulative: np.ndarray) -> np.ndarray:
    """Sums over the distances below each distance, from the cumulative sums that include it."""
    return np.pad(cumulative[:, :-1], ((0, 0), (1, 0)))


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide sums by their counts. Where a count is 0, the sum is 0 too, and so is the quotient."""
    return numerator / np.maximum(denominator, 1)


def _column(h: Histograms, radius: int) -> int:
    if radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    return min(radius, h.total.shape[1] - 1)  # a larger ball adds no items

"""Every metric against a slow twin: all orders of the ties, one by one, with short loops."""

import doctest
import itertools
import math
import random
from collections import Counter
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deephash_cli.retrieval import metrics
from deephash_cli.retrieval.metrics import Histograms

DENOMINATORS = ("hits", "min", "relevant")
EXACT = {"rel": 1e-12, "abs": 1e-12}


# Slow twins, on one ranking: a list of grades (how many labels an item shares with the query), nearest first.


def slow_ap(ranking):
    hits, total = 0, 0.0
    for position, grade in enumerate(ranking, start=1):
        if grade > 0:
            hits += 1
            total += hits / position
    return total / hits if hits else 0.0


def slow_ap_at(ranking, r, denominator):
    hits, total = 0, 0.0
    for position, grade in enumerate(ranking[:r], start=1):
        if grade > 0:
            hits += 1
            total += hits / position
    divisor = {"hits": hits, "min": min(r, relevant(ranking)), "relevant": relevant(ranking)}[denominator]
    return total / divisor if divisor else 0.0


def relevant(ranking):
    return sum(grade > 0 for grade in ranking)


def slow_precision(ranking, k):
    return relevant(ranking[:k]) / k


def slow_recall(ranking, k):
    return relevant(ranking[:k]) / relevant(ranking) if relevant(ranking) else 0.0


def slow_dcg(ranking, k):
    return sum((2**grade - 1) / math.log2(1 + position) for position, grade in enumerate(ranking[:k], start=1))


def slow_ndcg(ranking, k):
    ideal = slow_dcg(sorted(ranking, reverse=True), k)
    return slow_dcg(ranking, k) / ideal if ideal else 0.0


def slow_acg(ranking, k):
    return sum(ranking[:k]) / k


def slow_wap(ranking, r):
    terms = [slow_acg(ranking, rank) for rank, grade in enumerate(ranking[:r], start=1) if grade > 0]
    return sum(terms) / len(terms) if terms else 0.0


# Databases of one query: for each distance, the grades of the items there.


def every_order(groups):
    """Each order of grades that permutations within the ties can give, with the number of permutations that give it."""
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    return Counter(tuple(itertools.chain(*order)) for order in orders)


def expected(metric, orders):
    return math.fsum(metric(order) * times for order, times in orders.items()) / sum(orders.values())


def random_groups(rng, items=7):
    groups = [[] for _ in range(rng.randint(1, 5))]
    share = rng.choice((0.1, 0.5, 0.9))
    for _ in range(rng.randint(1, items)):
        rng.choice(groups).append(rng.randint(1, 4) if rng.random() < share else 0)
    return groups


CASES = [
    [[0, 1, 0, 2, 0, 0, 3]],  # all tied
    [[], [1, 1, 2], [], [0, 0, 1, 3], []],
    [[0, 0], [0, 0, 0]],  # none relevant
    [[1, 2], [1], [], [3, 1, 1]],  # everything relevant
    [[1, 1, 1, 1, 1, 1]],
    [[0]],
    [[4]],
    *(random_groups(random.Random(seed)) for seed in range(400)),
]


def shared_of(groups, grades=5):
    """Histogram (1, distances, grades) of one query."""
    shared = np.zeros((1, len(groups), grades), np.int64)
    for distance, group in enumerate(groups):
        for grade in group:
            shared[0, distance, grade] += 1
    return shared


def histograms_of(total, relevant):
    return Histograms(np.array([total], np.int64), np.array([relevant], np.int64))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_against_every_order(case):
    groups = CASES[case]
    shared, orders = shared_of(groups), every_order(groups)
    h, n = Histograms.of_shared(shared), sum(map(len, groups))

    assert metrics.average_precision(h)[0] == pytest.approx(expected(slow_ap, orders), **EXACT)
    assert metrics.average_precision_best(h)[0] == pytest.approx(max(map(slow_ap, orders)), **EXACT)
    assert metrics.average_precision_worst(h)[0] == pytest.approx(min(map(slow_ap, orders)), **EXACT)

    ks = [*range(1, n + 3), 20]
    for metric, twin in (
        (metrics.precision_at(h, ks), slow_precision),
        (metrics.recall_at(h, ks), slow_recall),
        (metrics.ndcg_at(h, ks), slow_ndcg),
        (metrics.acg_at(h, ks), slow_acg),
    ):
        by_loops = [expected(lambda order, k=k, twin=twin: twin(order, k), orders) for k in ks]
        assert metric[0] == pytest.approx(by_loops, **EXACT), twin.__name__
    for r, denominator in itertools.product(ks, DENOMINATORS):
        value = expected(lambda order, r=r, d=denominator: slow_ap_at(order, r, d), orders)
        assert metrics.average_precision_at(h, r, denominator)[0] == pytest.approx(value, **EXACT), (r, denominator)
    by_loops = [expected(lambda order, r=r: slow_wap(order, r), orders) for r in ks]
    assert [metrics.wap_at(h, r)[0] for r in ks] == pytest.approx(by_loops, **EXACT)
    assert metrics.wap(h)[0] == pytest.approx(by_loops[-1], **EXACT)

    for radius in range(len(groups) + 2):
        inside = sum(map(len, groups[: radius + 1]))
        precision = expected(lambda order, n=inside: slow_precision(order, n) if n else 0.0, orders)
        recall = expected(lambda order, n=inside: slow_recall(order, n), orders)
        in_ball = expected(lambda order, n=inside: slow_ap(order[:n]), orders)
        assert metrics.precision_within(h, radius)[0] == pytest.approx(precision, **EXACT)
        assert metrics.recall_within(h, radius)[0] == pytest.approx(recall, **EXACT)
        assert metrics.average_precision_within(h, radius)[0] == pytest.approx(in_ball, **EXACT)
        assert metrics.empty_ball(h, radius)[0] == (inside == 0)
        if radius < len(groups):
            assert metrics.precision_by_radius(h)[0, radius] == pytest.approx(precision, **EXACT)
            assert metrics.recall_by_radius(h)[0, radius] == pytest.approx(recall, **EXACT)


# Splitting the queries or changing the memory layout of the arrays changes no digit.


def many_queries(q=150, distances=49, grades=4, seed=0):
    """Databases of 0 to a million items, near or far, with few or many relevant items."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(0, 6, q) * (rng.random(q) < 0.95)
    places = rng.random((q, distances, 1)) ** rng.integers(0, 9, (q, 1, 1))
    shares = rng.random((q, 1, grades)) ** rng.integers(1, 9, (q, 1, 1))
    return (places * shares * (sizes / distances)[:, None, None]).astype(np.int64)


KS = [7, 1, 2, 100, 1000, 50_000, 10**12]
OF_HISTOGRAMS = {
    "average_precision": metrics.average_precision,
    "average_precision_best": metrics.average_precision_best,
    "average_precision_worst": metrics.average_precision_worst,
    **{
        f"average_precision_at {r} {denominator}": partial(metrics.average_precision_at, r=r, denominator=denominator)
        for r in (3, 1000, 50_000)
        for denominator in DENOMINATORS
    },
    "precision_at": partial(metrics.precision_at, ks=KS),
    "recall_at": partial(metrics.recall_at, ks=KS),
    "precision_by_radius": metrics.precision_by_radius,
    "recall_by_radius": metrics.recall_by_radius,
    "precision_within": partial(metrics.precision_within, radius=20),
    "recall_within": partial(metrics.recall_within, radius=20),
    "average_precision_within": partial(metrics.average_precision_within, radius=20),
    "empty_ball": partial(metrics.empty_ball, radius=2),
    "ndcg_at": partial(metrics.ndcg_at, ks=KS),
    "acg_at": partial(metrics.acg_at, ks=KS),
    "wap": metrics.wap,
    **{f"wap_at {r}": partial(metrics.wap_at, r=r) for r in (3, 1000, 50_000)},
}
EVERY_METRIC = {  # each as a function of the histogram of shared labels
    name: lambda shared, metric=metric: metric(Histograms.of_shared(shared)) for name, metric in OF_HISTOGRAMS.items()
}


@pytest.mark.parametrize("name", EVERY_METRIC)
def test_same_digits_however_queries_are_divided(name, monkeypatch):
    shared, metric = many_queries(), EVERY_METRIC[name]
    whole = metric(shared)
    assert whole.any()
    for rows in (1, 7, 64):
        parts = [metric(shared[start : start + rows]) for start in range(0, len(shared), rows)]
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    monkeypatch.setattr(metrics, "_QUERIES", 3)
    np.testing.assert_array_equal(whole, metric(shared))


def test_same_digits_however_arrays_are_laid_out():
    shared = many_queries()
    h = Histograms.of_shared(shared)
    other = Histograms(*(np.asfortranarray(side) for side in (h.total, h.relevant, shared)))
    for metric in OF_HISTOGRAMS.values():
        np.testing.assert_array_equal(metric(h), metric(other))


@pytest.mark.parametrize("name", EVERY_METRIC)
def test_without_queries_there_are_no_values(name):
    assert len(EVERY_METRIC[name](np.zeros((0, 49, 4), np.int64))) == 0


def test_cut_offs_are_independent_of_each_other():
    shared = many_queries(q=40, seed=1)
    h = Histograms.of_shared(shared)
    for metric in (metrics.precision_at, metrics.recall_at, metrics.ndcg_at, metrics.acg_at):
        one_by_one = [metric(h, [k]) for k in KS]
        np.testing.assert_array_equal(metric(h, KS), np.concatenate(one_by_one, axis=1))
        assert metric(h, []).shape == (40, 0)


# Other programs.


def rankings_without_ties(count=50, items=40, grades=2):
    rng = np.random.default_rng(0)
    for _ in range(count):
        ranking = rng.integers(1, grades, items, endpoint=False) if grades > 2 else np.ones(items, np.int64)
        ranking[rng.random(items) < 0.7] = 0
        ranking[rng.integers(items)] = grades - 1
        yield ranking, shared_of([[grade] for grade in ranking], grades)


def test_without_ties_average_precision_agrees_with_sklearn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    for ranking, shared in rankings_without_ties():
        h = Histograms.of_shared(shared)
        reference = sklearn_metrics.average_precision_score(ranking > 0, -np.arange(40.0))
        for value in (
            metrics.average_precision(h),
            metrics.average_precision_best(h),
            metrics.average_precision_worst(h),
            metrics.average_precision_at(h, 40),
            metrics.average_precision_at(h, 1000, "relevant"),
            metrics.average_precision_within(h, 39),
        ):
            assert value[0] == pytest.approx(reference, **EXACT)


@pytest.mark.parametrize("distances", [1, 2, 5, 30, 1000])
def test_ndcg_agrees_with_sklearn_which_averages_over_ties(distances):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng, ks = np.random.default_rng(distances), [1, 2, 5, 17, 59, 60, 100]
    for _ in range(20):
        distance, grades = rng.integers(0, distances, 60), rng.integers(0, 5, 60)
        shared = shared_of([grades[distance == d].tolist() for d in range(distances)])
        values = metrics.ndcg_at(Histograms.of_shared(shared), ks)[0]
        gains = 2.0**grades - 1
        assert values == pytest.approx(
            [sklearn_metrics.ndcg_score(gains[None], -distance[None].astype(float), k=k) for k in ks], **EXACT
        )


def test_without_ties_cut_offs_agree_with_torchmetrics():
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    torch = pytest.importorskip("torch")
    ks, scores = [1, 3, 10, 39, 40], 40 - torch.arange(40.0)  # torchmetrics ignores items whose score is not positive
    for ranking, shared in rankings_without_ties(count=20, grades=4):
        h = Histograms.of_shared(shared)
        is_relevant, gains = torch.tensor(ranking > 0), torch.tensor(2**ranking - 1)
        for values, reference, target in (
            (metrics.precision_at(h, ks)[0], retrieval.retrieval_precision, is_relevant),
            (metrics.recall_at(h, ks)[0], retrieval.retrieval_recall, is_relevant),
            (metrics.ndcg_at(h, ks)[0], retrieval.retrieval_normalized_dcg, gains),
            (
                [metrics.average_precision_at(h, k, "hits")[0] for k in ks],
                retrieval.retrieval_average_precision,
                is_relevant,
            ),
        ):
            assert values == pytest.approx([reference(scores, target, top_k=k).item() for k in ks], abs=1e-6)


# Known values.


@pytest.mark.parametrize(("n", "p"), [(1, 1), (10, 1), (10, 10), (50, 5), (59000, 5900), (59000, 1), (10**7, 3)])
def test_all_items_tied(n, p):
    h = histograms_of([0, n, 0], [0, p, 0])
    harmonic = math.fsum(1 / t for t in range(1, n + 1)) if n <= 59000 else math.log(n) + 0.5772156649015329 + 0.5 / n
    c = (p - 1) / (n - 1) if n > 1 else 0
    for value in (
        metrics.average_precision(h),
        metrics.average_precision_at(h, n, "hits"),
        metrics.average_precision_at(h, n, "relevant"),
        metrics.average_precision_within(h, 1),
    ):
        assert value[0] == pytest.approx(c + (1 - c) * harmonic / n, rel=1e-13)


def test_balanced_classes_without_information_are_near_chance():
    assert metrics.average_precision(histograms_of([59000], [5900]))[0] == pytest.approx(0.1, abs=2e-4)


def test_perfect_codes_score_exactly_one():
    h = histograms_of([5900, 0, 53100], [5900, 0, 0])
    for metric in (metrics.average_precision, metrics.average_precision_best, metrics.average_precision_worst):
        assert metric(h)[0] == 1
    for r in (1, 100, 5900, 59000, 10**12):
        assert metrics.average_precision_at(h, r)[0] == pytest.approx(1, rel=1e-15)
    assert metrics.average_precision_within(h, 0)[0] == metrics.recall_within(h, 0)[0] == 1
    assert metrics.ndcg_at(h, [1, 100, 5900, 59000])[0].tolist() == [1] * 4


def test_one_hit_at_rank_one_shows_what_the_denominators_mean():
    h = histograms_of([1, 9], [1, 3])
    assert metrics.average_precision_at(h, 1, "hits")[0] == 1
    assert metrics.average_precision_at(h, 1, "min")[0] == 1
    assert metrics.average_precision_at(h, 1, "relevant")[0] == 0.25


@pytest.mark.parametrize("name", EVERY_METRIC)
@pytest.mark.parametrize("items", [0, 1, 7])
def test_query_without_relevant_item_scores_zero(name, items):
    shared = np.zeros((2, 49, 4), np.int64)
    shared[:, 3:5, 0] = items
    value = EVERY_METRIC[name](shared)
    if name == "empty_ball":
        assert value.all()
    else:
        assert not value.any()
        assert not np.signbit(value).any()


def test_rank_beyond_the_database():
    h = histograms_of([2, 2], [1, 2])
    for k in (5, 10**12, 10**30):
        assert metrics.precision_at(h, [k])[0, 0] == pytest.approx(3 / k, rel=1e-15)
        assert metrics.recall_at(h, [k])[0, 0] == 1
        assert metrics.average_precision_at(h, k)[0] == pytest.approx(metrics.average_precision(h)[0], **EXACT)
        graded = Histograms.of_shared(shared_of([[0, 2], [1, 1]]))
        assert metrics.ndcg_at(graded, [k]) == metrics.ndcg_at(graded, [4])
        assert metrics.acg_at(graded, [k])[0, 0] == pytest.approx(4 / k, rel=1e-15)


def test_with_one_label_each_weighted_average_precision_is_average_precision():
    """One label each is computed as average precision; the sums for several labels agree to the last digit."""
    shared = many_queries(grades=2)
    h, wide = Histograms.of_shared(shared), Histograms.of_shared(np.pad(shared, ((0, 0), (0, 0), (0, 1))))
    np.testing.assert_array_equal(metrics.wap(wide), metrics.average_precision(h))
    np.testing.assert_array_equal(metrics.acg_at(wide, KS), metrics.precision_at(h, KS))
    for r in (1, 1000):
        np.testing.assert_array_equal(metrics.wap_at(wide, r), metrics.average_precision_at(h, r))
    for metric in OF_HISTOGRAMS.values():
        np.testing.assert_array_equal(metric(h), metric(wide))
        np.testing.assert_array_equal(metric(h), metric(Histograms(h.total, h.relevant)))


def test_shared_labels_count_as_relevance():
    h = Histograms.of_shared(np.array([[[4, 1, 2], [0, 0, 0], [3, 0, 0]]]))
    assert h.total.tolist() == [[7, 0, 3]]
    assert h.relevant.tolist() == [[3, 0, 0]]


# Exactness in large cases.


@given(st.integers(0, 3000), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_harmonic_steps_keep_their_digits(start, count):
    exact = sum((Fraction(1, start + t) for t in range(1, count + 1)), Fraction(0))
    assert metrics._harmonic(np.array([start]), np.array([count]))[0] == pytest.approx(float(exact), rel=2e-15, abs=0)


def test_harmonic_steps_keep_their_digits_far_out():
    for start in (10**7, 10**10):
        exact = sum(Fraction(1, start + t) for t in range(1, 6))
        assert metrics._harmonic(np.array([start]), np.array([5]))[0] == pytest.approx(float(exact), rel=2e-15, abs=0)


def exact_precisions(nearer, hits, size, p, ranks):
    """Expected sum of precisions at the relevant items among the first ``ranks`` of a group of ties, as a fraction."""
    total = Fraction(0)
    for t in range(1, ranks + 1 if p else 1):
        total += Fraction(p, size) * (hits + 1 + Fraction((t - 1) * (p - 1), max(size - 1, 1))) / (nearer + t)
    return total


def test_small_groups_behind_a_large_database_stay_exact():
    total, relevant = [59000, 2, 3, 1000], [0, 2, 1, 10]
    exact, nearer, hits = Fraction(0), 0, 0
    for n, p in zip(total, relevant, strict=True):
        exact += exact_precisions(nearer, hits, n, p, n)
        nearer, hits = nearer + n, hits + p
    value = metrics.average_precision(histograms_of(total, relevant))[0]
    assert value == pytest.approx(float(exact / sum(relevant)), rel=1e-13)


@given(st.integers(0, 60), st.integers(1, 150), st.data())
@settings(max_examples=60, deadline=None)
def test_hits_denominator_against_binomials(nearer, size, data):
    hits, p = data.draw(st.integers(0, nearer)), data.draw(st.integers(0, size))
    inside = data.draw(st.integers(1, size))
    complete, exact = exact_precisions(0, 0, nearer, hits, nearer), Fraction(0)
    for x in range(max(0, inside - size + p), min(inside, p) + 1):
        probability = Fraction(math.comb(p, x) * math.comb(size - p, inside - x), math.comb(size, inside))
        if hits + x:
            sums = complete + exact_precisions(nearer, hits, inside, x, inside)
            exact += probability * sums / (hits + x)
    value = metrics.average_precision_at(histograms_of([nearer, size], [hits, p]), nearer + inside)[0]
    assert value == pytest.approx(float(exact), **EXACT)


@pytest.mark.parametrize(
    ("nearer", "hits", "size", "p", "inside"),
    [
        (3, 1, 5000, 500, 997),
        (1200, 700, 5000, 600, 3800),
        (54_000, 5000, 5000, 900, 1),
        (54_000, 5000, 5000, 900, 4999),
        (0, 0, 59_000, 5900, 1000),
        (0, 0, 59_000, 59_000, 5000),
        (0, 0, 10**6, 10**5, 5000),
        (0, 0, 10**6, 500_000, 500_000),
        (0, 0, 10**6, 1, 5000),
        (0, 0, 10**6, 999_999, 5000),
        (10, 0, 10**6, 3, 999_999),
    ],
)
def test_hits_denominator_of_large_ties_against_all_numbers_of_hits(nearer, hits, size, p, inside):
    """The slow twin sums over every number of hits; each probability is a fraction of its neighbour's."""
    h = histograms_of([nearer, size], [hits, p])
    complete = metrics.average_precision_within(h, 0)[0] * hits
    harmonic = math.fsum(1 / (nearer + t) for t in range(1, inside + 1))
    low, high = max(0, inside - size + p), min(inside, p)
    mode = min(max(inside * p // size, low), high)
    weights = {mode: 1.0}
    for x in range(mode, high):
        weights[x + 1] = weights[x] * ((p - x) * (inside - x) / ((x + 1) * (size - p - inside + x + 1)))
    for x in range(mode, low, -1):
        weights[x - 1] = weights[x] * (x * (size - p - inside + x) / ((p - x + 1) * (inside - x + 1)))
    terms = []
    for x, weight in weights.items():
        c = (x - 1) / (inside - 1) if inside > 1 else 0.0
        sums = complete + x / inside * ((hits + 1 - c * (nearer + 1)) * harmonic + c * inside)
        terms.append(weight * sums / (hits + x) if hits + x else 0.0)
    value = metrics.average_precision_at(h, nearer + inside)[0]
    assert value == pytest.approx(math.fsum(terms) / math.fsum(weights.values()), **EXACT)


def test_hits_denominator_on_a_large_tie_agrees_with_simulation():
    h = histograms_of([50, 100_000], [20, 10_000])
    value = metrics.average_precision_at(h, 5000)[0]
    rng = np.random.default_rng(0)
    first = np.arange(50) < 20
    samples = []
    for _ in range(60):
        hits_first = rng.permutation(first)
        rest = rng.permutation(np.arange(100_000) < 10_000)[:4950]
        samples.append(slow_ap([*hits_first.tolist(), *rest.tolist()]))
    assert value == pytest.approx(np.mean(samples), abs=5 * np.std(samples) / len(samples) ** 0.5)


def test_ndcg_keeps_its_digits_far_out():
    shared = np.zeros((1, 3, 2), np.int64)
    shared[0, 0, 0], shared[0, 1, 1] = 10**6, 2
    late = 1 / math.log2(10**6 + 2) + 1 / math.log2(10**6 + 3)
    longer = np.finfo(np.longdouble).eps < 1e-16  # on some machines longdouble is no longer than float64
    value = metrics.ndcg_at(Histograms.of_shared(shared), [10**12])[0, 0]
    assert value == pytest.approx(late / (1 + 1 / math.log2(3)), rel=1e-13 if longer else 1e-9)


def test_ndcg_of_very_many_shared_labels_neither_overflows_nor_vanishes():
    shared = np.zeros((2, 2, 1001), np.int64)
    shared[0, 0, 999] = shared[0, 1, 1000] = 1
    shared[1, 0, 0] = shared[1, 1, 1] = 1  # in the other query the largest grade is 1
    second = 1 / math.log2(3)
    assert metrics.ndcg_at(Histograms.of_shared(shared), [1, 2]) == pytest.approx(
        np.array([[0.5, (0.5 + second) / (1 + 0.5 * second)], [0, second]]), **EXACT
    )


# Properties.

SIDES = st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=20)


def sides(groups):
    return [n for n, _ in groups], [int(n * share) for n, share in groups]


@given(SIDES)
def test_bounds_enclose_the_expectation(groups):
    h = histograms_of(*sides(groups))
    worst, expectation, best = (
        metric(h)[0]
        for metric in (metrics.average_precision_worst, metrics.average_precision, metrics.average_precision_best)
    )
    assert 0 <= worst <= expectation + 1e-12
    assert expectation <= best + 1e-12 <= 1 + 2e-12


@given(st.lists(st.lists(st.integers(0, 300), min_size=4, max_size=4), min_size=1, max_size=49))
@settings(deadline=None)
def test_every_metric_lies_between_zero_and_the_most_that_an_item_is_worth(grades):
    shared = np.array([grades])
    for name, metric in EVERY_METRIC.items():
        values = metric(shared)
        assert (values >= 0).all(), name
        assert (values <= (3 if name.startswith(("acg", "wap")) else 1) + 1e-12).all(), name


@given(SIDES, st.booleans())
def test_an_irrelevant_item_at_the_end_never_raises_average_precision(groups, tied):
    total, relevant = sides(groups)
    longer = ([*total[:-1], total[-1] + 1], relevant) if tied else ([*total, 1], [*relevant, 0])
    before, after = (metrics.average_precision(histograms_of(*side))[0] for side in ((total, relevant), longer))
    assert after <= before + 1e-12


@given(SIDES)
def test_precision_at_the_database_size_is_the_prevalence(groups):
    total, relevant = sides(groups)
    n = max(sum(total), 1)
    assert metrics.precision_at(histograms_of(total, relevant), [n])[0, 0] == sum(relevant) / n


@pytest.mark.parametrize("name", EVERY_METRIC)
def test_asking_every_query_twice_changes_no_mean(name):
    shared = many_queries(q=20, seed=2)
    twice = np.concatenate([shared, shared])
    once = EVERY_METRIC[name](shared)
    values = EVERY_METRIC[name](twice)
    np.testing.assert_array_equal(values, np.concatenate([once, once]))


def test_precision_and_recall_by_rank_meet_those_by_radius_where_a_ball_ends():
    shared = many_queries(q=20, seed=3)
    h = Histograms.of_shared(shared)
    for query in range(len(shared)):
        one = Histograms(h.total[query : query + 1], h.relevant[query : query + 1])
        ends = [rank for rank in one.within[0].tolist() if rank]
        at_ends = one.within[0] > 0
        np.testing.assert_array_equal(metrics.precision_at(one, ends)[0], metrics.precision_by_radius(one)[0, at_ends])
        np.testing.assert_array_equal(metrics.recall_at(one, ends)[0], metrics.recall_by_radius(one)[0, at_ends])


@pytest.mark.parametrize("n", [1, 2, 99, 100, 101, 59000, 10**9])
def test_ranks_of_a_curve(n):
    ranks = metrics.curve_ranks(n)
    assert ranks[0] == 1
    assert ranks[-1] == n
    assert len(ranks) <= 50
    assert all(a < b for a, b in itertools.pairwise(ranks))
    if n > 100:
        assert len(ranks) > 30


# Intervals, classes, hardest queries.


def slow_bootstrap(values, level, resamples, seed):
    """Draw with Python's integers: each 64-bit word gives two draws, its lower half first."""
    words = (len(values) + 1) // 2
    raw = iter(np.random.PCG64(seed).random_raw(resamples * words).tolist())
    means = []
    for _ in range(resamples):
        halves = [half for word in itertools.islice(raw, words) for half in (word % 2**32, word // 2**32)]
        means.append(math.fsum(values[half * len(values) // 2**32] for half in halves[: len(values)]) / len(values))
    return np.quantile(means, (1 - level) / 2), np.quantile(means, (1 + level) / 2)


@pytest.mark.parametrize("q", [1, 2, 7, 50])
def test_bootstrap_against_loops(q):
    values = np.random.default_rng(q).random(q)
    bounds = metrics.bootstrap_interval(values, 0.9, 99, seed=5)
    assert np.array(bounds) == pytest.approx(np.array(slow_bootstrap(values.tolist(), 0.9, 99, 5)), rel=1e-14)


def test_bootstrap_numbers_are_pinned():
    low, high = metrics.bootstrap_interval(np.arange(100.0), 0.95, 1000, seed=0)
    assert (low.item(), high.item()) == pytest.approx((43.81925, 54.9505), rel=1e-14)


@pytest.mark.parametrize("draws", [1, 300, 10**4])
def test_bootstrap_does_not_depend_on_blocks(monkeypatch, draws):
    values = np.random.default_rng(0).random((101, 3))
    expected = metrics.bootstrap_interval(values, 0.95, 200, seed=1)
    monkeypatch.setattr(metrics, "_DRAWS", draws)
    np.testing.assert_array_equal(metrics.bootstrap_interval(values, 0.95, 200, seed=1), expected)


def test_bootstrap_draws_the_same_queries_for_every_column():
    values = np.random.default_rng(0).random((101, 2, 3))
    low, high = metrics.bootstrap_interval(values, 0.95, 200, seed=1)
    assert low.shape == high.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        column = np.ascontiguousarray(values[:, i, j])
        assert metrics.bootstrap_interval(column, 0.95, 200, seed=1) == (low[i, j], high[i, j])
    assert (low < values.mean(axis=0)).all()
    assert (values.mean(axis=0) < high).all()


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    bounds = [metrics.bootstrap_interval(rng.normal(3, 2, 80), 0.9, 300, seed) for seed in range(400)]
    assert 0.85 <= np.mean([low <= 3 <= high for low, high in bounds]) <= 0.94
    # The width of the interval of a normal mean: 2 * 1.645 standard deviations / sqrt(n).
    assert np.mean([high - low for low, high in bounds]) == pytest.approx(2 * 1.645 * 2 / 80**0.5, rel=0.05)


def test_bootstrap_of_equal_values_is_that_value():
    assert metrics.bootstrap_interval(np.full(8, 0.25), 0.95, 10, seed=0) == (0.25, 0.25)


@pytest.mark.parametrize("multi_hot", [True, False])
def test_mean_by_class_against_loops(multi_hot):
    rng = np.random.default_rng(0)
    values = rng.random(60)
    labels = (rng.random((60, 5)) < 0.4).astype(np.uint8) if multi_hot else rng.integers(-1, 5, 60)
    carries = labels > 0 if multi_hot else labels[:, None] == np.arange(5)
    carries[:, 3] = False
    labels = carries.astype(np.uint8) if multi_hot else np.where(labels == 3, -1, labels)
    means, counts = metrics.mean_by_class(values, labels, 5)
    for c in range(5):
        own = [value for value, carried in zip(values.tolist(), carries[:, c].tolist(), strict=True) if carried]
        assert counts[c] == len(own)
        assert means[c] == pytest.approx(math.fsum(own) / len(own) if own else 0, **EXACT)
    assert counts[3] == means[3] == 0


def test_class_numbers_of_any_type_and_no_queries_at_all():
    values = np.array([0.5, 1.0])
    for dtype in (np.int16, np.int64, np.uint8):
        means, counts = metrics.mean_by_class(values, np.array([1, 1], dtype), 2)
        assert (means.tolist(), counts.tolist()) == ([0, 0.75], [0, 2])
    means, counts = metrics.mean_by_class(np.zeros(0), np.zeros((0, 2), np.uint8), 2)
    assert (means.tolist(), counts.tolist()) == ([0, 0], [0, 0])


def test_hardest_queries_come_lowest_first_and_in_order_of_position():
    values = np.array([0.5, 0.25, 0.5, 0.25, 1.0, 0.0])
    assert metrics.hardest(values, 4).tolist() == [5, 1, 3, 0]
    assert metrics.hardest(values, 0).tolist() == []
    assert metrics.hardest(values, 100).tolist() == [5, 1, 3, 0, 2, 4]


# Statistics of codes.


def test_bit_balance_and_unique_ratio(monkeypatch):
    codes = np.array([[0, 0, 1] * 4, [0, 1, 1] * 4, [0, 1, 1] * 4], np.bool_)
    packed = np.packbits(codes, axis=1, bitorder="little")
    assert metrics.bit_balance(packed, 12).tolist() == [0, 2 / 3, 1] * 4
    assert metrics.unique_ratio(packed) == 2 / 3
    monkeypatch.setattr(metrics, "_ROWS", 2)
    assert metrics.bit_balance(packed, 12).tolist() == [0, 2 / 3, 1] * 4


@pytest.mark.parametrize("bits", [1, 8, 12, 48, 63, 64, 65, 128, 250, 256])
def test_statistics_of_codes_of_any_width_read_from_a_file(bits, tmp_path):
    rng = np.random.default_rng(bits)
    codes = rng.random((300, bits)) < rng.random(bits)
    codes[100:] = codes[rng.integers(0, 100, 200)]
    codes[:50, : bits // 2] = False  # zero bytes at the start and at the end are part of a code
    codes[50:100, bits // 2 :] = False
    np.save(tmp_path / "codes.npy", np.packbits(codes, axis=1, bitorder="little"))
    packed = np.load(tmp_path / "codes.npy", mmap_mode="r")
    assert metrics.bit_balance(packed, bits) == pytest.approx(codes.mean(axis=0), **EXACT)
    assert metrics.unique_ratio(packed) == len({tuple(code) for code in codes.tolist()}) / 300
    assert metrics.unique_ratio(packed[::-2]) == len({tuple(code) for code in codes[::-2].tolist()}) / 150
    assert type(metrics.bit_balance(packed, bits)) is np.ndarray
    assert type(metrics.unique_ratio(packed)) is float


@pytest.mark.parametrize("bits", [1, 12, 48, 65, 250])
def test_bit_correlation_is_that_of_numpy(bits, monkeypatch):
    rng = np.random.default_rng(bits)
    codes = rng.random((300, bits)) < rng.random(bits)
    codes[:, bits // 2] = codes[:, 0]
    codes[:2], codes[:, bits - 1] = [[False], [True]], True  # the last bit never changes, the others do
    packed = np.packbits(codes, axis=1, bitorder="little")
    expected = np.zeros((bits, bits))
    if bits > 1:
        expected[:-1, :-1] = np.corrcoef(codes[:, :-1].T)
    assert metrics.bit_correlation(packed, bits) == pytest.approx(expected, abs=1e-12)
    whole = metrics.bit_correlation(packed, bits)
    monkeypatch.setattr(metrics, "_ROWS", 7)
    assert np.array_equal(metrics.bit_correlation(packed, bits), whole)


def test_statistics_of_no_codes_are_zero():
    assert metrics.bit_correlation(np.zeros((0, 2), np.uint8), 12).tolist() == [[0] * 12] * 12
    assert metrics.bit_balance(np.zeros((0, 2), np.uint8), 12).tolist() == [0] * 12
    assert metrics.unique_ratio(np.zeros((0, 2), np.uint8)) == 0


# Errors.


@pytest.mark.parametrize("k", [0, -8])
def test_ranks_below_one_are_refused(k):
    shared = np.array([[[1, 1], [2, 1]]])
    h = Histograms.of_shared(shared)
    for call in (
        lambda: metrics.precision_at(h, [1, k]),
        lambda: metrics.recall_at(h, [1, k]),
        lambda: metrics.average_precision_at(h, k),
        lambda: metrics.ndcg_at(h, [k]),
        lambda: metrics.acg_at(h, [1, k]),
    ):
        with pytest.raises(ValueError, match=f"k must be between 1 and the database size 5, got {k}"):
            call()


def test_negative_radius_is_refused():
    for metric in (
        metrics.precision_within,
        metrics.recall_within,
        metrics.average_precision_within,
        metrics.empty_ball,
    ):
        with pytest.raises(ValueError, match="radius must be at least 0, got -1"):
            metric(histograms_of([2], [1]), -1)


def test_unknown_denominator_is_refused():
    unchecked = getattr(metrics.average_precision_at, "__wrapped__", metrics.average_precision_at)
    with pytest.raises(Exception, match="denominator"):
        unchecked(histograms_of([2], [1]), 1, "total")


@pytest.mark.parametrize(("total", "relevant"), [([2, 3], [1, 4]), ([2], [-1]), ([], [])])
def test_impossible_histograms_are_refused(total, relevant):
    with pytest.raises(ValueError, match="must"):
        histograms_of(total, relevant)


def test_negative_counts_of_shared_labels_are_refused():
    with pytest.raises(ValueError, match="got a negative number"):
        Histograms.of_shared(np.array([[[2, -1, 1]]]))


@pytest.mark.parametrize(("n", "points"), [(0, 100), (10, 1)])
def test_curves_without_ranks_are_refused(n, points):
    with pytest.raises(ValueError, match="a curve needs"):
        metrics.curve_ranks(n, points)


@pytest.mark.parametrize(("queries", "level", "resamples"), [(0, 0.95, 10), (3, 0.0, 10), (3, 1.0, 10), (3, 0.95, 0)])
def test_impossible_intervals_are_refused(queries, level, resamples):
    with pytest.raises(ValueError, match=r"must|needs"):
        metrics.bootstrap_interval(np.zeros(queries), level, resamples, seed=0)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(ValueError, match="labels must lie below the number of classes 2, got 2"):
        metrics.mean_by_class(np.zeros(2), np.array([0, 2]), 2)


def test_examples_in_docstrings():
    results = doctest.testmod(metrics)
    assert results.failed == 0
    assert results.attempted >= 20

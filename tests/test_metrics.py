"""Every metric against a slow twin: all orders of the ties, one by one, with short loops."""

import doctest
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deephash_cli import metrics
from deephash_cli.metrics import Histograms

RANKS = (1, 2, 3, 4, 6, 7, 9)
EXACT = {"rel": 1e-12, "abs": 1e-12}


# Slow twins, on one ranking: a list of truth values, nearest first.


def slow_ap(ranking):
    hits, total = 0, 0.0
    for position, relevant in enumerate(ranking, start=1):
        if relevant:
            hits += 1
            total += hits / position
    return total / hits if hits else 0.0


def slow_ap_at(ranking, r, denominator):
    top = ranking[:r]
    hits, total = 0, 0.0
    for position, relevant in enumerate(top, start=1):
        if relevant:
            hits += 1
            total += hits / position
    divisor = {"hits": hits, "min": min(r, sum(ranking)), "relevant": sum(ranking)}[denominator]
    return total / divisor if divisor else 0.0


def slow_precision(ranking, k):
    return sum(ranking[:k]) / k


def slow_recall(ranking, k):
    return sum(ranking[:k]) / sum(ranking) if sum(ranking) else 0.0


def every_order(total, relevant):
    """All orders that the ties allow, as patterns: like items are interchangeable, so each stands for equally many."""
    groups = []
    for n, p in zip(total, relevant, strict=True):
        groups.append([[i in places for i in range(n)] for places in itertools.combinations(range(n), p)])
    return [list(itertools.chain(*parts)) for parts in itertools.product(*groups)]


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def random_case(rng, items=7):
    distances = rng.randint(1, 4)
    total = [0] * distances
    for _ in range(rng.randint(1, items)):
        total[rng.randrange(distances)] += 1
    relevance = rng.choice((0.1, 0.5, 0.9))
    return total, [sum(rng.random() < relevance for _ in range(n)) for n in total]


def histograms_of(total, relevant):
    return Histograms(np.array([total], np.int64), np.array([relevant], np.int64))


CASES = [random_case(random.Random(seed)) for seed in range(400)]


def test_patterns_stand_for_all_permutations():
    for total, relevant in CASES[:30]:
        items = [[(d, i < p) for i in range(n)] for d, (n, p) in enumerate(zip(total, relevant, strict=True))]
        orders = itertools.product(*(itertools.permutations(group) for group in items))
        values = [slow_ap([item[1] for group in order for item in group]) for order in orders]
        assert mean(values) == pytest.approx(mean(map(slow_ap, every_order(total, relevant))), **EXACT)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_against_every_order(case):
    total, relevant = CASES[case]
    h, orders = histograms_of(total, relevant), every_order(total, relevant)
    precisions = [slow_ap(order) for order in orders]
    assert metrics.average_precision(h)[0] == pytest.approx(mean(precisions), **EXACT)
    assert metrics.average_precision_best(h)[0] == pytest.approx(max(precisions), **EXACT)
    assert metrics.average_precision_worst(h)[0] == pytest.approx(min(precisions), **EXACT)
    for k in RANKS:
        assert metrics.precision_at(h, k)[0] == pytest.approx(mean(slow_precision(o, k) for o in orders), **EXACT)
        assert metrics.recall_at(h, k)[0] == pytest.approx(mean(slow_recall(o, k) for o in orders), **EXACT)
        for denominator in ("hits", "min", "relevant"):
            value = metrics.average_precision_at(h, k, denominator)[0]
            assert value == pytest.approx(mean(slow_ap_at(o, k, denominator) for o in orders), **EXACT), denominator


def test_many_queries_at_once_are_the_same_queries_one_by_one():
    cases = [case for case in CASES if len(case[0]) == 4]
    h = Histograms(*(np.array(side, np.int64) for side in zip(*cases, strict=True)))
    for metric in (
        metrics.average_precision,
        metrics.average_precision_best,
        metrics.average_precision_worst,
        lambda h: metrics.average_precision_at(h, 3),
        lambda h: metrics.average_precision_at(h, 3, "min"),
        lambda h: metrics.precision_at(h, 3),
        lambda h: metrics.recall_at(h, 3),
        lambda h: metrics.precision_within(h, 1),
        lambda h: metrics.empty_ball(h, 1),
        metrics.precision_by_radius,
        metrics.recall_by_radius,
    ):
        one_by_one = np.concatenate([metric(histograms_of(*case)) for case in cases])
        np.testing.assert_array_equal(metric(h), one_by_one)


def test_radius_curves_against_loops():
    for total, relevant in CASES[:100]:
        h = histograms_of(total, relevant)
        for radius in range(len(total)):
            inside, hits = sum(total[: radius + 1]), sum(relevant[: radius + 1])
            precision = hits / inside if inside else 0.0
            assert metrics.precision_by_radius(h)[0, radius] == precision
            assert metrics.precision_within(h, radius)[0] == precision
            assert metrics.recall_by_radius(h)[0, radius] == (hits / sum(relevant) if sum(relevant) else 0.0)
            assert metrics.empty_ball(h, radius)[0] == (inside == 0)
        assert metrics.precision_within(h, 10**6)[0] == sum(relevant) / sum(total)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_average_precision_of_ranking_against_loop(rankings):
    values = metrics.average_precision_of_ranking(np.array(rankings))
    assert values == pytest.approx([slow_ap(ranking) for ranking in rankings], **EXACT)


def test_without_ties_all_agree_with_sklearn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(50):
        relevance = rng.random(40) < 0.3
        relevance[rng.integers(40)] = True
        h = Histograms(np.ones((1, 40), np.int64), relevance[None].astype(np.int64))
        expected = sklearn_metrics.average_precision_score(relevance, -np.arange(40.0))
        for metric in (
            metrics.average_precision,
            metrics.average_precision_best,
            metrics.average_precision_worst,
            lambda h: metrics.average_precision_at(h, 40),
            lambda h: metrics.average_precision_at(h, 1000, "relevant"),
        ):
            assert metric(h)[0] == pytest.approx(expected, **EXACT)
        assert metrics.average_precision_of_ranking(relevance[None])[0] == pytest.approx(expected, **EXACT)


# Known values.


@pytest.mark.parametrize(("n", "p"), [(1, 1), (10, 1), (10, 10), (50, 5), (59000, 5900), (59000, 1), (10**7, 3)])
def test_all_items_tied(n, p):
    h = histograms_of([0, n, 0], [0, p, 0])
    harmonic = math.fsum(1 / t for t in range(1, n + 1)) if n <= 59000 else math.log(n) + 0.5772156649015329 + 0.5 / n
    c = (p - 1) / (n - 1) if n > 1 else 0
    assert metrics.average_precision(h)[0] == pytest.approx(c + (1 - c) * harmonic / n, rel=1e-13)


def test_balanced_classes_without_information_are_near_chance():
    assert metrics.average_precision(histograms_of([59000], [5900]))[0] == pytest.approx(0.1, abs=2e-4)


def test_perfect_codes_score_exactly_one():
    h = histograms_of([5900, 0, 53100], [5900, 0, 0])
    for metric in (metrics.average_precision, metrics.average_precision_best, metrics.average_precision_worst):
        assert metric(h)[0] == 1
    for r in (1, 100, 5900, 59000, 10**12):
        assert metrics.average_precision_at(h, r)[0] == 1


def test_one_hit_at_rank_one_shows_what_the_denominators_mean():
    h = histograms_of([1, 9], [1, 3])
    assert metrics.average_precision_at(h, 1, "hits")[0] == 1
    assert metrics.average_precision_at(h, 1, "min")[0] == 1
    assert metrics.average_precision_at(h, 1, "relevant")[0] == 0.25


def test_query_without_relevant_item_scores_zero():
    h = histograms_of([3, 4], [0, 0])
    values = [
        metrics.average_precision(h),
        metrics.average_precision_best(h),
        metrics.average_precision_worst(h),
        *(metrics.average_precision_at(h, 5, denominator) for denominator in ("hits", "min", "relevant")),
        metrics.precision_at(h, 5),
        metrics.recall_at(h, 5),
        metrics.precision_within(h, 1),
        metrics.average_precision_of_ranking(np.zeros((1, 7), np.bool_)),
    ]
    assert [value[0] for value in values] == [0] * len(values)
    assert not metrics.recall_by_radius(h).any()


def test_nothing_to_rank_scores_zero():
    h = histograms_of([0, 0], [0, 0])
    assert (
        metrics.average_precision(h)[0] == metrics.average_precision_at(h, 3)[0] == metrics.precision_at(h, 3)[0] == 0
    )
    assert metrics.empty_ball(h, 1)[0]
    assert metrics.average_precision_of_ranking(np.zeros((2, 0), np.bool_)).tolist() == [0, 0]


def test_rank_beyond_the_database():
    h = histograms_of([2, 2], [1, 2])
    assert metrics.precision_at(h, 10**12)[0] == 3 / 10**12
    assert metrics.recall_at(h, 10**12)[0] == 1
    assert metrics.average_precision_at(h, 10**12)[0] == pytest.approx(metrics.average_precision(h)[0], **EXACT)


# Exactness far from small cases.


@given(st.integers(0, 3000), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_harmonic_steps_keep_their_digits(start, count):
    exact = sum((Fraction(1, start + t) for t in range(1, count + 1)), Fraction(0))
    assert metrics._harmonic(np.array([start]), np.array([count]))[0] == pytest.approx(float(exact), rel=2e-15, abs=0)


def test_harmonic_steps_keep_their_digits_far_out():
    for start in (10**7, 10**10):
        exact = sum(Fraction(1, start + t) for t in range(1, 6))
        assert metrics._harmonic(np.array([start]), np.array([5]))[0] == pytest.approx(float(exact), rel=2e-15, abs=0)


def test_small_groups_behind_a_large_database_stay_exact():
    total, relevant = [59000, 2, 3, 1000], [0, 2, 1, 10]
    exact, nearer, hits = Fraction(0), 0, 0
    for n, p in zip(total, relevant, strict=True):
        for t in range(1, n + 1 if p else 0):
            exact += Fraction(p, n) * (hits + 1 + Fraction((t - 1) * (p - 1), max(n - 1, 1))) / (nearer + t)
        nearer, hits = nearer + n, hits + p
    value = metrics.average_precision(histograms_of(total, relevant))[0]
    assert value == pytest.approx(float(exact / sum(relevant)), rel=1e-13)


@given(st.integers(1, 400), st.data())
@settings(max_examples=100, deadline=None)
def test_hypergeometric_against_binomials(size, data):
    relevant, drawn = data.draw(st.integers(0, size)), data.draw(st.integers(1, size))
    hits, probability = metrics._hypergeometric(size, relevant, drawn)
    exact = [
        float(Fraction(math.comb(relevant, h) * math.comb(size - relevant, drawn - h), math.comb(size, drawn)))
        for h in hits.tolist()
    ]
    assert probability == pytest.approx(exact, rel=1e-12, abs=1e-300)
    assert math.fsum(exact) == pytest.approx(1)


def test_hits_denominator_on_a_large_tie_agrees_with_simulation_and_bounds():
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


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=20))
def test_bounds_enclose_the_expectation(groups):
    total = [n for n, _ in groups]
    relevant = [int(n * share) for n, share in groups]
    h = histograms_of(total, relevant)
    worst, expected, best = (
        metric(h)[0]
        for metric in (metrics.average_precision_worst, metrics.average_precision, metrics.average_precision_best)
    )
    assert 0 <= worst <= expected + 1e-12
    assert expected <= best + 1e-12 <= 1 + 2e-12


# Statistics of codes.


def test_bit_balance_and_unique_ratio(monkeypatch):
    codes = np.array([[0, 0, 1] * 4, [0, 1, 1] * 4, [0, 1, 1] * 4], np.bool_)
    packed = np.packbits(codes, axis=1, bitorder="little")
    assert metrics.bit_balance(packed, 12).tolist() == [0, 2 / 3, 1] * 4
    assert metrics.unique_ratio(packed) == 2 / 3
    monkeypatch.setattr(metrics, "_ROWS", 2)
    assert metrics.bit_balance(packed, 12).tolist() == [0, 2 / 3, 1] * 4


def test_statistics_of_no_codes_are_zero():
    assert metrics.bit_balance(np.zeros((0, 2), np.uint8), 12).tolist() == [0] * 12
    assert metrics.unique_ratio(np.zeros((0, 2), np.uint8)) == 0


# Errors.


@pytest.mark.parametrize("k", [0, -8])
def test_ranks_below_one_are_refused(k):
    h = histograms_of([2, 3], [1, 1])
    for metric in (metrics.precision_at, metrics.recall_at, metrics.average_precision_at):
        with pytest.raises(ValueError, match=f"k must be between 1 and the database size 5, got {k}"):
            metric(h, k)


def test_negative_radius_is_refused():
    for metric in (metrics.precision_within, metrics.empty_ball):
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


def test_examples_in_docstrings():
    results = doctest.testmod(metrics)
    assert results.failed == 0
    assert results.attempted >= 12

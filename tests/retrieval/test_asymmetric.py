"""Asymmetric rankings against a slow twin: every order of the database that the products allow, one by one."""

import itertools
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deephash_cli.retrieval import asymmetric, ranking
from deephash_cli.retrieval.codes import CodeSet, pack, rounded, unpack
from deephash_cli.retrieval.kernels import compiled, vectorized
from deephash_cli.retrieval.scoring import evaluate

KS, RS = [1, 2, 3, 9], [1, 3, 9]
EXACT = {"rel": 1e-12, "abs": 1e-12}
FEW = [-1.0, -0.5, 0.5, 1.0, 0.0]  # few values give many ties
WIDE = [-65504.0, 65504.0, 2**-24, -(2**-24), 0.1, -1.0, 0.0]  # float64 holds every sum, float32 does not


@pytest.fixture(params=[compiled, vectorized], ids=["compiled", "vectorized"])
def engine(request, monkeypatch):
    monkeypatch.setattr(ranking, "_kernels", lambda: request.param)


def sides(seed, q=3, n=6, bits=5, values=FEW, multi=False, classes=2):
    rng = np.random.default_rng(seed)
    made = []
    for rows in (q, n):
        u = rng.choice(np.array(values, np.float16), (rows, bits)) if values else rng.normal(size=(rows, bits))
        labels = np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, rows)]
        if multi:
            labels = (rng.random((rows, classes)) < 0.4).astype(np.uint8)
        made.append(CodeSet(pack(u >= 0), bits, labels, None, rounded(u)))
    return made


def slow_ap(relevant, first=None):
    hits, total = 0, Fraction(0)
    for rank, is_relevant in enumerate(relevant[:first], start=1):
        if is_relevant:
            hits += 1
            total += Fraction(hits, rank)
    return total / hits if hits else Fraction(0)


def slow_precision(relevant, k):
    return Fraction(sum(relevant[:k]), k)


def slow_product(u, code):
    return sum((Fraction(float(x)) * (1 if bit else -1) for x, bit in zip(u, code, strict=True)), Fraction(0))


def slow(query, database, own):
    """Return every metric of every query by definition: its mean over the orders of the database that are right."""
    codes = unpack(database.packed, database.bits)
    found = []
    for u, labels, itself in zip(query.u, query.labels, own, strict=True):
        items = [j for j in range(database.n) if j != itself]
        products = {j: slow_product(u, codes[j]) for j in items}
        relevant = {j: bool((labels & database.labels[j]).any()) for j in items}
        orders = [
            [relevant[j] for j in order]
            for order in itertools.permutations(items)
            if all(products[a] >= products[b] - Fraction(1, 10**12) for a, b in itertools.pairwise(order))
        ]
        found.append(
            {
                "map_asymmetric": statistics.mean(map(slow_ap, orders)),
                **{f"map_at_{r}_asymmetric": statistics.mean(slow_ap(o, r) for o in orders) for r in RS},
                "precision_at_k_asymmetric": [statistics.mean(slow_precision(o, k) for o in orders) for k in KS],
            }
        )
    return {name: np.array([metrics[name] for metrics in found], np.float64) for name in found[0]}


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 18), st.sampled_from([FEW, WIDE, None]), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_against_every_order(engine, seed, n, bits, values, multi):
    query, database = sides(seed, n=n, bits=bits, values=values, multi=multi)
    own = np.random.default_rng(seed).integers(-1, n, query.n)
    result, expected = asymmetric.per_query(query, database, own, KS, RS), slow(query, database, own)
    assert list(result) == list(expected)
    for name, values_of in expected.items():
        assert result[name] == pytest.approx(values_of, **EXACT), name


def test_equal_products_are_ties_although_they_are_sums_of_different_values(engine):
    """0.1 + 0.2 - 0.3 is not 0 in float64, but these are exact: both items have a product of 0, and one is relevant."""
    u = np.array([[3.0, 2.0, 1.0]], np.float16)
    query = CodeSet(pack(u >= 0), 3, np.array([[1]], np.uint8), None, u)
    codes = np.array([[1, 0, 0], [0, 1, 1]], bool)
    database = CodeSet(pack(codes), 3, np.array([[1], [0]], np.uint8), None)
    result = asymmetric.per_query(query, database, np.array([-1]), [1], [])
    assert result["map_asymmetric"].tolist() == [0.75]
    assert result["precision_at_k_asymmetric"].tolist() == [[0.5]]


@pytest.mark.parametrize("multi", [False, True])
def test_for_codes_without_magnitudes_it_is_the_hamming_ranking(engine, multi):
    query, database = sides(1, q=20, n=200, bits=12, values=[-1.0, 1.0], multi=multi)
    result = evaluate(query, database, ks=[1, 10, 300], map_at=[5, 300], radius=2)
    for name in ("map", "map_at_5", "map_at_300"):
        assert result[f"{name}_asymmetric"] == pytest.approx(result[name], rel=1e-12)
    assert result["precision_at_k_asymmetric"] == pytest.approx(result["precision_at_k"], rel=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 3), st.sampled_from([FEW, None]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_engine_threads_and_grouping_of_queries_move_nothing(seed, pairs, threads, values, multi):
    query, database = sides(seed, q=11, n=90, bits=9, values=values, multi=multi)
    own = np.random.default_rng(seed).integers(-1, 90, 11)
    whole = asymmetric.per_query(query, database, own, KS, RS, threads=1)
    for engine in (compiled, vectorized):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranking, "_kernels", lambda engine=engine: engine)
            patch.setattr(asymmetric, "_PAIRS", pairs)
            parts = asymmetric.per_query(query, database, own, KS, RS, threads=threads)
        for name, values_of in whole.items():
            assert np.array_equal(parts[name], values_of), name


def test_a_query_whose_only_item_is_itself(engine):
    query, database = sides(0, q=2, n=1)
    result = asymmetric.per_query(query, database, np.array([0, 0]), [1], [1])
    assert not any(values.any() for values in result.values())

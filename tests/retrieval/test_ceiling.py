"""The ceiling of binary codes against a slow twin, and the queries that it is computed for."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deephash_cli.retrieval import ceiling, ranking
from deephash_cli.retrieval.codes import CodeSet, pack
from deephash_cli.retrieval.kernels import compiled, vectorized
from deephash_cli.retrieval.scoring import evaluate, numbers


@pytest.fixture(params=[compiled, vectorized], ids=["compiled", "vectorized"])
def engine(request, monkeypatch):
    monkeypatch.setattr(ranking, "_kernels", lambda: request.param)


def slow_cosine(x, y):
    lengths = math.sqrt(math.fsum(a * a for a in x)) * math.sqrt(math.fsum(b * b for b in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / lengths if lengths else 0.0


def slow_ap(relevant):
    hits, total = 0, 0.0
    for rank, is_relevant in enumerate(relevant, start=1):
        if is_relevant:
            hits += 1
            total += hits / rank
    return total / hits if hits else 0.0


def slow(query, database, query_labels, database_labels, own):
    """Return the mean AP of each query over all orders that its cosines allow, for few items."""
    found = []
    for x, labels, itself in zip(query.tolist(), query_labels, own, strict=True):
        items = [j for j in range(len(database)) if j != itself]
        cosines = {j: slow_cosine(x, database[j].tolist()) for j in items}
        orders = [
            [bool((labels & database_labels[j]).any()) for j in order]
            for order in itertools.permutations(items)
            if all(cosines[a] >= cosines[b] - 1e-12 for a, b in itertools.pairwise(order))
        ]
        found.append(statistics.mean(map(slow_ap, orders)))
    return found


def vectors(rng, rows, width, few):
    values = rng.choice([-1.0, 0.0, 0.5, 2.0], (rows, width)) if few else rng.normal(size=(rows, width))
    return values.astype(np.float16)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.sampled_from([1, 2**25]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_against_every_order(engine, seed, n, width, few, held):
    rng = np.random.default_rng(seed)
    query, database = vectors(rng, 3, width, few), vectors(rng, n, width, few)
    labels = [(rng.random((rows, 2)) < 0.5).astype(np.uint8) for rows in (3, n)]
    own = rng.integers(-1, n, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceiling, "_HELD", held)
        result = ceiling.average_precision(query, database.__getitem__, *labels, own)
    assert result == pytest.approx(slow(query, database, *labels, own), rel=1e-12, abs=1e-12)


def test_items_in_the_same_direction_are_ties():
    """Their cosines are equal, but floating-point numbers give them different last digits."""
    direction = np.random.default_rng(0).normal(size=64)
    database = direction * np.array([0.1, 0.3, 0.7, 1.1, 3.0, 7.0])[:, None]
    cosines = database @ direction / np.linalg.norm(database, axis=1) / np.linalg.norm(direction)
    assert 0 < np.ptp(cosines) < 1e-12
    labels = np.array([[1], [0], [0], [0], [0], [0]], np.uint8)
    result = ceiling.average_precision(direction[None], database.__getitem__, labels[:1], labels, np.array([-1]))
    assert result[0] == pytest.approx(sum(1 / rank for rank in range(1, 7)) / 6, rel=1e-12)


def made(rows, seed, noise, classes=3, bits=8):
    rng = np.random.default_rng(seed)
    of_class = rng.integers(0, classes, rows)
    u = np.random.default_rng(1).normal(size=(classes, bits))[of_class] + noise * rng.normal(size=(rows, bits))
    u = u.astype(np.float16)
    return CodeSet(pack(u >= 0), bits, np.eye(classes, dtype=np.uint8)[of_class], None, u)


def test_metrics_have_the_ceiling_if_both_sides_are_continuous():
    query, database = made(20, 2, 0.8), made(90, 3, 0.8)
    options = {"ks": [1], "map_at": [], "radius": 2}
    result = evaluate(query, database, **options)
    own = np.full(20, -1)
    outputs = ceiling.average_precision(query.u, database.u.__getitem__, query.labels, database.labels, own).mean()
    assert result["ceiling"] == {
        "map_outputs": outputs, "lost_by_binarizing": outputs - result["map"], "queries": 20
    }  # fmt: skip
    assert result["ceiling"]["lost_by_binarizing"] > 0.01
    found = numbers(result)
    assert found["map_outputs"] == outputs
    assert found["queries"] == 20
    bare = CodeSet(database.packed, database.bits, database.labels, None)
    without = evaluate(query, bare, **options)
    assert "ceiling" not in without
    assert {**result["policies"], **without["policies"]} == result["policies"]
    assert without["map_asymmetric"] == result["map_asymmetric"]


def test_what_is_lost_is_measured_on_the_same_queries(monkeypatch):
    query, database = made(20, 2, 0.8), made(90, 3, 0.8)
    query.labels[3:9] = 0
    monkeypatch.setattr(ceiling, "PAIRS", 5 * 90 + 1)
    for zero_hits, counted in (("zero", np.arange(20)), ("skip", np.r_[:3, 9:20])):
        found = evaluate(query, database, ks=[1], map_at=[], radius=2, zero_hits=zero_hits)["ceiling"]
        rows = ceiling.sample(counted, 90)
        assert found["queries"] == len(rows) == 5
        assert set(rows) <= set(counted)
        u = query.u[rows]
        chosen = CodeSet(query.packed[rows], 8, query.labels[rows], None, u)
        alone = evaluate(chosen, database, ks=[1], map_at=[], radius=2)
        assert found["map_outputs"] == pytest.approx(alone["ceiling"]["map_outputs"], rel=1e-12)
        assert found["lost_by_binarizing"] == pytest.approx(alone["ceiling"]["lost_by_binarizing"], abs=1e-12)


def test_a_sample_of_queries_is_always_the_same():
    assert ceiling.sample(np.arange(100), 2**26 // 4).tolist() == [3, 11, 20, 92]
    assert ceiling.sample(np.arange(100), 2**26 // 100).tolist() == list(range(100))
    assert len(ceiling.sample(np.arange(100), 2**40)) == 1

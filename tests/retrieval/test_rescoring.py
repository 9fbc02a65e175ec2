"""Rescoring against loops: scores, their order, shortlists of every kind of index, and what is left out."""

import numpy as np
import pytest
from searching import SETTINGS, codes, twin

from deephash_cli.errors import ConfigError
from deephash_cli.retrieval import indexes, ranking, rescoring
from deephash_cli.retrieval.codes import pack, unpack
from deephash_cli.retrieval.kernels import compiled, vectorized


@pytest.fixture(params=[compiled, vectorized], ids=["compiled", "vectorized"])
def engine(request, monkeypatch):
    monkeypatch.setattr(ranking, "_FEW", 0)
    monkeypatch.setattr(ranking, "_kernels", lambda: request.param)


def problem(bits, n=300, q=6, seed=0, dtype=np.float32):
    """Continuous codes in steps of 1/4, so that many scores are equal; packed queries and a database of few codes."""
    rng = np.random.default_rng(seed)
    u = (rng.integers(-8, 9, (q, bits)) / 4).astype(dtype)
    return u, pack(u >= 0), codes(n, bits, seed)


def slow(u, queries, database, own=None):
    """(score, distance, position) of all other items for each query, in their order, by loops."""
    bits, found = u.shape[1], []
    signs = np.where(unpack(database, bits), 1, -1).tolist()
    for i, items in enumerate(twin(queries, database, bits)):
        scored = [(-sum(a * b for a, b in zip(u[i].tolist(), signs[j], strict=True)), d, j) for d, j in items]
        found.append([(-score, d, j) for score, d, j in sorted(scored) if own is None or j != own[i]])
    return found


def rows(ranked):
    """The results of each query as a list of (score, distance, position), without missing ones."""
    return [
        [item for item in zip(*(side.tolist() for side in row), strict=True) if item[2] >= 0]
        for row in zip(*ranked, strict=True)
    ]


@pytest.mark.parametrize("k", [1, 7, 300, 10**6])
@pytest.mark.parametrize("bits", [1, 7, 12, 64, 65, 130])
def test_exact_asymmetric_search_against_loops(engine, bits, k):
    u, queries, database = problem(bits)
    expected = slow(u, queries, database)
    for threads in (1, 3):
        found = rows(ranking.asymmetric(u, queries, database, k, threads=threads))
        assert found == [items[:k] for items in expected]
    own = np.array([0, -1, 299, 5, 5, -1])
    found = rows(ranking.asymmetric(u, queries, database, k, own))
    assert found == [items[:k] for items in slow(u, queries, database, own)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_engines_agree_to_the_last_digit(monkeypatch, dtype):
    rng = np.random.default_rng(1)
    u, database = rng.normal(size=(9, 70)).astype(dtype), codes(500, 70)
    found = {}
    monkeypatch.setattr(ranking, "_FEW", 0)
    for kernels in (compiled, vectorized):
        monkeypatch.setattr(ranking, "_kernels", lambda kernels=kernels: kernels)
        found[kernels] = ranking.asymmetric(u, pack(u >= 0), database, 500)
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    exact = u.astype(np.float64) @ np.where(unpack(database, 70), 1.0, -1.0).T
    scores, _, positions = found[compiled]
    np.testing.assert_allclose(scores, np.take_along_axis(exact, positions, axis=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", indexes.KINDS)
@pytest.mark.parametrize("own", [False, True])
def test_the_shortlist_of_every_index_is_ranked(engine, kind, own):
    if kind != "exact":
        pytest.importorskip("faiss")
    u, queries, database = problem(20)
    at = np.array([0, 299, 5, -1, 17, 3]) if own else None
    index = (
        indexes.Exact(database, 20) if kind == "exact" else indexes.build(kind, database, 20, SETTINGS.get(kind, {}))
    )
    found = rows(rescoring.nearest(index, database, queries, u, 5, 40, at))
    distances, positions = index.nearest(queries, 41 if own else 40)
    for i, items in enumerate(slow(u, queries, database, at)):
        near = [j for j in positions[i].tolist() if j >= 0 and (at is None or j != at[i])][:40]
        assert found[i] == [item for item in items if item[2] in near][:5]
        assert all(distance <= distances[i].max() for _, distance, _ in found[i])
    whole = rows(rescoring.nearest(index, database, queries, u, 5, 300, at))
    assert whole == [items[:5] for items in slow(u, queries, database, at)]


def test_within_a_radius_everything_is_ranked(engine):
    u, queries, database = problem(20)
    index = indexes.Exact(database, 20)
    for i, items in enumerate(slow(u, queries, database)):
        found = rows(rescoring.within(index, database, queries[i : i + 1], u[i : i + 1], 6))
        assert found == [[item for item in items if item[1] <= 6]]
    nothing = rescoring.within(index, 255 - database, np.full((1, 3), 7, np.uint8), u[:1], 0)
    assert rows(nothing) == [[]]


def test_infinite_values_count_as_the_largest_of_float16(engine):
    database = np.array([[3], [1], [0]], np.uint8)
    u = np.array([[np.inf, -1.0], [-np.inf, np.inf]], np.float32)
    scores, _, positions = ranking.asymmetric(u, pack(u >= 0), database, 3)
    assert scores.tolist() == [[65505, 65503, -65503], [0, 0, -131008]]
    assert positions.tolist() == [[1, 0, 2], [0, 2, 1]]


def test_what_does_not_fit_is_refused():
    u, queries, database = problem(20)
    with pytest.raises(ValueError, match=r"one value for each bit of 3 bytes, got \(6, 12\)"):
        ranking.asymmetric(u[:, :12], queries, database, 3)
    u[3, 4] = np.nan
    with pytest.raises(ValueError, match="got NaN in row 3"):
        ranking.rescore(u, database, np.zeros((6, 2), int), np.zeros((6, 2), int), 1)


def test_a_shortlist_holds_all_results():
    assert rescoring.settle(None, 5, 10) is None
    assert rescoring.settle("asymmetric", 10, 10) == 10
    with pytest.raises(ConfigError, match="shortlist must be at least k, got shortlist=9 and k=10"):
        rescoring.settle("asymmetric", 9, 10)

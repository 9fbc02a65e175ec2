"""Distances, histograms and the stable order, against loops over unpacked bits."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deephash_cli import ranking
from deephash_cli.codes import pack

BITS = [1, 7, 8, 12, 16, 24, 31, 32, 36, 48, 63, 64, 65, 100, 126, 127, 128, 200, 248, 249, 256, 300]


class Problem:
    """Random codes and labels, with everything that the module computes done by loops."""

    def __init__(self, seed, q=5, n=30, bits=12, classes=4, kind="single", exclude=True):
        rng = np.random.default_rng(seed)
        self.bits = bits
        self.query, self.database = rng.random((q, bits)) < 0.5, rng.random((n, bits)) < 0.5
        self.query_labels, self.database_labels = (
            np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, rows)]
            if kind == "single"
            else (rng.random((rows, classes)) < (0.3 if classes < 50 else 0.03)).astype(np.uint8)
            for rows in (q, n)
        )
        if kind == "single" and q > 1 and n > 1:
            self.query_labels[0] = self.database_labels[0] = 0
        self.exclude = rng.integers(-1, n, q) if exclude and n else None

    @property
    def arguments(self):
        return (
            pack(self.query),
            pack(self.database),
            self.bits,
            self.query_labels,
            self.database_labels,
            self.exclude,
        )

    def slow(self):
        total = np.zeros((len(self.query), self.bits + 1), np.int64)
        relevant = np.zeros_like(total)
        relevance = np.zeros((len(self.query), len(self.database)), np.bool_)
        for i, (code, labels) in enumerate(zip(self.query, self.query_labels, strict=True)):
            items = []
            for j, (other, others) in enumerate(zip(self.database, self.database_labels, strict=True)):
                if self.exclude is not None and self.exclude[i] == j:
                    continue
                distance = sum(a != b for a, b in zip(code.tolist(), other.tolist(), strict=True))
                shared = any(a and b for a, b in zip(labels.tolist(), others.tolist(), strict=True))
                total[i, distance] += 1
                relevant[i, distance] += shared
                items.append((distance, j, shared))
            relevance[i, : len(items)] = [shared for _, _, shared in sorted(items)]
        return total, relevant, relevance


def ranked(*arguments, **options):
    parts = list(ranking.rank(*arguments, **options))
    assert [part.queries.start for part in parts[1:]] == [part.queries.stop for part in parts[:-1]]
    return tuple(np.concatenate([getattr(part, name) for part in parts]) for name in ("total", "relevant", "relevance"))


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bits", BITS)
def test_distances_equal_unpacked_counts(bits):
    problem = Problem(bits, bits=bits)
    result = ranking.distances(pack(problem.query), pack(problem.database))
    np.testing.assert_array_equal(result, (problem.query[:, None] != problem.database[None]).sum(axis=2))
    extremes = pack(np.stack([np.zeros(bits, np.bool_), np.ones(bits, np.bool_)]))
    assert ranking.distances(extremes, extremes).tolist() == [[0, bits], [bits, 0]]


@pytest.mark.parametrize("bits", [8, 16, 24, 48, 64, 128, 256])
def test_distances_agree_with_faiss(bits):
    faiss = pytest.importorskip("faiss")
    problem = Problem(bits, q=10, n=200, bits=bits)
    index = faiss.IndexBinaryFlat(bits)
    index.add(pack(problem.database))
    found, positions = index.search(pack(problem.query), 200)
    ours = ranking.distances(pack(problem.query), pack(problem.database))
    np.testing.assert_array_equal(np.take_along_axis(ours, positions, axis=1), found)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("bits", BITS)
def test_histograms_and_stable_order_against_loops(bits, kind):
    problem = Problem(bits, bits=bits, kind=kind)
    expected = problem.slow()
    assert_same(ranked(*problem.arguments), expected)
    assert_same(ranking.histograms(*problem.arguments), expected[:2])


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("classes", [1, 8, 9, 81, 300])
def test_any_number_of_classes(classes, kind):
    problem = Problem(classes, classes=classes, kind=kind)
    np.testing.assert_array_equal(
        ranking.similar(problem.query_labels, problem.database_labels),
        (problem.query_labels.astype(int) @ problem.database_labels.T.astype(int)) > 0,
    )
    assert_same(ranked(*problem.arguments), problem.slow())


def test_one_label_on_one_side_and_several_on_the_other():
    query, database = np.array([[1, 0, 0], [0, 0, 1]], np.uint8), np.array([[1, 1, 0], [0, 0, 0]], np.uint8)
    assert ranking.similar(query, database).tolist() == [[True, False], [False, False]]
    assert ranking.similar(database, query).tolist() == [[True, False], [False, False]]


def test_images_without_labels_are_similar_to_nothing():
    none = np.zeros((2, 5), np.uint8)
    assert not ranking.similar(none, none).any()
    assert not ranking.similar(none, np.eye(5, dtype=np.uint8)).any()
    assert not ranking.similar(none[:, :0], none[:, :0]).any()


@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 40), st.sampled_from(["single", "multi"]))
@settings(max_examples=40, deadline=None)
def test_chunk_size_changes_nothing(seed, pairs, bits, kind):
    problem = Problem(seed, q=7, n=23, bits=bits, kind=kind)
    whole = ranked(*problem.arguments)
    assert_same(ranked(*problem.arguments, pairs=pairs), whole)
    assert_same(ranking.histograms(*problem.arguments, pairs=pairs), whole[:2])


@pytest.mark.parametrize("bits", [12, 100, 130])
def test_inner_blocks_change_nothing(monkeypatch, bits):
    problem = Problem(3, q=4, n=50, bits=bits, classes=100, kind="multi")
    whole, distances = ranked(*problem.arguments), ranking.distances(pack(problem.query), pack(problem.database))
    monkeypatch.setattr(ranking, "_BLOCK", 7)
    monkeypatch.setattr(ranking, "PAIRS", 11)
    assert_same(ranked(*problem.arguments), whole)
    np.testing.assert_array_equal(ranking.distances(pack(problem.query), pack(problem.database)), distances)


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_histograms_do_not_see_the_order_of_anything(seed, bits):
    problem = Problem(seed, bits=bits, exclude=False)
    before = ranking.histograms(*problem.arguments)
    rng = np.random.default_rng(seed)
    rows, columns, flips = rng.permutation(30), rng.permutation(bits), rng.random(bits) < 0.5
    problem.database, problem.database_labels = problem.database[rows], problem.database_labels[rows]
    assert_same(ranking.histograms(*problem.arguments), before)
    problem.database, problem.query = problem.database[:, columns], problem.query[:, columns]
    assert_same(ranking.histograms(*problem.arguments), before)
    problem.database, problem.query = problem.database ^ flips, problem.query ^ flips
    assert_same(ranking.histograms(*problem.arguments), before)


def test_stable_order_keeps_database_order_within_ties():
    codes = np.zeros((4, 8), np.bool_)
    labels = np.array([[1], [0], [1], [0]], np.uint8)
    (part,) = ranking.rank(pack(codes[:1]), pack(codes), 8, labels[:1], labels)
    assert part.relevance.tolist() == [[True, False, True, False]]


def test_excluded_pairs_come_last_and_count_for_nothing():
    codes, labels = np.zeros((3, 8), np.bool_), np.ones((3, 1), np.uint8)
    (part,) = ranking.rank(pack(codes), pack(codes), 8, labels, labels, exclude=np.array([0, -1, 2]))
    assert part.relevance.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    assert part.total[:, 0].tolist() == part.relevant[:, 0].tolist() == [2, 3, 2]


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_memory_does_not_grow_with_the_number_of_pairs(kind):
    rng = np.random.default_rng(0)
    query, database = (rng.integers(0, 256, (rows, 6), dtype=np.uint8) for rows in (300, 100_000))
    labels = np.eye(10, dtype=np.uint8)[rng.integers(0, 10, 100_000)]
    labels[0] |= kind == "multi"
    tracemalloc.start()
    try:
        for part in ranking.rank(query, database, 48, labels[:300], labels):
            assert part.total.sum() == 100_000 * len(part.total)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25e6  # 30 million pairs; one byte each would be more


@pytest.mark.parametrize(("q", "n"), [(0, 5), (3, 0), (0, 0)])
def test_empty_sides(q, n):
    problem = Problem(0, q=q, n=n)
    total, relevant = ranking.histograms(*problem.arguments)
    assert total.shape == relevant.shape == (q, 13)
    assert not total.any()
    assert ranking.distances(pack(problem.query), pack(problem.database)).shape == (q, n)
    assert sum(len(part.total) for part in ranking.rank(*problem.arguments)) == q


def test_read_only_and_strided_input():
    problem = Problem(1, bits=48)
    query, database, *rest = problem.arguments
    wide = np.zeros((len(database), 9), np.uint8)
    wide[:, 2:8] = database
    view = wide[:, 2:8]
    view.flags.writeable = False
    assert_same(ranking.histograms(query, view, *rest), problem.slow()[:2])


def test_arrays_that_do_not_fit_are_refused():
    codes, labels = np.zeros((3, 2), np.uint8), np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match="take 1 bytes a row, got 2"):
        ranking.rank(codes, codes, 8, labels, labels)
    with pytest.raises(ValueError, match="pairs must be at least 1, got 0"):
        ranking.histograms(codes, codes, 12, labels, labels, pairs=0)
    for position in (-2, 3):
        with pytest.raises(ValueError, match="exclude must be -1 or a position in the database of 3 items"):
            ranking.rank(codes, codes, 12, labels, labels, exclude=np.array([0, position, 1]))
    with pytest.raises(ValueError, match="padding bits of the query codes"):
        ranking.rank(codes | 128, codes, 12, labels, labels)
    # These are refused by the shapes in the annotations as well, where those are checked: hence the private entry.
    for arguments, message in (
        ((codes[:, :1], codes, 12, labels, labels, None), "codes must have the same width, got 1 and 2"),
        ((codes, codes, 12, labels[:, :3], labels, None), "labels must have the same width, got 3 and 4"),
        ((codes, codes, 12, labels[:2], labels, None), "query codes and labels must have equal lengths, got 3 and 2"),
        ((codes, codes, 12, labels, labels, np.array([0])), "one entry a query"),
    ):
        with pytest.raises(ValueError, match=message):
            ranking._Sides.build(*arguments, pairs=10)

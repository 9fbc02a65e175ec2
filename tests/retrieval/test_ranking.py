"""Compare counts, the stable order and the nearest items with loops over unpacked bits, for every engine."""

import os
import subprocess
import sys
import threading
import tracemalloc
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deephash_cli.retrieval import ranking
from deephash_cli.retrieval.codes import pack
from deephash_cli.retrieval.kernels import compiled, vectorized
from deephash_cli.training import gpu_counts

BITS = [1, 7, 8, 12, 16, 24, 31, 32, 36, 48, 63, 64, 65, 100, 126, 127, 128, 200, 254, 255, 256, 300]
CUTS = (1, 3, 10, 10**30)
same_engine = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[compiled, vectorized], ids=["compiled", "vectorized"])
def engine(request, monkeypatch):
    monkeypatch.setattr(ranking, "_FEW", 0)
    monkeypatch.setattr(ranking, "_kernels", lambda: request.param)
    return request.param


class Problem:
    """Random codes and labels, with loops for everything that the module computes."""

    def __init__(self, seed, q=5, n=30, bits=12, classes=4, kind="single", exclude=True):
        rng = np.random.default_rng(seed)
        self.bits = bits
        self.query, self.database = rng.random((q, bits)) < 0.5, rng.random((n, bits)) < 0.5
        self.query_labels, self.database_labels = (
            (rng.random((rows, classes)) < (0.3 if classes < 50 else 0.03)).astype(np.uint8)
            if kind == "multi"
            else np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, rows)]
            for rows in (q, n)
        )
        if kind != "multi" and q > 1 and n > 1:
            self.query_labels[0] = self.database_labels[0] = 0
        if kind == "numbers":
            self.query_labels, self.database_labels = (
                np.where(side.any(axis=1), side.argmax(axis=1), -1) if classes else np.full(len(side), -1)
                for side in (self.query_labels, self.database_labels)
            )
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

    def items(self, i):
        """Distance, position and number of shared labels of all items, nearest first."""
        items = []
        for j, (code, labels) in enumerate(zip(self.database, self.database_labels, strict=True)):
            if self.exclude is None or self.exclude[i] != j:
                distance = sum(a != b for a, b in zip(self.query[i].tolist(), code.tolist(), strict=True))
                if self.query_labels.ndim == 1:
                    shared = int(self.query_labels[i] == labels >= 0)
                else:
                    shared = sum(a and b for a, b in zip(self.query_labels[i].tolist(), labels.tolist(), strict=True))
                items.append((distance, j, shared))
        return sorted(items)

    def slow(self, grades, cuts=CUTS):
        shared = np.zeros((len(self.query), self.bits + 1, grades), np.int64)
        sums = np.zeros((len(self.query), len(cuts) + 1))
        hits = np.zeros((len(self.query), len(cuts) + 1), np.int64)
        for i in range(len(self.query)):
            found = 0
            for rank, (distance, _, labels) in enumerate(self.items(i), start=1):
                shared[i, distance, labels] += 1
                found += labels > 0
                for c, cut in enumerate((*cuts, 10**9)):
                    if labels and rank <= cut:
                        sums[i, c] += found / rank
                        hits[i, c] += 1
        return shared, sums, hits


def counted(*arguments, cuts=CUTS, **options):
    parts = list(ranking.count(*arguments, cuts=cuts, **options))
    assert [part.queries.start for part in parts[1:]] == [part.queries.stop for part in parts[:-1]]
    return tuple(
        np.concatenate([getattr(part, name) for part in parts]) for name in ("shared", "precision_sums", "hits")
    )


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_right(result, problem):
    shared, sums, hits = problem.slow(grades=result[0].shape[2])
    np.testing.assert_array_equal(result[0], shared)
    np.testing.assert_array_equal(result[2], hits)
    np.testing.assert_allclose(result[1], sums, rtol=1e-13)


@pytest.mark.parametrize("kind", ["single", "multi", "numbers"])
@pytest.mark.parametrize("bits", BITS)
def test_counts_and_stable_order_against_loops(engine, bits, kind):
    problem = Problem(bits, bits=bits, kind=kind)
    assert_right(counted(*problem.arguments), problem)


@pytest.mark.parametrize("kind", ["single", "multi", "numbers"])
@pytest.mark.parametrize("classes", [1, 8, 9, 64, 65, 81, 300, 5000])
def test_any_number_of_classes(engine, classes, kind):
    problem = Problem(classes, q=3, n=9, classes=classes, kind=kind)
    if classes == 5000:  # most images have hundreds of labels
        problem.query_labels[..., 1] = 1
    assert_right(counted(*problem.arguments), problem)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_longer_than_a_block(engine, kind):
    """Several blocks of the compiled loop, with excluded items at the ends of a block."""
    problem = Problem(0, q=6, n=3 * compiled.BLOCK + 5, kind=kind)
    problem.exclude = np.array([0, compiled.BLOCK - 1, compiled.BLOCK, 3 * compiled.BLOCK + 4, -1, 7])
    assert_right(counted(*problem.arguments), problem)


@pytest.mark.parametrize("kind", ["single", "multi", "numbers"])
@given(data=st.data())
@same_engine
def test_engines_agree_to_the_last_bit(kind, data):
    problem = Problem(
        data.draw(st.integers(0, 10**6)),
        q=4,
        n=data.draw(st.integers(1, 3000)),
        bits=data.draw(st.integers(1, 150)),
        classes=data.draw(st.integers(1, 90)),
        kind=kind,
    )
    results = []
    for kernels in (compiled, vectorized):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranking, "_kernels", lambda kernels=kernels: kernels)
            results.append(counted(*problem.arguments))
    assert_same(*results)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("bits", [1, 12, 64, 100, 300])
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_device_counts_the_same(monkeypatch, where, bits, kind):
    monkeypatch.setattr(gpu_counts, "_PAIRS", 100)
    problem = Problem(bits, q=9, bits=bits, kind=kind, exclude=False)
    shared = gpu_counts.count(*problem.arguments[:5], device=torch.device(where))
    np.testing.assert_array_equal(shared, counted(*problem.arguments)[0])
    np.testing.assert_array_equal(shared, problem.slow(shared.shape[2])[0])


def test_class_numbers_that_are_far_apart(engine):
    codes = np.zeros((3, 1), np.uint8)
    numbers = np.array([2**62, -1, 5])
    shared = counted(codes, codes, 8, numbers, numbers[[0, 0, 2]])[0][:, 0]
    assert shared.tolist() == [[1, 2], [3, 0], [2, 1]]


def test_one_label_on_one_side_and_several_on_the_other(engine):
    query, database = np.array([[1, 0, 0], [0, 0, 1]], np.uint8), np.array([[1, 1, 0], [0, 0, 0]], np.uint8)
    codes = np.zeros((2, 1), np.uint8)
    assert counted(codes, codes, 8, query, database)[0][:, 0].tolist() == [[1, 1], [2, 0]]
    assert counted(codes, codes, 8, database, query)[0][:, 0].tolist() == [[1, 1], [2, 0]]


def test_images_without_labels_are_relevant_to_nothing(engine):
    codes, none = np.zeros((2, 1), np.uint8), np.zeros((2, 5), np.uint8)
    for labels in ((none, none), (none, np.eye(2, 5, dtype=np.uint8)), (none[:, :0], none[:, :0])):
        assert counted(codes, codes, 8, *labels)[0][:, 0].tolist() == [[2, 0], [2, 0]]
    numbers = np.array([-1, 0])
    assert counted(codes, codes, 8, numbers, np.array([-1, -1]))[0][:, 0].tolist() == [[2, 0], [2, 0]]
    assert counted(codes, codes, 8, numbers, numbers)[0][:, 0].tolist() == [[2, 0], [1, 1]]


@pytest.mark.parametrize("kind", ["single", "multi"])
@given(data=st.data())
@same_engine
def test_neither_threads_nor_grouping_of_queries_change_a_bit(engine, kind, data):
    problem = Problem(data.draw(st.integers(0, 10**6)), q=23, n=50, bits=data.draw(st.integers(1, 40)), kind=kind)
    whole = counted(*problem.arguments, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_TOGETHER", data.draw(st.integers(1, 23)))
        assert_same(counted(*problem.arguments, threads=data.draw(st.integers(1, 5))), whole)
    query, database, bits, labels, of_database, exclude = problem.arguments
    rows = [slice(0, data.draw(st.integers(1, 22)))]
    rows.append(slice(rows[0].stop, 23))
    parts = [counted(query[r], database, bits, labels[r], of_database, exclude[r]) for r in rows]
    if len({part[0].shape for part in parts} | {whole[0].shape}) == 1:  # otherwise some part has fewer grades
        assert_same([np.concatenate(both) for both in zip(*parts, strict=True)], whole)


def test_small_parts_are_joined(monkeypatch):
    problem = Problem(0, q=11, kind="multi")
    classes = tuple(side.argmax(axis=1) for side in problem.arguments[3:5])
    expected = counted(*problem.arguments)
    by_class, *_ = counted(*problem.arguments[:3], *classes, problem.exclude)
    monkeypatch.setattr(ranking, "_TOGETHER", 4)
    for graded, grades in ((None, expected[0]), (classes, by_class)):
        parts = list(ranking.joined(ranking.count(*problem.arguments, cuts=CUTS, threads=6, graded=graded)))
        assert [part.queries for part in parts] == [slice(start, min(start + 2, 11)) for start in range(0, 11, 2)]
        for name, values in zip(("shared", "precision_sums", "hits", "graded"), (*expected, grades), strict=True):
            np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), values)


@given(data=st.data())
@same_engine
def test_counts_do_not_see_the_order_of_anything(engine, data):
    seed, bits = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 90))
    problem = Problem(seed, bits=bits, exclude=False, kind=data.draw(st.sampled_from(["single", "multi"])))
    before = counted(*problem.arguments)[0]
    rng = np.random.default_rng(seed)
    rows, columns, flips = rng.permutation(30), rng.permutation(bits), rng.random(bits) < 0.5
    problem.database, problem.database_labels = problem.database[rows], problem.database_labels[rows]
    np.testing.assert_array_equal(counted(*problem.arguments)[0], before)
    problem.database, problem.query = problem.database[:, columns], problem.query[:, columns]
    np.testing.assert_array_equal(counted(*problem.arguments)[0], before)
    problem.database, problem.query = problem.database ^ flips, problem.query ^ flips
    np.testing.assert_array_equal(counted(*problem.arguments)[0], before)


def test_stable_order_keeps_database_order_within_ties(engine):
    codes, labels = np.zeros((4, 1), np.uint8), np.array([[0], [1], [0], [1]], np.uint8)
    _, sums, hits = counted(codes[:1], codes, 8, labels[1:2], labels, cuts=(2, 3))
    assert sums.tolist() == [[1 / 2, 1 / 2, 1 / 2 + 2 / 4]]
    assert hits.tolist() == [[1, 1, 2]]


def test_excluded_items_count_for_nothing(engine):
    codes, labels = np.zeros((3, 1), np.uint8), np.ones((3, 1), np.uint8)
    shared, _, hits = counted(codes, codes, 8, labels, labels, np.array([0, -1, 2]))
    assert shared[:, 0, 1].tolist() == hits[:, -1].tolist() == [2, 3, 2]
    assert shared.sum(axis=(1, 2)).tolist() == [2, 3, 2]


@pytest.mark.parametrize("bits", [8, 12, 48, 64, 100, 300])
@pytest.mark.parametrize("k", [1, 2, 17, 100, 2999, 3000, 10**12])
def test_nearest_against_sorting(engine, bits, k):
    problem = Problem(bits, q=4, n=3000, bits=bits)
    distances, positions = ranking.nearest(*problem.arguments[:3], k)
    all_distances = (problem.query[:, None] != problem.database[None]).sum(axis=2)
    order = np.argsort(all_distances, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_array_equal(distances, np.take_along_axis(all_distances, order, axis=1))


@given(data=st.data())
@same_engine
def test_nearest_with_many_ties_and_any_order(engine, data):
    """Few different codes, sorted by distance in both directions: candidates come last, or all are tied."""
    bits, n, k = 10, data.draw(st.integers(1, 5000)), data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    ones = rng.integers(0, data.draw(st.integers(1, bits)) + 1, n)
    order = data.draw(st.sampled_from([0, 1, -1]))
    ones = np.sort(ones)[::order] if order else ones
    database = np.arange(bits) < ones[:, None]
    distances, positions = ranking.nearest(np.zeros((2, 2), np.uint8), pack(database), bits, k)
    expected = np.argsort(ones, kind="stable")[:k]
    assert (positions == expected).all()
    assert (distances == ones[expected]).all()


@pytest.mark.parametrize("order", ["random", "nearest last", "nearest first", "nearest in the sample"])
def test_many_of_many(order):
    """So many that a sample tells first how far they are: also where the sample is not like the rest."""
    n, k = 5 * compiled.STEP * compiled.BLOCK + 9, 10 * compiled.STEP
    database = np.random.default_rng(0).integers(0, 256, (n, 1), np.uint8)
    ones = np.bitwise_count(database[:, 0])
    if order == "nearest in the sample":
        sampled = np.arange(n) // compiled.BLOCK % compiled.STEP == 0
        database[:, 0] = np.where(sampled, 0, 255)
        k = int(sampled.sum()) + 7
    elif order != "random":
        database = database[np.argsort(ones)[:: -1 if order == "nearest last" else 1]]
    distances, positions = ranking.nearest(np.zeros((1, 1), np.uint8), database, 8, k)
    ones = np.bitwise_count(database[:, 0])
    expected = np.argsort(ones, kind="stable")[:k]
    np.testing.assert_array_equal(positions[0], expected)
    np.testing.assert_array_equal(distances[0], ones[expected])


@pytest.mark.parametrize("bits", [8, 16, 24, 48, 64, 128, 256])
def test_nearest_and_counts_agree_with_faiss(engine, bits):
    faiss = pytest.importorskip("faiss")
    problem = Problem(bits, q=10, n=2000, bits=bits, exclude=False)
    query, database = problem.arguments[:2]
    index = faiss.IndexBinaryFlat(bits)
    index.add(database)
    found, faiss_positions = index.search(query, 50)
    distances, positions = ranking.nearest(query, database, bits, 50)
    np.testing.assert_array_equal(distances, found)
    # faiss has its own order within a distance; up to the last distance the sets are the same.
    for row in range(10):
        nearer = distances[row] < distances[row, -1]
        assert set(positions[row, nearer]) == set(faiss_positions[row, found[row] < found[row, -1]])
    total = counted(*problem.arguments)[0].sum(axis=2).cumsum(axis=1)
    for radius in (0, bits // 4, bits // 3, bits // 2):
        # faiss's radius is exclusive
        limits, _, _ = index.range_search(query, radius + 1)
        np.testing.assert_array_equal(total[:, radius], np.diff(limits.astype(np.int64)))


@pytest.mark.parametrize("threads", [1, 3])
@given(data=st.data())
@same_engine
def test_within_a_radius(engine, threads, data):
    bits = data.draw(st.sampled_from(BITS))
    n = data.draw(st.sampled_from([1, 30, compiled.BLOCK + 3]) if bits < 20 else st.integers(1, 30))
    problem = Problem(data.draw(st.integers(0, 1000)), q=3, n=n, bits=bits, exclude=False)
    radius = data.draw(st.integers(0, bits + 1))
    found = list(ranking.within(*problem.arguments[:3], radius, threads=threads))
    assert len(found) == 3
    for i, (distances, positions) in enumerate(found):
        expected = [(distance, j) for distance, j, _ in problem.items(i) if distance <= radius]
        assert list(zip(distances.tolist(), positions.tolist(), strict=True)) == expected


def test_memory_does_not_grow_with_what_lies_within_the_radius(engine):
    rng = np.random.default_rng(0)
    query, database = (rng.integers(0, 256, (rows, 6), dtype=np.uint8) for rows in (40, 100_000))
    list(ranking.within(query[:1], database[:1], 48, 48))  # compiled before it is measured
    tracemalloc.start()
    try:
        assert sum(len(positions) for _, positions in ranking.within(query, database, 48, 48, threads=1)) == 4_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6  # all results together would take 64 MB


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_memory_does_not_grow_with_the_number_of_pairs(engine, kind):
    rng = np.random.default_rng(0)
    query, database = (rng.integers(0, 256, (rows, 6), dtype=np.uint8) for rows in (300, 100_000))
    labels = np.eye(10, dtype=np.uint8)[rng.integers(0, 10, 100_000)]
    labels[0] |= kind == "multi"
    list(ranking.count(query[:1], database[:1], 48, labels[:1], labels[:1]))  # compiled before it is measured
    tracemalloc.start()
    try:
        for part in ranking.count(query, database, 48, labels[:300], labels, cuts=(10,)):
            assert part.shared.sum() == 100_000 * len(part.shared)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25e6  # 30 million pairs; one byte each would be more


@pytest.mark.parametrize(("q", "n"), [(0, 5), (3, 0), (0, 0)])
def test_empty_sides(engine, q, n):
    problem = Problem(0, q=q, n=n)
    parts = list(ranking.count(*problem.arguments))
    assert sum(len(part.shared) for part in parts) == q
    assert not any(part.shared.any() for part in parts)
    distances, positions = ranking.nearest(*problem.arguments[:3], k=4)
    assert distances.shape == positions.shape == (q, min(n, 4))
    assert [len(side) for found in ranking.within(*problem.arguments[:3], radius=12) for side in found] == [0] * 2 * q


@pytest.mark.parametrize("bits", [48, 64])
def test_read_only_and_strided_input(engine, bits):
    problem = Problem(1, bits=bits)
    query, database, *rest = problem.arguments
    wide = np.zeros((len(database), 11), np.uint8)
    wide[:, 2 : 2 + bits // 8] = database
    view = wide[:, 2 : 2 + bits // 8]
    view.flags.writeable = database.flags.writeable = False
    for codes in (view, database, np.asfortranarray(database)):
        assert_right(counted(query, codes, *rest), problem)


def test_codes_of_64_bits_stay_where_they_are():
    codes = np.random.default_rng(0).integers(0, 256, (5, 8), dtype=np.uint8)
    assert np.shares_memory(ranking._words(codes), codes)


def test_arrays_that_do_not_fit_are_refused():
    codes, labels = np.zeros((3, 2), np.uint8), np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match="take 1 bytes a row, got 2"):
        ranking.count(codes, codes, 8, labels, labels)
    with pytest.raises(ValueError, match="take 1 bytes a row, got 2"):
        ranking.nearest(codes, codes, 8, 1)
    for position in (-2, 3):
        with pytest.raises(ValueError, match="exclude must be -1 or a position in the database of 3 items"):
            ranking.count(codes, codes, 12, labels, labels, exclude=np.array([0, position, 1]))
    with pytest.raises(ValueError, match="padding bits of the query codes"):
        ranking.count(codes | 128, codes, 12, labels, labels)
    with pytest.raises(ValueError, match="k must be between 1 and the database size 3, got 0"):
        ranking.nearest(codes, codes, 12, 0)
    with pytest.raises(ValueError, match="radius must be at least 0, got -1"):
        ranking.within(codes, codes, 12, -1)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        ranking.count(codes, codes, 12, labels, labels, threads=0)
    with pytest.raises(ValueError, match="both be multi-hot or both be class numbers"):
        ranking.count(codes, codes, 12, labels, np.zeros(3, np.int64))
    # Where shape annotations are checked, they refuse these arrays first: hence the calls of private functions.
    with pytest.raises(ValueError, match="codes must have the same width, got 1 and 2"):
        ranking._check_codes(codes[:, :1], codes, 12)
    with pytest.raises(ValueError, match="labels must have the same width, got 3 and 4"):
        ranking._labels(labels[:, :3], labels)


def test_rows_without_labels_or_exclusions_are_refused():
    codes, labels = np.zeros((3, 2), np.uint8), np.zeros((3, 4), np.uint8)
    for arguments, message in (
        ((codes, codes, 12, labels[:2], labels), "query codes and labels must have equal lengths, got 3 and 2"),
        ((codes, codes, 12, labels, labels, np.array([0])), "one entry per query"),
    ):
        with pytest.raises(Exception, match=f"{message}|Type-check error"):
            ranking.count(*arguments)


def test_a_caller_that_stops_early_leaves_no_thread_behind(engine):
    problem = Problem(0, q=100)
    counts = ranking.count(*problem.arguments, threads=3)
    next(counts)
    counts.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ranking")]


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    def fail(*_):
        raise MemoryError("none left")

    monkeypatch.setattr(compiled, "count_classes", fail)
    monkeypatch.setattr(ranking, "_kernels", lambda: compiled)
    with pytest.raises(MemoryError, match="none left"):
        list(ranking.count(*Problem(0, q=100).arguments, threads=3))


def test_a_search_with_few_pairs_needs_no_numba(monkeypatch):
    monkeypatch.setattr(ranking, "_FEW", 200)
    assert [ranking._for_search(pairs) for pairs in (0, 200, 201)] == [vectorized, vectorized, compiled]


@pytest.fixture
def imported_again(monkeypatch):
    """A test that imports the compiled loops for the first time."""
    monkeypatch.delitem(sys.modules, "deephash_cli.retrieval.kernels.compiled")
    monkeypatch.delattr("deephash_cli.retrieval.kernels.compiled")
    ranking._kernels.cache_clear()
    yield
    ranking._kernels.cache_clear()


def test_without_numba_numpy_does_it(uninstall, imported_again, capsys):
    uninstall("numba")
    assert ranking._kernels() is vectorized
    assert capsys.readouterr().err == ""


def test_a_broken_numba_is_said_once(imported_again, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "numba", ModuleType("numba"))  # it has no njit
    assert [ranking._kernels(), ranking._kernels()] == [vectorized, vectorized]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: numba cannot be imported, so counting takes about fifteen times as long: cannot im"
    )


def test_nowhere_to_keep_compiled_code(tmp_path):
    """A read-only installation and a home that cannot be written to."""
    code = """
import numpy as np, numba.core.caching as caching
caching.CacheImpl._locator_classes = []
from deephash_cli.retrieval import ranking
codes, labels = np.zeros((2, 1), np.uint8), np.ones((2, 1), np.uint8)
(part,) = ranking.count(codes, codes, 8, labels, labels)
print(ranking._kernels().__name__, part.shared[:, 0].tolist())
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "deephash_cli.retrieval.kernels.compiled [[0, 2], [0, 2]]\n", result


COUNT = """
import sys, numpy as np
from deephash_cli.retrieval import ranking
rng = np.random.default_rng(0)
codes, single = rng.integers(0, 256, (30, 2), np.uint8), np.eye(3, dtype=np.uint8)[rng.integers(0, 3, 30)]
several = (rng.random((30, 3)) < 0.5).astype(np.uint8)
for labels in (single, several) if sys.argv[1] == "both" else ((several,) if sys.argv[1] == "several" else (single,)):
    print(*(part.shared.tolist() for part in ranking.count(codes, codes, 16, labels, labels)))
"""


@pytest.mark.slow
def test_what_different_processes_have_compiled_goes_together(tmp_path):
    # When two inner functions had one name, a process that loaded both from disk counted distances, not shared labels.
    def count(what, cache):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / cache)}
        command = [sys.executable, "-c", COUNT, what]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout

    alone = count("both", "whole")
    assert count("single", "parts") + count("several", "parts") == alone
    assert list(tmp_path.joinpath("parts").rglob("*.nbc"))
    assert count("both", "parts") == alone


def test_no_two_compiled_functions_have_one_name():
    inner = [value.py_func for value in vars(compiled).values() if hasattr(value, "py_func")]
    assert len(inner) > 3
    assert len({function.__qualname__ for function in inner}) == len(inner)

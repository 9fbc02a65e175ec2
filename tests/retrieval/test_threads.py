"""Threads: results in order, bounded memory, errors that reach the caller."""

import os

import pytest

from deephash_cli.retrieval.threads import in_order, settled, usable_threads


def test_threads_are_those_that_the_environment_allows(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usable_threads() == 3
    for value in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert 1 <= usable_threads() <= (os.cpu_count() or 1)


def test_a_number_of_threads_below_one_is_refused():
    assert (settled(3), settled(None)) == (3, usable_threads())
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        settled(0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_come_in_order_and_only_a_few_are_computed_ahead(threads):
    taken = []

    def parts():
        for part in range(100):
            taken.append(part)
            yield part

    results = in_order(lambda part: part * part, parts(), threads)
    assert [next(results) for _ in range(10)] == [part * part for part in range(10)]
    assert len(taken) <= 10 + 4 * threads
    assert list(results) == [part * part for part in range(10, 100)]

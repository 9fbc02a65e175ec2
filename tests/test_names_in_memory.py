"""Names in one buffer behave as a list of strings does, take less memory, and are shared by processes."""

import copy
import multiprocessing
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deephash_cli.names import Names
from deephash_cli.npy import RowNumbers, ids_at

# as os.listdir reads a byte that is not UTF-8, and what only JSON can hold
STRANGE = ["a/b.png", "", "caf\u00e9", "\udcff.jpg", "two\nlines", "\ud800", "\U0001f600", "\n", "a/b.png"]


@given(st.lists(st.text(st.characters(exclude_categories=()))), st.data())
def test_names_are_a_list_of_strings(texts, data):
    names = Names(iter(texts))
    assert names == texts
    assert texts == names
    assert list(names) == texts
    assert len(names) == len(texts)
    part = data.draw(st.slices(len(texts)))
    assert names[part] == texts[part]
    for row in range(-len(texts), len(texts)):
        assert names[row] == texts[row]
    rows = data.draw(st.lists(st.integers(-len(texts), len(texts) - 1))) if texts else []
    assert names.take(np.array(rows, np.int64)) == [texts[row] for row in rows]
    assert pickle.loads(pickle.dumps(names)) == texts
    assert copy.deepcopy(names) == texts


def test_names_differ_from_other_sequences():
    names = Names(["a", "b"])
    assert names != ["a", "c"]
    assert names != ["a"]
    assert names != "ab"
    assert names != {"a", "b"}
    for row in (2, -3):
        with pytest.raises(IndexError, match=rf"name {row} of 2"):
            names[row]


def test_many_names_are_taken_in_blocks():
    texts = [f"{number % 977}/{number}" for number in range(150_000)]
    rows = np.random.default_rng(0).integers(0, len(texts), 140_000)
    assert Names(texts).take(rows) == [texts[row] for row in rows.tolist()]


def test_names_are_kept_small():
    texts = [f"class {number % 100:03d}/photograph {number:07d}.jpg" for number in range(1000)]
    size = sum(map(len, texts))
    assert len(pickle.dumps(Names(texts))) < size + 9 * len(texts) + 500
    assert sum(map(sys.getsizeof, texts)) > size + 40 * len(texts)


def test_ids_at_rows_are_names_or_row_numbers():
    rows = np.array([2, 0])
    assert isinstance(ids_at(["a", "b", "c"], rows), Names)
    assert ids_at(["a", "b", "c"], rows) == ["c", "a"]
    assert ids_at(Names(["a", "b", "c"]), rows) == ["c", "a"]
    assert isinstance(ids_at(RowNumbers(np.arange(3)), rows), RowNumbers)


def _look(names: Names, connection) -> None:
    held = sum(sys.getsizeof(buffer) for buffer in vars(names).values())
    connection.send((list(names), held, Path("/proc/self/maps").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which memory is shared")
@pytest.mark.timeout(60)
def test_spawned_processes_map_the_names_of_the_first():
    names = Names(STRANGE)
    context = multiprocessing.get_context("spawn")
    for _ in range(2):  # the second one gets the same file
        ours, theirs = context.Pipe()
        process = context.Process(target=_look, args=(names, theirs))
        process.start()
        found, held, maps = ours.recv()
        process.join()
        assert found == STRANGE
        assert held < 1000  # arrays without data of their own
        assert "memfd:names" in maps
    assert names == STRANGE
    assert Path("/proc/self/maps").read_text().count("memfd:names") == 1

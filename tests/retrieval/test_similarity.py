"""What makes images similar: against sets of labels in Python."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deephash_cli.retrieval import similarity

ROWS = st.lists(st.lists(st.integers(0, 1), min_size=11, max_size=11), min_size=1, max_size=8)


@pytest.mark.parametrize("similar", similarity.SIMILAR)
@given(ROWS, ROWS)
def test_similar_images(similar, queries, database):
    sides = np.array(queries, np.uint8), np.array(database, np.uint8)
    sets = [[set(np.flatnonzero(row)) for row in side] for side in sides]
    expected = [[bool(a & b) if similar == "one" else a == b != set() for b in sets[1]] for a in sets[0]]
    assert [similarity.are_similar(sides[1], row, similar).tolist() for row in sides[0]] == expected
    query, items = similarity.as_shared(*sides, similar)
    shared = query @ items.T > 0 if similar == "one" else (query[:, None] == items) & (query[:, None] >= 0)
    assert shared.tolist() == expected


def test_class_numbers_and_missing_labels_stay_as_they_are():
    for labels in (np.array([1, -1]), np.zeros((2, 0), np.uint8)):
        assert similarity.as_shared(labels, labels, "all")[0] is labels


def test_settings_of_earlier_versions_mean_one():
    assert similarity.setting({}) == similarity.of_manifest({}) == similarity.of_manifest({"evaluation": {}}) == "one"
    assert similarity.of_manifest({"evaluation": {"similar": "all"}}) == "all"


@pytest.mark.parametrize("similar", similarity.SIMILAR)
def test_policies_say_what_was_similar(similar):
    assert similarity.of_policies({"similar": similarity.SIMILAR[similar]}) == similar


@pytest.mark.parametrize("odd", [None, 3, {}, {"similar": None}, {"similar": "all"}])
def test_policies_that_do_not_say_it_mean_one(odd):
    assert similarity.of_policies(odd) == "one"


def test_examples():
    assert doctest.testmod(similarity, globs={**vars(similarity)}).failed == 0

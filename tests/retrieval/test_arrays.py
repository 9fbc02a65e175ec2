"""Codes in memory have the numbers of the same codes in files, and are refused in the same words."""

import doctest

import numpy as np
import pytest

from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.retrieval import arrays, external_codes, scoring
from deephash_cli.retrieval.arrays import evaluate

RNG = np.random.default_rng(0)
CODES = [np.where(RNG.random((n, 20)) < 0.5, 1, -1) for n in (7, 50)]
IDS = [RNG.integers(0, 4, n) for n in (7, 50)]
FORMS = {
    "-1 and 1": lambda codes: codes,
    "0 and 1": lambda codes: (codes > 0).astype(np.float32),
    "truth values": lambda codes: codes > 0,
    "packed": lambda codes: np.packbits(codes > 0, axis=1, bitorder="little"),
}
LABELS = {"class ids": lambda ids: ids, "multi-hot": lambda ids: np.eye(4, dtype=np.int64)[ids]}


def test_the_example_in_the_docstring():
    results = doctest.testmod(arrays)
    assert results.attempted > 1
    assert results.failed == 0


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("form", FORMS)
def test_the_numbers_are_those_of_the_same_arrays_in_files(tmp_path, form, labels):
    given = [*map(FORMS[form], CODES), *map(LABELS[labels], IDS)]
    paths = [tmp_path / f"{number}.npy" for number in range(4)]
    for path, array in zip(paths, given, strict=True):
        np.save(path, array)
    bits = 20 if form == "packed" else None
    query, database, _ = external_codes.load(*paths, bits=bits)
    settings = {"ks": [1, 10], "map_at": [5], "radius": 3, "zero_hits": "skip"}
    assert evaluate(*given, bits=bits, **settings) == scoring.evaluate(query, database, **settings)


def test_settings_that_are_left_out_are_those_of_the_configuration():
    result = evaluate(*CODES, *IDS)
    assert {"1", "1000"} <= result["precision_at_k"].keys()
    assert "precision_within_2" in result
    assert result["policies"]["zero_hits"] == scoring.ZERO_HITS["zero"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": CODES[0].astype(np.uint8)}, ConfigError, "query has 20 columns of uint8, which may be packed codes"),
        ({"query": RNG.normal(size=(7, 20))}, ArtifactError, "query must hold codes that are all -1 or 1"),
        ({"query": CODES[0][:, :9]}, ArtifactError, "query has codes of 9 bits but database has codes of 20 bits"),
        ({"database_labels": IDS[1][:9]}, ArtifactError, "database has 50 codes but database_labels has labels of 9"),
        ({"query_labels": np.array(["a"] * 7)}, ArtifactError, "query_labels must hold labels as numbers"),
        ({"query_labels": -IDS[0] - 1}, ArtifactError, "query_labels must hold class ids"),
        ({"query": CODES[0][0]}, ArtifactError, "query must hold codes in an array of 2 dimensions"),
        ({"query": CODES[0][:0]}, ArtifactError, "query must hold codes of at least one image"),
    ],
    ids=range(8),
)
def test_what_is_something_else_is_refused(change, error, message):
    names = ("query", "database", "query_labels", "database_labels")
    given = {**dict(zip(names, (*CODES, *IDS), strict=True)), **change}
    with pytest.raises(error) as caught:
        evaluate(**given)
    assert str(caught.value).startswith(message)

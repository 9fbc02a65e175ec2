"""Queries of seen and of unseen classes: each protocol is the evaluation of the rows that a loop picks."""

import json

import numpy as np
import pytest

from deephash_cli.errors import ArtifactError
from deephash_cli.retrieval import scoring
from deephash_cli.retrieval.codes import CodeSet, pack, prefix
from deephash_cli.retrieval.codes_folder import save_codes
from deephash_cli.retrieval.scoring import score
from deephash_cli.retrieval.seen_classes import PROTOCOLS, by_classes

SETTINGS = {"ks": [1, 5], "map_at": [7], "radius": 2, "zero_hits": "zero"}
CLASSES, UNSEEN = 5, [1, 4]


def side(name, rows, multi, with_u, seed):
    rng = np.random.default_rng(seed)
    labels = np.eye(CLASSES, dtype=np.uint8)[rng.integers(0, CLASSES, rows)]
    labels[::9] = 0  # some images without a label
    if multi:
        labels[1::3] |= np.eye(CLASSES, dtype=np.uint8)[rng.integers(0, CLASSES, len(labels[1::3]))]
    u = rng.normal(size=(rows, 12)).astype(np.float16)
    return CodeSet(pack(u >= 0), 12, labels, [f"{name}{row}" for row in range(rows)], u if with_u else None)


def picked(codes, keep):
    """The rows whose set of labels passes a test, one by one."""
    rows = [row for row in range(codes.n) if keep({int(column) for column in np.flatnonzero(codes.labels[row])})]
    u = None if codes.u is None else codes.u[rows]
    return CodeSet(codes.packed[rows], codes.bits, codes.labels[rows], [codes.ids[row] for row in rows], u)


KEEP = {
    "seen": lambda labels: bool(labels) and not labels & set(UNSEEN),
    "unseen": lambda labels: bool(labels & set(UNSEEN)),
    "all": lambda _: True,
}


def written(folder, query, database, **evaluation):
    provenance = {
        "method": "m", "module": {}, "model": "n", "dataset": "d", "split": {"name": "s", "sha256": "a"}, "seed": 0
    }  # fmt: skip
    save_codes(folder, query, database, {"provenance": provenance, "evaluation": {**SETTINGS, **evaluation}})
    return folder


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("with_u", [False, True])
def test_each_protocol_is_the_evaluation_of_the_rows_that_a_loop_picks(tmp_path, multi, with_u):
    query, database = side("q", 40, multi, with_u, 1), side("d", 90, multi, with_u, 2)
    plain = score(written(tmp_path / "plain", query, database, nested=[8]), {})
    found = score(written(tmp_path / "codes", query, database, nested=[8], unseen=UNSEEN), {})
    for bits, whole in ((12, found), (8, found["nested"]["8"])):
        sides = prefix(query, bits), prefix(database, bits)
        assert list(whole["by_classes"]) == ["seen@seen", "seen@all", "unseen@unseen", "unseen@all"]
        for name, part in whole["by_classes"].items():
            asked, searched = (picked(codes, KEEP[kind]) for codes, kind in zip(sides, name.split("@"), strict=True))
            assert part == scoring.evaluate(asked, searched, **SETTINGS)
            assert (part["queries"], part["database"]) == (asked.n, searched.n)
    # The rest is what it is without unseen classes
    for whole in (found, found["nested"]["8"]):
        del whole["by_classes"], whole["policies"]["by_classes"]
    assert found == plain
    json.dumps(found, allow_nan=False)


def test_the_counts_add_up_and_images_without_a_label_are_in_the_whole_database_alone(tmp_path):
    query, database = side("q", 40, True, False, 1), side("d", 90, True, False, 2)
    parts = score(written(tmp_path, query, database, unseen=UNSEEN), {})["by_classes"]
    unlabelled = int((~database.labels.any(axis=1)).sum())
    assert unlabelled > 0
    assert parts["seen@seen"]["database"] + parts["unseen@unseen"]["database"] + unlabelled == database.n
    assert parts["seen@all"]["database"] == parts["unseen@all"]["database"] == database.n
    assert parts["seen@all"]["queries"] + parts["unseen@all"]["queries"] == int(query.labels.any(axis=1).sum())


def test_class_numbers_give_the_parts_of_multi_hot_labels():
    query, database = side("q", 40, False, False, 1), side("d", 90, False, False, 2)

    def numbered(codes):
        numbers = np.where(codes.labels.any(axis=1), codes.labels.argmax(axis=1), -1)
        return CodeSet(codes.packed, codes.bits, numbers, codes.ids)

    def maps(query, database):
        return {"map": scoring.evaluate(query, database, **SETTINGS)["map"]}

    assert by_classes(numbered(query), numbered(database), UNSEEN, maps) == by_classes(query, database, UNSEEN, maps)


def test_a_part_without_queries_or_items_has_counts_alone(tmp_path):
    query, database = side("q", 40, False, False, 1), side("d", 90, False, False, 2)
    query = picked(query, KEEP["seen"])
    metrics = score(written(tmp_path, query, database, unseen=UNSEEN), {})
    parts = metrics["by_classes"]
    assert parts["unseen@all"] == {"queries": 0, "database": 90, "bits": 12}
    assert parts["seen@all"]["map"] > 0
    assert set(scoring.by_classes(metrics)) == set(PROTOCOLS)


@pytest.mark.parametrize("unseen", [[CLASSES], [-1], ["a"], 3, [True]])
def test_unseen_classes_that_the_codes_do_not_have(tmp_path, unseen):
    folder = written(tmp_path, side("q", 9, False, False, 1), side("d", 9, False, False, 2), unseen=unseen)
    with pytest.raises(ArtifactError, match="unseen"):
        score(folder, {})


@pytest.mark.parametrize("odd", [3, [1], {"seen@seen": 4, "x@y": {}, "all": {"map": 1.0}}])
def test_parts_that_were_edited_are_left_out(odd):
    assert scoring.by_classes({"by_classes": odd}) == {}

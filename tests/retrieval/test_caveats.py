"""Metrics that mean less than they seem say so, and those of healthy codes say nothing."""

import numpy as np
import pytest

from deephash_cli.retrieval.caveats import caveats
from deephash_cli.retrieval.codes import CodeSet, pack
from deephash_cli.retrieval.scoring import evaluate


def said(codes, labels, q=120, ks=(1,), map_at=()):
    """Return the sentences for a database, searched with its first ``q`` items under other names."""
    bits = np.asarray(codes, np.bool_)
    labels = np.asarray(labels, np.uint8)
    sides = [CodeSet(pack(bits[:n]), bits.shape[1], labels[:n], None) for n in (q, len(bits))]
    return caveats(evaluate(*sides, ks=ks, map_at=map_at, radius=2))


def healthy(n=400, bits=12, classes=4):
    rng = np.random.default_rng(0)
    return rng.random((n, bits)) < 0.5, np.eye(classes, dtype=np.uint8)[np.arange(n) % classes]


def test_nothing_is_said_of_healthy_codes():
    codes, labels = healthy()
    assert said(codes, labels, ks=(1, 400), map_at=(400,)) == []
    assert said(codes, labels[:, :0]) == []
    one_code_a_class = np.eye(4, 12, dtype=bool) ^ (np.arange(12) >= 6)[None] ^ np.ones((4, 12), bool)
    assert not [text for text in said(one_code_a_class[np.arange(400) % 4], labels) if "different codes" in text]


@pytest.mark.parametrize("classes", [0, 4])
def test_collapsed_codes(classes):
    codes, labels = healthy()
    labels = labels[:, :classes]
    same = np.zeros_like(codes)
    (sentence,) = said(same, labels)
    assert sentence.startswith("all 400 database items have the same code")
    same[::2] = True
    few, *_ = said(same, labels)
    assert few.startswith("the 400 database items have only 2 different codes")


def test_too_few_bits_for_the_classes():
    codes, labels = healthy()
    (sentence,) = said(codes[:, :1], labels)
    assert sentence.endswith("(1 bits allow no more than 2: use more bits)")


def test_constant_bits_are_counted_and_named():
    codes, labels = healthy()
    codes[:, [3, 7]] = [True, False]
    (sentence,) = said(codes, labels)
    assert sentence == "2 of 12 bits are the same in all database items and tell nothing apart: bit 3, 7"


def test_few_queries_and_cut_offs_beyond_the_database():
    codes, labels = healthy()
    few, ks, ranks = said(codes, labels, q=99, ks=(100, 401, 500), map_at=(400, 5000))
    assert few.startswith("every metric is an estimate from only 99 queries: the 95% interval of the mAP is 0.")
    assert ks.startswith("the database has only 400 items: at k = 401, 500 precision and ACG divide by k")
    assert ranks == "the database has only 400 items: map_at_5000 is the mAP of the whole ranking"
    assert said(codes, labels, q=1) == ["every metric is an estimate from only 1 query"]


def test_labels_that_make_every_code_equally_good():
    codes, labels = healthy()
    (single,) = said(codes, np.ones((400, 1)))
    assert "mAP are 1 for any codes" in single
    (none,) = said(codes, np.zeros_like(labels))
    assert "every score is 0 for any codes" in none

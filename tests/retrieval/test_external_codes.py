"""Third-party codes: every common format gives the same numbers, and nothing is guessed or executed."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import sampled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deephash_cli import npy
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.retrieval import external_codes as foreign
from deephash_cli.retrieval.codes import CodeSet, pack, unpack
from deephash_cli.retrieval.codes_folder import save_codes

NAMES = ("query", "database", "query_labels", "database_labels")
FILES = [f"{name}={name}.npy" for name in NAMES]
BITS = 12
rng = np.random.default_rng(0)
QUERY, DATABASE = rng.random((5, BITS)) < 0.5, rng.random((40, BITS)) < 0.5
QUERY_IDS, DATABASE_IDS = rng.permutation(5) % 4, rng.permutation(40) % 4
HOT = np.eye(4, dtype=np.uint8)


def signs(dtype):
    return lambda codes: np.where(codes, 1, -1).astype(dtype)


CODES = {  # for each format of codes: how to write it, the options to read it, and its description
    "packed little": (pack, {"bits": BITS}, "uint8 packed, little"),
    "packed big": (lambda c: np.packbits(c, axis=1), {"bits": BITS, "bit_order": "big"}, "uint8 packed, big"),
    "packed int8, less 128": (
        lambda c: (np.packbits(c, axis=1).astype(int) - 128).astype("i1"),
        {"bits": BITS, "bit_order": "big", "byte_type": "int8_minus_128"},
        "int8 packed, big, int8_minus_128",
    ),
    "packed int8, the same bits": (
        lambda c: pack(c).view("i1"),
        {"bits": BITS, "byte_type": "int8_same_bits"},
        "int8 packed, little, int8_same_bits",
    ),
    "packed, Fortran order": (lambda c: np.asfortranarray(pack(c)), {"bits": BITS}, "uint8 packed, little"),
    "bool": (lambda c: c, {}, "bool"),
    "bool, bits given": (lambda c: c, {"bits": BITS}, "bool"),
    "float64": (signs("f8"), {}, "float64 -1/1"),
    "float32": (signs("f4"), {}, "float32 -1/1"),
    "float16": (signs("f2"), {}, "float16 -1/1"),
    "int8": (signs("i1"), {}, "int8 -1/1"),
    "int64": (signs("i8"), {}, "int64 -1/1"),
    "0/1 uint8": (lambda c: c.astype("u1"), {"bits": BITS}, "uint8 0/1"),
    "0/1 float32": (lambda c: c.astype("f4"), {}, "float32 0/1"),
    "0/1 uint64": (lambda c: c.astype("u8"), {}, "uint64 0/1"),
    "big-endian floats": (signs(">f4"), {}, "float32 -1/1"),
    "big-endian integers": (signs(">i2"), {}, "int16 -1/1"),
    "Fortran order": (lambda c: np.asfortranarray(signs("f4")(c)), {}, "float32 -1/1"),
    "negative zero": (lambda c: np.where(c, 1.0, -0.0), {}, "float64 0/1"),
}
LABELS = {
    "ids": (lambda ids: ids, "int64 class ids"),
    "one column": (lambda ids: ids[:, None], "int64 class ids"),
    "ids as uint8": (lambda ids: ids.astype("u1"), "uint8 class ids"),
    "ids as float32": (lambda ids: ids.astype("f4"), "float32 class ids"),
    "ids, big-endian": (lambda ids: ids.astype(">i4"), "int32 class ids"),
    "multi-hot uint8": (lambda ids: HOT[ids], "uint8 multi-hot"),
    "multi-hot bool": (lambda ids: HOT[ids].astype(bool), "bool multi-hot"),
    "multi-hot float64": (lambda ids: HOT[ids].astype("f8"), "float64 multi-hot"),
    "multi-hot int8": (lambda ids: HOT[ids].astype("i1"), "int8 multi-hot"),
    "multi-hot, big-endian, Fortran order": (lambda ids: np.asfortranarray(HOT[ids].astype(">i8")), "int64 multi-hot"),
}


def write(query=QUERY, database=DATABASE, query_labels=QUERY_IDS, database_labels=DATABASE_IDS):
    """Write the four files into the working folder."""
    for name, array in zip(NAMES, (query, database, query_labels, database_labels), strict=True):
        np.save(f"{name}.npy", array, allow_pickle=True)


def load(**options):
    return foreign.load(*(Path(f"{name}.npy") for name in NAMES), **options)


def score(deephash, *arguments):
    result = deephash("eval", *FILES, "output=m.json", *arguments)
    assert result.code == 0, result
    return json.loads(Path("m.json").read_text()), result


def numbers(metrics):
    """The metrics without the origin of the codes and labels."""
    return {name: value for name, value in metrics.items() if name != "source"}


def refused(deephash, code, *arguments):
    result = deephash("eval", *FILES, "output=m.json", *arguments)
    assert result.code == code, result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert not Path("m.json").exists()
    return result.err


@pytest.fixture
def expected(deephash, tmp_path):
    """Metrics of a codes folder with the same codes and labels."""
    ids = [f"query/{i}" for i in range(5)], [f"database/{i}" for i in range(40)]
    query = CodeSet(pack(QUERY), BITS, HOT[QUERY_IDS], ids[0])
    database = CodeSet(pack(DATABASE), BITS, HOT[DATABASE_IDS], ids[1])
    facts = dict.fromkeys(("method", "model", "dataset"), "x") | {"module": {}, "seed": 0}
    facts["split"] = {"name": "s", "sha256": "0" * 64}
    evaluation = {"ks": [1, 5, 10, 20], "map_at": [], "radius": 2}
    save_codes(tmp_path / "codes", query, database, {"provenance": facts, "evaluation": evaluation})
    result = deephash("eval", f"codes={tmp_path / 'codes'}", f"output={tmp_path / 'expected.json'}")
    assert result.code == 0, result
    metrics = json.loads((tmp_path / "expected.json").read_text())
    return {name: value for name, value in metrics.items() if name not in facts}


def without_names(metrics):
    """The metrics with positions of queries in place of ids: a codes folder has ids, the four files have none."""
    hardest = [
        {**entry, "query": int(str(entry["query"]).removeprefix("query/"))} for entry in metrics["hardest_queries"]
    ]
    return {**numbers(metrics), "hardest_queries": hardest}


# Formats


@pytest.mark.parametrize("form", sampled(CODES))
def test_every_format_of_codes_gives_the_same_numbers(deephash, expected, form):
    make, options, told = CODES[form]
    write(make(QUERY), make(DATABASE))
    query, database, source = load(**options)
    for side, codes in ((query, QUERY), (database, DATABASE)):
        assert side.bits == BITS
        assert side.ids is None
        np.testing.assert_array_equal(unpack(np.asarray(side.packed), BITS), codes)
    assert source["database"]["format"] == told
    metrics, _ = score(deephash, "ks=[1,5,10,20]", *(f"{name}={value}" for name, value in options.items()))
    assert without_names(metrics) == without_names(expected)


@pytest.mark.parametrize("of_database", sampled(LABELS))
@pytest.mark.parametrize("of_query", ["ids", "multi-hot bool"])
def test_every_format_of_labels_gives_the_same_numbers(deephash, expected, of_query, of_database):
    write(query_labels=LABELS[of_query][0](QUERY_IDS), database_labels=LABELS[of_database][0](DATABASE_IDS))
    metrics, _ = score(deephash, "ks=[1,5,10,20]")
    assert metrics["source"]["query_labels"]["format"] == LABELS[of_query][1]
    assert metrics["source"]["database_labels"]["format"] == LABELS[of_database][1]
    assert without_names(metrics) == without_names(expected)


def test_formats_may_differ_between_the_sides(deephash, expected):
    write(query=signs("f4")(QUERY), database=np.packbits(DATABASE, axis=1))
    metrics, _ = score(deephash, "ks=[1,5,10,20]", "bits=12", "bit_order=big")
    assert without_names(metrics) == without_names(expected)


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 64, 65])
@pytest.mark.parametrize("order", ["little", "big"])
def test_packed_codes_of_any_length(bits, order):
    codes = np.random.default_rng(bits).random((30, bits)) < 0.5
    write(np.packbits(codes[:5], axis=1, bitorder=order), np.packbits(codes, axis=1, bitorder=order), [0] * 5, [0] * 30)
    query, database, _ = load(bits=bits, bit_order=order)
    np.testing.assert_array_equal(database.packed, pack(codes))
    np.testing.assert_array_equal(query.packed, pack(codes[:5]))


@pytest.mark.parametrize("value", [1, -1, 0])
def test_both_values_need_not_occur(value):
    write(np.full((2, 9), value), np.full((3, 9), value, np.float32), [0, 0], [0, 0, 0])
    query, database, _ = load()
    for side in (query, database):
        assert (unpack(side.packed, 9) == (value == 1)).all()


def test_packed_codes_and_byte_labels_stay_on_disk():
    write(pack(QUERY), pack(DATABASE), HOT[QUERY_IDS], HOT[DATABASE_IDS])
    query, _, _ = load(bits=BITS)
    assert isinstance(query.packed, np.memmap)
    assert isinstance(query.labels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        query.packed[0] = 0


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_file_format(version):
    write()
    with open("database.npy", "wb") as file:  # noqa: PTH123
        np.lib.format.write_array(file, DATABASE, version=version)
    np.testing.assert_array_equal(load()[1].packed, pack(DATABASE))


def test_class_ids_may_be_far_apart():
    write(query_labels=np.array([5, 10**18, 0, 3, 5]), database_labels=(DATABASE_IDS * 10**9).astype(np.uint64))
    query, database, source = load()
    assert source["classes"] == [0, 3, 5, 10**9, 2 * 10**9, 3 * 10**9, 10**18]
    assert query.labels.tolist() == [2, 6, 0, 1, 2]
    np.testing.assert_array_equal(np.array(source["classes"])[database.labels], DATABASE_IDS * 10**9)


def test_class_ids_meet_multi_hot_labels():
    write(database_labels=np.pad(HOT[DATABASE_IDS], ((0, 0), (0, 2))))
    query, database, source = load()
    assert "classes" not in source
    np.testing.assert_array_equal(query.labels, np.pad(HOT[QUERY_IDS], ((0, 0), (0, 2))))
    assert database.labels.shape == (40, 6)


def test_one_column_of_zeros_and_ones_is_class_ids():
    write(query_labels=QUERY_IDS[:, None] % 2, database_labels=DATABASE_IDS[:, None] % 2)
    _, database, _ = load()
    np.testing.assert_array_equal(database.labels, DATABASE_IDS % 2)


def test_truth_values_are_class_ids_in_one_dimension():
    write(query_labels=QUERY_IDS > 1, database_labels=DATABASE_IDS > 1)
    np.testing.assert_array_equal(load()[1].labels, DATABASE_IDS > 1)


def test_images_may_have_several_labels_or_none(deephash):
    labels = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]])
    write(query_labels=labels, database_labels=np.tile(labels, (8, 1)))
    metrics, _ = score(deephash)
    assert metrics["queries_without_relevant"] == 1


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(data):
    bits, q, n = data.draw(st.integers(2, 40)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    values = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = [values.random((rows, bits)) < data.draw(st.sampled_from([0, 0.5, 1])) for rows in (q, n)]
    ids = [values.integers(0, 3, rows) * data.draw(st.sampled_from([1, 10**6])) for rows in (q, n)]
    order = data.draw(st.sampled_from(["little", "big"]))
    forms = {
        "packed": lambda c: np.packbits(c, axis=1, bitorder=order),
        "bool": lambda c: c,
        "bytes": lambda c: c.astype("u1"),
        "signs": lambda c: np.where(c, 1, -1).astype(data.draw(st.sampled_from(["i1", ">i4", "f2", "<f4", ">f8"]))),
        "fortran": lambda c: np.asfortranarray(c.astype("i2")),
    }
    made = [forms[data.draw(st.sampled_from(sorted(forms)))](c) for c in codes]
    write(*made, *ids)
    query, database, source = load(bits=bits, bit_order=order)
    for side, code, label in ((query, codes[0], ids[0]), (database, codes[1], ids[1])):
        np.testing.assert_array_equal(side.packed, pack(code))
        np.testing.assert_array_equal(np.array(source["classes"])[side.labels], label)


# The command


def test_the_settings_are_those_of_train_unless_given(deephash):
    write()
    metrics, _ = score(deephash)
    assert list(metrics["precision_at_k"])[:4] == ["1", "5", "10", "20"]
    assert len(metrics["precision_at_k"]) == 15
    assert "precision_within_2" in metrics
    assert not [name for name in metrics if name.startswith("map_at")]
    metrics, _ = score(deephash, "ks=[3]", "radius=4", "map_at=[7]")
    assert list(metrics["precision_at_k"]) == ["3"]
    assert "precision_within_4" in metrics
    assert "map_at_7" in metrics


def test_the_numbers_can_be_traced_to_the_files(deephash):
    write(signs("f4")(QUERY), signs("f4")(DATABASE))
    metrics, result = score(deephash)
    for name in NAMES:
        entry = metrics["source"][name]
        assert entry["file"] == f"{name}.npy"
        assert entry["sha256"] == hashlib.sha256(Path(entry["file"]).read_bytes()).hexdigest()
    assert metrics["source"]["classes"] == [0, 1, 2, 3]
    assert metrics["bits"] == BITS
    assert "query.npy (float32 -1/1) in database.npy (float32 -1/1), 12 bits" in result.out
    assert f"│ {metrics['map']:.4f} │" in result.out
    assert "5 queries, 40 database items\n" in result.out
    marked = [line.split()[1] for line in result.out.splitlines() if "│ k > 40 items │" in " ".join(line.split())]
    assert marked == ["precision_at_100", "precision_at_1000", "recall_at_100", "recall_at_1000"]
    assert f"│ bit_balance_mean_deviation │ {metrics['bit_balance']['mean_deviation']:.4f} │ mean" in result.out


def test_queries_without_a_relevant_item_count_or_not(deephash):
    write(query_labels=np.array([0, 1, 99, 98, 2]))
    counted, _ = score(deephash)
    skipped, result = score(deephash, "zero_hits=skip")
    assert counted["queries_without_relevant"] == skipped["queries_without_relevant"] == 2
    assert skipped["map"] == pytest.approx(counted["map"] * 5 / 3)
    assert "left out" in result.out
    assert score(deephash, "zero_hits=zero")[0] == counted


def test_no_class_in_common_is_a_score_of_zero(deephash):
    write(query_labels=np.full(5, 77))
    assert score(deephash)[0]["map"] == 0


def test_names_with_brackets_are_shown_as_they_are(deephash):
    write()
    Path("query.npy").rename("q[red].npy")
    result = deephash("eval", "query='q[red].npy'", *FILES[1:])
    assert result.code == 0, result
    assert "q[red].npy (bool) in" in result.out


def test_it_needs_no_torch():
    write()
    code = f"""
import sys
from deephash_cli.cli import main as cli
code = cli.run(["eval", *{FILES}])
print(code, sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "pandas", "wandb", "timm"}}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "0 []", result


# What is refused


def floats(row=3, column=2, value=0.0, rest=None):
    """Codes of the database as -1 and 1, with one value that is neither."""
    u = signs("f4")(DATABASE) if rest is None else rest.astype("f4")
    u[row, column] = value
    return u


THRESHOLD = "threshold at 0 first: np.where(u >= 0, 1, -1)"
NEITHER = "database.npy must hold codes that are all -1 or 1, or all 0 or 1, got "
HEIGHT = "database_labels.npy has labels of 39 images: each code needs the labels of its image"
REFUSED = {  # for each case: the arrays that replace the valid ones, arguments, exit code, message
    "a zero, as of torch.sign": ({"database": floats()}, [], 4, f"{NEITHER}0.0 beside -1, as torch.sign gives"),
    "where the zero is": ({"database": floats()}, [], 4, f"in row 3, column 2: {THRESHOLD}"),
    "all three of -1, 0 and 1": (
        {"database": np.resize(np.array([-1, 0, 1], np.int8), (40, 12))}, [], 4,
        f"{NEITHER}0 beside -1, as torch.sign gives in row 0, column 1: {THRESHOLD}",
    ),
    "continuous": ({"database": floats(7, 0, 0.25)}, [], 4, f"{NEITHER}0.25 in row 7, column 0: {THRESHOLD}"),
    "NaN": ({"database": floats(9, 1, np.nan)}, [], 4, f"{NEITHER}nan in row 9, column 1: NaN has no sign"),
    "infinity": ({"database": floats(0, 1, -np.inf)}, [], 4, f"{NEITHER}-inf in row 0, column 1: {THRESHOLD}"),
    "other integers": ({"database": DATABASE * 5}, [], 4, "column 0: packed codes must be of uint8 or int8"),
    "bytes without a length": (
        {"database": pack(DATABASE)}, [], 2,
        "database.npy has 2 columns of uint8, which may be packed codes or have one bit per column: give the code "
        "length, such as bits=16 if it is packed or bits=2 if not",
    ),
    "bytes of 0 and 1 without a length": ({"database": DATABASE.astype("u1")}, [], 2, "bits=96 if it is packed or"),
    "bytes of another length": (
        {"database": pack(DATABASE)}, ["bits=20"], 2,
        "bits=20 does not fit query.npy, which has 12 columns of bool, one per bit: leave bits out",
    ),
    "signed bytes on one side": (
        {"query": pack(QUERY), "database": pack(DATABASE).view("i1")}, ["bits=12", "byte_type=int8_same_bits"], 2,
        "byte_type=int8_same_bits is for packed codes as int8 on both sides, but query.npy holds uint8",
    ),
    "unsigned bytes on one side": (
        {"query": pack(QUERY), "database": pack(DATABASE).view("i1")}, ["bits=12"], 2,
        "bits=12 does not fit database.npy, which has 2 columns of int8, one per bit: leave bits out, or give packed "
        "codes as uint8 or, with byte_type=, as int8",
    ),
    "signed bytes without a length": (
        {"query": pack(QUERY).view("i1")}, ["byte_type=int8_minus_128"], 2,
        "byte_type=int8_minus_128 needs the code length: query.npy has 2 columns, so give bits=16, or less",
    ),
    "signed bytes of another length": (
        {"query": pack(QUERY).view("i1")}, ["byte_type=int8_minus_128", "bits=20"], 2,
        "bits=20 with byte_type=int8_minus_128 does not fit query.npy, which has 2 columns of int8: packed codes of 20 "
        "bits have 3",
    ),
    "the other type of signed bytes": (
        {"query": pack(QUERY).view("i1"), "database": pack(DATABASE).view("i1")},
        ["bits=12", "byte_type=int8_minus_128"], 4, "zeros in the 4 padding bits of codes of 12 bits, got ones in row",
    ),
    "embeddings of int8": (
        {"query": np.array([[7, -90]] * 5, "i1")}, [], 4,
        "got 7 in row 0, column 0: if they are packed, give bits=16 and byte_type=int8_minus_128 (binary of "
        "sentence-transformers and Cohere) or byte_type=int8_same_bits; embeddings with one such number per dimension "
        "are not binary codes",
    ),
    "embeddings of uint8": (
        {"query": np.array([[7, 90]] * 5, "u1")}, ["bits=2"], 4,
        "if they are packed, bits must be between 9 and 16; embeddings with one such number per dimension are not",
    ),
    "a type of bytes that is none": ({}, ["byte_type=int8"], 2, "byte_type must be uint8 or int8_minus_128 or int8_"),
    "packed of another width": (
        {"query": pack(QUERY), "database": pack(DATABASE)}, ["bits=20"], 2,
        "bits=20 does not fit query.npy, which has 2 columns of uint8: codes of 20 bits have 3 if packed and 20 if not",
    ),
    "bytes taken for bits": (
        {"database": np.full((40, 12), 3, np.uint8)}, ["bits=12"], 4,
        f"{NEITHER}3 in row 0, column 0: if they are packed, bits must be between 89 and 96",
    ),
    "the other bit order": (
        {"database": np.packbits(DATABASE, axis=1)}, ["bits=12"], 2,
        "zeros in the 4 padding bits of codes of 12 bits, got ones in row 0 with bit_order=little; with bit_order=big "
        "they are zeros: set bit_order=big",
    ),
    "the other bit order, the other way": (
        {"database": pack(DATABASE)}, ["bits=12", "bit_order=big"], 2, "set bit_order=little",
    ),
    "no bit order": ({"database": np.full((40, 2), 255, np.uint8)}, ["bits=12"], 4, "the codes have another length"),
    "bits that contradict": ({}, ["bits=13"], 2, "bits=13 does not fit query.npy, which has 12 columns of bool"),
    "another width": (
        {"database": DATABASE[:, :8]}, [], 4,
        "query.npy has codes of 12 bits but database.npy has codes of 8 bits: both must come from the same model",
    ),
    "a bool that is neither": ({"database": np.full((40, 12), 2, "u1").view(bool)}, [], 4, f"{NEITHER}2 in row 0"),
    "codes in one dimension": ({"database": DATABASE[:, 0]}, [], 4, "of 2 dimensions, one row per image, got 1"),
    "codes in three dimensions": ({"database": DATABASE[None]}, [], 4, "of 2 dimensions, one row per image, got 3"),
    "one number": ({"database": np.array(3)}, [], 4, "got 0"),
    "no codes": ({"database": DATABASE[:0]}, [], 4, "database.npy must hold codes of at least one image, got"),
    "codes of no bits": ({"query": QUERY[:, :0]}, [], 4, "query.npy must hold codes of at least one image"),
    "too many bits": ({"query": np.ones((1, 2**16 + 1), bool)}, [], 4, "at most 65536 bits, got 65537 columns"),
    "text": ({"database": DATABASE.astype("U1")}, [], 4, "as numbers or truth values, got <U1: convert it"),
    "complex": ({"database": DATABASE.astype("c8")}, [], 4, "must hold codes as numbers or truth values, got <c8"),
    "dates": ({"database": DATABASE.astype("m8[s]")}, [], 4, "must hold codes as numbers or truth values, got <m8[s]"),
    "objects": ({"database": DATABASE.astype(object)}, [], 4, "got pickled Python objects"),
    "fields": ({"database": np.zeros((40, 12), [("a", "u1")])}, [], 4, "as numbers or truth values, got |V1"),
    "labels of objects": ({"database_labels": DATABASE_IDS.astype(object)}, [], 4, "must hold labels as numbers"),
    "too few labels": ({"database_labels": DATABASE_IDS[:-1]}, [], 4, f"database.npy has 40 codes but {HEIGHT}"),
    "too many labels": ({"query_labels": DATABASE_IDS}, [], 4, "query.npy has 5 codes but query_labels.npy has"),
    "no labels": ({"query_labels": QUERY_IDS[:0]}, [], 4, "query_labels.npy must hold labels of at least one image"),
    "labels in three dimensions": ({"query_labels": QUERY_IDS[None, None]}, [], 4, "of 1 or 2 dimensions, one row"),
    "a negative class": (
        {"query_labels": np.array([0, 1, -1, 2, 0])}, [], 4,
        "query_labels.npy must hold class ids, whole numbers from 0 to 9223372036854775807 in int64, got -1 in row 2: "
        "for images without a class give multi-hot labels, with rows of zeros",
    ),
    "half a class": ({"query_labels": np.array([0, 1, 1.5, 2, 0])}, [], 4, "got 1.5 in row 2: number the classes"),
    "a class that is NaN": ({"query_labels": np.array([0, np.nan, 1, 2, 0])}, [], 4, "got nan in row 1"),
    "an infinite class": ({"query_labels": np.array([0, np.inf, 1, 2, 0])}, [], 4, "got inf in row 1"),
    "classes that floats run together": (
        {"query_labels": np.full(5, 2**24, "f4")}, [], 4,
        "whole numbers from 0 to 16777215 in float32, got 16777216.0 in row 0: save them as int64",
    ),
    "a class beyond counting": ({"query_labels": np.full(5, 2**63, "u8")}, [], 4, "got 9223372036854775808 in row 0"),
    "labels that are counts": (
        {"database_labels": HOT[DATABASE_IDS] * 2}, [], 4,
        f"multi-hot labels, 0 or 1 with one column per class, got 2 in row 0, column {DATABASE_IDS[0]}: class ids "
        "go into",
    ),
    "soft labels": ({"database_labels": HOT[DATABASE_IDS] * 0.9}, [], 4, "got 0.9 in row 0"),
    "labels with NaN": ({"database_labels": np.full((40, 4), np.nan)}, [], 4, "got nan in row 0, column 0"),
    "a bool label that is neither": ({"query_labels": np.full((5, 4), 2, "u1").view(bool)}, [], 4, "got 2 in row 0"),
    "different classes": (
        {"query_labels": HOT[QUERY_IDS], "database_labels": HOT[DATABASE_IDS][:, :3]}, [], 4,
        "query_labels.npy has labels of 4 classes but database_labels.npy has 3: both must have the same columns",
    ),
    "ids beyond the columns": (
        {"query_labels": QUERY_IDS + 1, "database_labels": HOT[DATABASE_IDS]}, [], 4,
        "query_labels.npy has class ids up to 4 but database_labels.npy is multi-hot with 4 classes: give both",
    ),
    "ids beyond the columns, the other way": (
        {"query_labels": HOT[QUERY_IDS][:, :2], "database_labels": DATABASE_IDS}, [], 4,
        "database_labels.npy has class ids up to 3 but query_labels.npy is multi-hot with 2 classes",
    ),
    "no queries to average": (
        {"query_labels": QUERY_IDS + 50}, ["zero_hits=skip"], 3, "no query has a relevant item in the database",
    ),
    "a policy that is none": ({}, ["zero_hits=ignore"], 2, "zero_hits must be zero or skip, got ignore"),
    "a bit order that is none": ({}, ["bit_order=middle"], 2, "bit_order must be little or big, got middle"),
    "bits: text": ({}, ["bits=many"], 2, "bits must be a whole number, from 1 to 4096, got many"),
    "bits: fraction": ({}, ["bits=1.5"], 2, "bits must be a whole number, from 1 to 4096, got 1.5"),
    "bits: zero": ({}, ["bits=0"], 2, "bits must be a whole number, from 1 to 4096, got 0"),
    "also a run": ({}, ["run=r"], 2, "takes only one of the two, got run= and query=: leave out all but one"),
    "also a run and codes": ({}, ["run=r", "codes=c"], 2, "only one of the three, got run= and codes= and query="),
    "settings of the group": ({}, ["metrics.ks=[1]"], 2, "deephash eval has no metrics.ks; it has ks,"),
    "the group": ({}, ["metrics=default"], 2, "deephash eval has no metrics; it has ks,"),
}  # fmt: skip


@pytest.mark.parametrize("case", sampled(REFUSED, 3))
def test_what_cannot_be_scored_is_refused_in_one_sentence(deephash, case):
    arrays, arguments, code, sentence = REFUSED[case]
    write(**arrays)
    assert sentence in refused(deephash, code, *arguments)


@pytest.mark.parametrize("missing", NAMES)
def test_the_four_files_go_together(deephash, missing):
    write()
    result = deephash("eval", *[file for file in FILES if not file.startswith(f"{missing}=")])
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert result.err.endswith(f" also needs {missing}=<file.npy>\n")
    assert deephash("eval", FILES[NAMES.index(missing)]).err.count("=<file.npy>") == 3


@pytest.mark.parametrize("setting", ["bits=12", "bit_order=big", "byte_type=int8_same_bits"])
def test_a_folder_knows_its_own_bits(deephash, setting):
    result = deephash("eval", "codes=c", setting)
    assert result.code == 2
    assert "bits=, bit_order= and byte_type= are for query= and database=; leave them out" in result.err


# Damage


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused(deephash, name):
    write()
    path = Path(f"{name}.npy")
    content = path.read_bytes()
    for damaged, sentence in (
        (b"", "is not a .npy array as np.save writes it"),
        (content[:20], "is not a .npy array"),
        (content[:-1], f"has {len(content) - 1} bytes, expected {len(content)} for shape"),
        (content + b"\0", "it was truncated, padded or edited"),
        (content + content, "it was truncated, padded or edited"),
        (b"\x93NUMPY\x09\x09" + content[8:], "has .npy version 9.9, expected 1.0, 2.0 or 3.0"),
        (b"0 1 1\n1 0 1\n", "is not a .npy array"),
    ):
        path.write_bytes(damaged)
        message = refused(deephash, 4)
        assert message.startswith(f"error: {name}.npy ")
        assert sentence in message


@pytest.mark.parametrize(
    "shape",
    ["(8796093022208, 12)", "(18446744073709551656, 12)", "(-40, -12)", "(40, 12, 1)", "(0, 12)", "(41, 12)", "()"],
)
def test_shapes_that_lie(deephash, shape):
    write()
    header = f"{{'descr': '|b1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    Path("database.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 480)
    assert refused(deephash, 4).startswith("error: database.npy ")


def test_an_archive_is_refused(deephash):
    write()
    np.savez("database.npz", DATABASE)
    Path("database.npz").rename("database.npy")
    assert "must be one .npy array, got an archive (.npz): save the array with np.save" in refused(deephash, 4)


def test_what_is_no_plain_file(deephash):
    write()
    Path("database.npy").unlink()
    assert "database.npy does not exist" in refused(deephash, 4)
    Path("database.npy").mkdir()
    assert "database.npy is not a plain file" in refused(deephash, 4)
    Path("database.npy").rmdir()
    os.mkfifo("database.npy")
    assert "database.npy is not a plain file" in refused(deephash, 4)


@pytest.mark.parametrize("name", NAMES)
def test_pickles_are_never_run(deephash, name):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, ("sprung",))

    write(**{name: np.array([[Trap()] * BITS] * 5, dtype=object)})
    assert "as numbers or truth values, got pickled Python objects" in refused(deephash, 4)
    with Path(f"{name}.npy").open("wb") as file:  # a bare pickle, as np.load(allow_pickle=True) would take
        np.array(Trap(), dtype=object).dump(file)
    assert "is not a .npy array" in refused(deephash, 4)
    assert not Path("sprung").exists()


# Memory


def test_memory_does_not_grow_with_unpacked_codes(monkeypatch):
    rows, bits = 200_000, 64
    u = np.lib.format.open_memmap("database.npy", "w+", np.float32, (rows, bits))  # 51 MB
    u[:] = np.where(np.random.default_rng(0).random((rows, bits)) < 0.5, 1, -1)
    u.flush()
    np.save("query.npy", u[:5])
    np.save("query_labels.npy", np.arange(5.0))
    np.save("database_labels.npy", np.arange(rows, dtype=np.float64) % 10)
    monkeypatch.setattr(npy, "_BLOCK", 2**18)
    tracemalloc.start()
    _, database, _ = load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows * (bits // 8 + 4) + 8 * 2**20  # packed codes and class numbers, and a block
    np.testing.assert_array_equal(database.packed, pack(u > 0))
    np.testing.assert_array_equal(database.labels, np.arange(rows) % 10)


@pytest.mark.parametrize("block", [1, 12, 100])
def test_the_size_of_a_block_changes_nothing(monkeypatch, block):
    write(signs("f4")(QUERY), np.packbits(DATABASE, axis=1), QUERY_IDS, HOT[DATABASE_IDS].astype("f4"))
    whole = load(bits=BITS, bit_order="big")
    write(signs("f4")(QUERY), np.packbits(DATABASE, axis=1), QUERY_IDS, HOT[DATABASE_IDS].astype("f4"))
    monkeypatch.setattr(npy, "_BLOCK", block)
    again = load(bits=BITS, bit_order="big")
    for left, right in zip(whole[:2], again[:2], strict=True):
        np.testing.assert_array_equal(left.packed, right.packed)
        np.testing.assert_array_equal(left.labels, right.labels)
    write(database=floats(17, 5, 0.5))
    with pytest.raises(ArtifactError, match=r"got 0\.5 in row 17, column 5"):
        load()
    write(database=floats(17, 5, 0))
    with pytest.raises(ArtifactError, match=r"got 0\.0 beside -1, as torch.sign gives in row 17, column 5"):
        load()
    write(query_labels=np.array([0, 1, 2, 0.5, 0]))
    with pytest.raises(ArtifactError, match=r"got 0\.5 in row 3"):
        load()
    write(database=pack(DATABASE))
    with pytest.raises(ConfigError, match="give the code length"):
        load()


@pytest.mark.parametrize("form", sampled([name for name in CODES if name != "0/1 uint8"]))
def test_the_first_bits_of_every_format(tmp_path, form):
    write, options, _ = CODES[form]
    for name, array in zip(NAMES, (write(QUERY), write(DATABASE), QUERY_IDS, DATABASE_IDS), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    packing = {name: options[name] for name in ("bit_order", "byte_type") if name in options}
    paths = [tmp_path / f"{name}.npy" for name in NAMES]
    query, database, source = foreign.load(*paths, bits=5, **packing, is_prefix=True)
    assert np.array_equal(unpack(query.packed, 5), QUERY[:, :5])
    assert np.array_equal(unpack(database.packed, 5), DATABASE[:, :5])
    assert source["prefix_of"] == (16 if form.startswith("packed") else 12)  # packed codes do not tell their padding


def test_the_first_bits_of_uint8_that_may_be_packed_or_not_are_refused(tmp_path):
    for name, array in zip(NAMES, (QUERY.astype("u1"), DATABASE.astype("u1"), QUERY_IDS, DATABASE_IDS), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(ConfigError, match="are all 0 or 1, which may be packed codes or have one bit per column"):
        foreign.load(*(tmp_path / f"{name}.npy" for name in NAMES), bits=5, is_prefix=True)

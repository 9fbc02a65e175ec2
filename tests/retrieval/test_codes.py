"""Bits, bytes and codes folders: every kind of damaged folder is refused with one sentence."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys

import digests
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.files import read_sealed
from deephash_cli.retrieval import codes
from deephash_cli.retrieval.codes import CodeSet, binarize, pack, prefix, require_comparable, rounded, unpack
from deephash_cli.retrieval.codes_folder import damages, load_codes, open_continuous, open_side, save_codes
from deephash_cli.retrieval.scoring import score

FILES = [
    "query.npy",
    "query_labels.npy",
    "query_ids.txt",
    "database.npy",
    "database_labels.npy",
    "database_ids.txt",
    "manifest.json",
]


def code_set(name, n, bits=12, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < 0.5).astype(np.uint8)
    return CodeSet(pack(rng.random((n, bits)) < 0.5), bits, labels, [f"{name}/{i}.png" for i in range(n)])


def save(folder, **options):
    query, database = code_set("query", 3, seed=1, **options), code_set("database", 7, seed=2, **options)
    save_codes(folder, query, database, {"method": "dpsh"})
    return query, database


@pytest.mark.parametrize("kept", [1, 7, 8, 9, 12])
def test_a_prefix_has_the_first_bits_and_zeros_after_them(kept):
    whole = code_set("query", 20)
    part = prefix(whole, kept)  # a CodeSet checks its padding itself
    assert part.bits == kept
    assert np.array_equal(unpack(part.packed, kept), unpack(whole.packed, 12)[:, :kept])
    assert part.ids == whole.ids
    assert part.labels is whole.labels


@pytest.mark.parametrize("kept", [0, -1, 13])
def test_a_prefix_that_the_codes_do_not_have_is_refused(kept):
    with pytest.raises(ConfigError, match=f"a prefix must have 1 to 12 bits, as many as the codes have, got {kept}"):
        prefix(code_set("query", 3), kept)


def same(left, right):
    return (
        left.bits == right.bits
        and left.ids == right.ids
        and np.array_equal(left.packed, right.packed)
        and np.array_equal(left.labels, right.labels)
    )


def reseal(folder, **changes):
    """Update the digests in the manifest to the current files, so that only the later checks can find the damage."""
    path = folder / "manifest.json"
    manifest = read_sealed(path)
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    digests.put(path, {**manifest, **changes})


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def assert_refused(folder, *words):
    with pytest.raises(ArtifactError) as caught:
        load_codes(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def assert_refused_alike(folder, *words):
    """Every reader refuses the query side with the same message: that of ``eval``, and that of all other commands."""
    assert_refused(folder, *words)
    with pytest.raises(ArtifactError) as one:
        load_codes(folder)
    with pytest.raises(ArtifactError) as other:
        open_side(folder, "query")
    assert str(one.value) == str(other.value)


# Bits and bytes.


def test_binarize_signs():
    u = np.array([[0.0, -0.0, np.inf, -np.inf, 5e-324, -5e-324, 1, -1]])
    assert binarize(u).tolist() == [[True, True, True, False, True, False, True, False]]
    assert binarize(u.astype(np.float32)).dtype == np.bool_
    assert binarize(np.zeros((0, 4))).shape == (0, 4)


def test_binarize_names_the_first_row_with_nan():
    u = np.zeros((5, 3), np.float32)
    u[2, 1] = u[4, 0] = np.nan
    with pytest.raises(ValueError, match=r"NaN first in row 2 \(2 of 5 rows\)"):
        binarize(u)


@pytest.mark.parametrize("bits", [1, 7, 8, 12, 36, 63, 64, 65, 100])
def test_bit_i_is_in_byte_i_over_8_at_position_i_mod_8(bits):
    original = np.random.default_rng(bits).random((20, bits)) < 0.5
    packed = pack(original)
    assert packed.dtype == np.uint8
    assert packed.shape == (20, (bits + 7) // 8)
    for row, code in zip(packed.tolist(), original.tolist(), strict=True):
        assert sum(byte << (8 * i) for i, byte in enumerate(row)) == sum(bit << i for i, bit in enumerate(code))
    np.testing.assert_array_equal(unpack(packed, bits), original)
    assert unpack(packed, bits).dtype == np.bool_


@given(st.integers(0, 5), st.integers(1, 130), st.integers(0, 10**6))
def test_pack_and_unpack_are_inverse(n, bits, seed):
    original = np.random.default_rng(seed).random((n, bits)) < 0.5
    np.testing.assert_array_equal(unpack(pack(original), bits), original)


@pytest.mark.parametrize("bits", [0, 8, 17])
def test_unpack_refuses_another_width(bits):
    with pytest.raises(ValueError, match="bytes a row, got rows of 2 bytes"):
        unpack(np.zeros((1, 2), np.uint8), bits)


# Code sets.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"packed": np.zeros((2, 2), np.int64)},
            "codes must be a two-dimensional array of uint8, got 2 dimensions of int",
        ),
        ({"packed": np.zeros(4, np.uint8)}, "codes must be a two-dimensional array of uint8, got 1 dimensions"),
        (
            {"labels": np.zeros((2, 3), np.bool_)},
            "labels must be a two-dimensional array of uint8 or a one-dimensional one of whole numbers, "
            "got 2 dimensions of bool",
        ),
        ({"bits": 0}, "bits must be a whole number between 1 and 65536, got 0"),
        ({"bits": 10**9}, "bits must be"),
        ({"bits": 24}, "codes of 24 bits take 3 bytes a row, got rows of 2 bytes"),
        ({"packed": np.zeros((3, 2), np.uint8)}, "equal lengths, got 3, 2 and 2"),
        ({"labels": np.zeros((1, 3), np.uint8)}, "equal lengths, got 2, 1 and 2"),
        ({"ids": ["a"]}, "equal lengths, got 2, 2 and 1"),
        ({"ids": None, "labels": np.zeros((1, 3), np.uint8)}, "codes and labels must have equal lengths, got 2 and 1"),
        ({"labels": np.zeros(2)}, "a one-dimensional one of whole numbers, got 1 dimensions of float64"),
        ({"labels": np.zeros(2, np.bool_)}, "got 1 dimensions of bool"),
        ({"labels": np.zeros(3, np.int64)}, "equal lengths, got 2, 3 and 2"),
        ({"labels": np.array([0, -2])}, "class numbers must be at least 0, or -1 for none, got -2"),
        ({"labels": np.full((2, 3), 2, np.uint8)}, "labels must be 0 or 1 (multi-hot), got 2"),
        ({"packed": np.full((2, 2), 16, np.uint8)}, "zeros in the 4 padding bits"),
        ({"ids": ["a", "a"]}, "ids must be unique, got 'a' twice"),
        ({"ids": ["a", "b\nc"]}, "without a line break and not empty, got 'b\\nc' at position 1"),
        ({"ids": ["", "b"]}, "without a line break and not empty, got '' at position 0"),
        ({"ids": ["a", "\udcff"]}, "ids must be valid Unicode"),
    ],
)
def test_code_set_refuses(change, message):
    parts = {"packed": np.zeros((2, 2), np.uint8), "bits": 12, "labels": np.zeros((2, 3), np.uint8), "ids": ["a", "b"]}
    assert CodeSet(**parts).n == 2
    with pytest.raises(ArtifactError) as caught:
        CodeSet(**{**parts, **change})
    assert message in str(caught.value)


def test_sides_of_different_runs_are_refused(tmp_path):
    query = code_set("q", 2, bits=48)
    with pytest.raises(ArtifactError) as caught:
        require_comparable(query, code_set("d", 2, bits=24))
    assert str(caught.value) == "query codes have 48 bits but the database has 24: they come from different runs"
    with pytest.raises(ArtifactError, match="query labels have 3 classes but the database has 4"):
        save_codes(tmp_path / "codes", query, code_set("d", 2, bits=48, classes=4), {})
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint16])
def test_labels_may_be_class_numbers_and_ids_may_be_none(dtype):
    numbers = CodeSet(np.zeros((2, 2), np.uint8), 12, np.array([0, 3], dtype), None)
    assert numbers.n == 2
    require_comparable(numbers, CodeSet(np.zeros((1, 2), np.uint8), 12, np.array([-1]), ["a"]))
    with pytest.raises(ArtifactError) as caught:
        require_comparable(numbers, code_set("d", 2))
    assert str(caught.value) == (
        "query labels are class numbers but those of the database are multi-hot: both sides need the same kind"
    )


def test_a_folder_needs_ids_and_multi_hot_labels(tmp_path):
    full = code_set("d", 2)
    for query, database, side in (
        (CodeSet(full.packed, full.bits, full.labels, None), full, "query"),
        (full, CodeSet(full.packed, full.bits, full.labels, None), "database"),
        (*[CodeSet(full.packed, full.bits, np.array([0, 1]), full.ids)] * 2, "query"),
    ):
        with pytest.raises(ValueError, match=f"needs ids and multi-hot labels, got a {side} side without them"):
            save_codes(tmp_path / "codes", query, database, {})
    assert not (tmp_path / "codes").exists()


def test_names_of_equal_hash_are_not_taken_for_equal(monkeypatch):
    monkeypatch.setattr(codes, "hash", lambda _: 7, raising=False)
    assert code_set("d", 5).n == 5
    with pytest.raises(ArtifactError, match="ids must be unique, got 'b' twice"):
        CodeSet(np.zeros((4, 1), np.uint8), 8, np.zeros((4, 1), np.uint8), ["a", "b", "c", "b"])


# Folders.


@pytest.mark.parametrize("bits", [1, 12, 36, 63, 65, 100])
def test_save_and_load(tmp_path, bits):
    query, database = save(tmp_path / "new" / "codes", bits=bits)
    loaded_query, loaded_database, manifest = load_codes(tmp_path / "new" / "codes")
    assert same(query, loaded_query)
    assert same(database, loaded_database)
    assert sorted(path.name for path in (tmp_path / "new" / "codes").iterdir()) == sorted(FILES)
    assert list(manifest) == ["format", "bits", "bit_order", "query", "database", "files", "method"]
    assert manifest["format"] == 1
    assert manifest["bits"] == bits
    assert manifest["database"] == {"count": 7, "classes": 3}
    assert manifest["method"] == "dpsh"


def test_loaded_arrays_stay_on_disk_and_cannot_be_written(tmp_path):
    save(tmp_path)
    query, _, _ = load_codes(tmp_path)
    assert isinstance(query.packed, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        query.packed[0] = 0


@pytest.mark.slow
def test_ten_million_codes_are_loaded_in_a_gigabyte(tmp_path):
    n = 10_000_000
    rng = np.random.default_rng(0)
    labels = np.eye(10, dtype=np.uint8)[rng.integers(0, 10, n)]
    names = [f"train/{i:07}.png" for i in range(n)]
    database = CodeSet(rng.integers(0, 256, (n, 8), dtype=np.uint8), 64, labels, names)
    save_codes(tmp_path, CodeSet(database.packed[:9], 64, labels[:9], names[:9]), database, {})
    code = f"""
import re
from pathlib import Path
from deephash_cli.retrieval.codes_folder import load_codes
_, database, _ = load_codes(Path({str(tmp_path)!r}))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss counts this test, too
print(database.n, database.ids[-1], peak[1])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    count, last, kibibytes = result.stdout.split()
    assert (int(count), last) == (n, names[-1])
    assert int(kibibytes) * 1024 < 1.1e9


def continuous(name, n, bits=12, seed=0):
    u = rounded(np.random.default_rng(seed).normal(size=(n, bits)))
    return CodeSet(pack(u >= 0), bits, np.ones((n, 3), np.uint8), [f"{name}/{i}.png" for i in range(n)], u)


def test_continuous_codes_are_kept(tmp_path):
    query, database = continuous("q", 3), continuous("d", 7, seed=1)
    save_codes(tmp_path, query, database, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "query_u.npy", "database_u.npy"])
    *loaded, manifest = load_codes(tmp_path)
    for side, name, original in zip(loaded, ("query", "database"), (query, database), strict=True):
        assert same(side, original)
        assert side.u.dtype == np.float16
        assert np.array_equal(side.u, original.u)
        assert np.array_equal(open_continuous(tmp_path, name, manifest), original.u)
    assert not damages(tmp_path)


def test_codes_may_replace_others_of_which_more_was_kept(tmp_path):
    save_codes(tmp_path, continuous("q", 3), continuous("d", 7), {})
    save(tmp_path)
    query, _, manifest = load_codes(tmp_path)
    assert query.u is None
    assert open_continuous(tmp_path, "query", manifest) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_one_side_may_lack_continuous_codes(tmp_path):
    save_codes(tmp_path, continuous("q", 3), code_set("d", 7), {})
    query, database, _ = load_codes(tmp_path)
    assert query.u is not None
    assert database.u is None


BROKEN_U = {
    "other numbers": (lambda u: u.astype(np.float32), "query_u.npy must hold float16 (<f2), got '<f4'"),
    "fewer rows": (lambda u: u[1:], "query_u.npy has shape (2, 12) but manifest.json says (3, 12)"),
    "not finite": (lambda u: u * np.float16(np.inf), "continuous codes must be finite, got another value in row 0"),
    "NaN": (
        lambda u: u + np.float16(np.nan) * (np.arange(3) == 2)[:, None],
        "must be finite, got another value in row",
    ),
    "another sign": (
        lambda u: u * np.where(np.arange(3) == 1, -1, 1)[:, None].astype(np.float16),
        "must have the signs of the binary codes, got another sign in row 1",
    ),
}


@pytest.mark.parametrize("change", BROKEN_U)
def test_continuous_codes_that_do_not_fit_the_codes_are_refused(tmp_path, change):
    query = continuous("q", 3)
    save_codes(tmp_path, query, continuous("d", 7), {})
    broken, words = BROKEN_U[change]
    (tmp_path / "query_u.npy").write_bytes(npy(broken(query.u)))
    assert_refused(tmp_path, "query_u.npy")
    assert [path.name for path, _ in damages(tmp_path)] == ["query_u.npy"]
    reseal(tmp_path)
    assert_refused(tmp_path, words)


def test_continuous_codes_that_are_missing_are_missed(tmp_path):
    save_codes(tmp_path, continuous("q", 3), continuous("d", 7), {})
    (tmp_path / "database_u.npy").unlink()
    assert_refused(tmp_path, "database_u.npy does not exist")
    assert open_side(tmp_path).n == 7  # a search does not need them


@pytest.mark.parametrize("u", [np.zeros((3, 12)), np.zeros(36, np.float16), np.zeros((3, 11), np.float16)])
def test_continuous_codes_of_another_form_are_refused(u):
    bare = continuous("q", 3)
    with pytest.raises(ArtifactError, match=r"continuous codes .*must "):
        CodeSet(bare.packed, bare.bits, bare.labels, bare.ids, u)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_rounding_keeps_every_bit(values):
    u = np.array([[*values, -0.0, 0.0, -1e-45, 1e-45, -3e-8, -1e38, np.inf, -np.inf]], np.float32)
    half = rounded(u)
    assert half.dtype == np.float16
    assert np.isfinite(half).all()
    assert np.array_equal(half >= 0, binarize(u))
    inside = np.abs(u) < 65504
    assert half[inside] == pytest.approx(u[inside], rel=2**-11, abs=2**-24)
    assert (np.abs(half[~inside]) == 65504).all()


def test_files_can_be_read_without_this_package(tmp_path):
    query, _ = save(tmp_path)
    raw = np.load(tmp_path / "query.npy")
    assert raw.dtype.str == "|u1"
    np.testing.assert_array_equal(raw, query.packed)
    assert (tmp_path / "query_ids.txt").read_text().splitlines() == query.ids


@pytest.mark.parametrize(("queries", "classes"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_is_saved_and_loaded_too(tmp_path, queries, classes):
    query, database = code_set("q", queries, classes=classes), code_set("d", 2, classes=classes)
    save_codes(tmp_path, query, database, {})
    assert same(load_codes(tmp_path)[0], query)


def test_ids_may_hold_anything_but_line_breaks(tmp_path):
    ids = ["a b", "c\u2028d", "e\x0bf\x85", " ", "\ufeffg", "ü/é.png", "\x00"]
    database = code_set("d", 7)
    database = CodeSet(database.packed, database.bits, database.labels, ids)
    save_codes(tmp_path, code_set("q", 1), database, {})
    assert load_codes(tmp_path)[1].ids == ids


def test_strided_and_fortran_arrays_are_saved_in_c_order(tmp_path):
    database = code_set("d", 7, bits=24)
    database = CodeSet(np.asfortranarray(database.packed), 24, database.labels[:, ::-1], database.ids)
    save_codes(tmp_path, code_set("q", 1, bits=24), database, {})
    assert same(load_codes(tmp_path)[1], database)


def test_saving_again_replaces(tmp_path):
    save(tmp_path, bits=48)
    query, _, _ = load_codes(tmp_path)
    before = query.packed.copy()
    save(tmp_path, bits=12)
    assert load_codes(tmp_path)[0].bits == 12
    np.testing.assert_array_equal(query.packed, before)  # a reader keeps the file that it opened before


def test_a_crash_between_files_leaves_an_incomplete_folder(tmp_path, monkeypatch):
    save(tmp_path)

    def crash(path):
        raise OSError("power cut")

    monkeypatch.setattr("deephash_cli.retrieval.codes_folder.sha256_file", crash)
    with pytest.raises(OSError, match="power cut"):
        save(tmp_path, bits=24)
    assert_refused(tmp_path, f"{tmp_path} has no manifest.json: the codes are incomplete or this is not a codes folder")


def test_provenance_is_checked_before_anything_is_written(tmp_path):
    query, database = save(tmp_path)
    for provenance in ({"bits": 13}, {"loss": float("nan")}, {"path": tmp_path}):
        with pytest.raises(ValueError, match="provenance must"):
            save_codes(tmp_path, query, database, provenance)
    assert same(load_codes(tmp_path)[0], query)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="could not write"):
        save(tmp_path / "file" / "codes")


# Damage.


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "codes")
    return tmp_path / "codes"


def test_not_a_codes_folder(tmp_path):
    assert_refused(tmp_path, "has no manifest.json")
    assert_refused(tmp_path / "absent", "has no manifest.json")
    (tmp_path / "file").write_text("")
    assert_refused(tmp_path / "file", "has no manifest.json")
    (tmp_path / "manifest.json").mkdir()
    assert_refused(tmp_path, "has no manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(folder, name):
    (folder / name).unlink()
    assert_refused(folder, name)


@pytest.mark.parametrize("name", FILES[:-1])
def test_something_else_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_refused(folder, name, "not a plain file")
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    assert_refused(folder, name, "not a plain file")
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)
    assert_refused(folder, name)


@pytest.mark.parametrize("name", FILES[:-1])
def test_every_truncation_and_trailing_byte(folder, name):
    content = (folder / name).read_bytes()
    for damaged in (b"", content[:1], content[: len(content) // 2], content[:-1], content + b"\0", content + content):
        (folder / name).write_bytes(damaged)
        assert_refused(folder, name, "bytes")
        reseal(folder)
        assert_refused(folder)
        (folder / name).write_bytes(content)
        reseal(folder)
    load_codes(folder)


@pytest.mark.parametrize("name", FILES[:-1])
def test_every_flipped_bit(folder, name):
    content = bytearray((folder / name).read_bytes())
    for position in range(0, 8 * len(content), 7):
        content[position // 8] ^= 1 << position % 8
        (folder / name).write_bytes(content)
        assert_refused(folder, name, "does not match its SHA-256")
        content[position // 8] ^= 1 << position % 8


@pytest.mark.parametrize("side", ["query", "database"])
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda a: a.astype(np.float32), "|u1"),
        (lambda a: a.astype(np.int8), "|u1"),
        (lambda a: a.astype(">u2"), "|u1"),
        (lambda a: a.astype(">u4"), "|u1"),
        (lambda a: a.astype(np.bool_), "|u1"),
        (lambda a: a.view("V1"), "|u1"),
        (lambda a: a.view([("x", "u1")]), "|u1"),
        (lambda a: a.astype(object), "|u1"),
        (lambda a: np.asfortranarray(a), "C order"),
        (lambda a: a[:-1], "shape"),
        (lambda a: a[:, :-1], "shape"),
        (lambda a: np.concatenate([a, a]), "shape"),
        (lambda a: a.ravel(), "shape"),
        (lambda a: a[None], "shape"),
        (lambda a: a[0, 0], "shape"),
    ],
)
def test_other_arrays_under_a_matching_manifest(folder, side, make, word):
    for name in (f"{side}.npy", f"{side}_labels.npy"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(npy(make(np.load(folder / name))))
        reseal(folder)
        assert_refused(folder, name, word)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (8796093022208, 2), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (18446744073709551619, 2), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-7, 2), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (7L, 2), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': 'x', }",
        "{'descr': '|u1', 'fortran_order': 0, 'shape': (7, 2), }",
        "{'descr': 'x', 'fortran_order': False, 'shape': (7, 2), }",
        "{'descr': ',,,', 'fortran_order': False, 'shape': (7, 2), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (7, 2), }",
        "{'descr': '|u1', 'shape': (7, 2), }",
        "[" * 3000,
        "(" * 120,
        "not a dictionary",
        "{" + " " * 20000 + "}",
        "\x00\x00",
        "",
    ],
)
def test_headers_that_lie(folder, header):
    header += "\n"
    for version in (b"\x01\x00", b"\x02\x00", b"\x09\x09"):
        length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
        (folder / "database.npy").write_bytes(b"\x93NUMPY" + version + length + header.encode() + b"\0" * 14)
        reseal(folder)
        assert_refused(folder, "database.npy")
    (folder / "database.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff" + header.encode())
    reseal(folder)
    assert_refused(folder, "database.npy")


def test_a_lie_that_the_manifest_repeats_maps_nothing(folder):
    rows = 2**42
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, 2), }}\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 14
    (folder / "database.npy").write_bytes(content)
    reseal(folder, database={"count": rows, "classes": 3})
    assert_refused(folder, "database.npy", "bytes, expected")


def test_pickles_are_never_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (folder / "query.npy").write_bytes(npy(np.array([[Trap()] * 2] * 3, dtype=object)))
    reseal(folder)
    assert_refused(folder, "query.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"a\nb\nc", "must have 3 complete lines, one for each code, got 2"),
        (b"a\nb\n", "must have 3 complete lines, one for each code, got 2"),
        (b"a\nb\nc\nd\n", "got 4"),
        (b"a\nb\na\n", "ids must be unique, got 'a' twice"),
        (b"a\n\nb\n", "not empty"),
        (b"a\r\nb\r\nc\r\n", "line break"),
        (b"a\nb\n\xff\n", "not UTF-8 text: invalid start byte in line 3"),
        (b"a\n\xc3\n\xa9\n", "not UTF-8 text: invalid continuation byte in line 2"),
        (b"", "got 0"),
    ],
)
def test_ids_under_a_matching_manifest(folder, content, word):
    (folder / "query_ids.txt").write_bytes(content)
    reseal(folder)
    assert_refused_alike(folder, str(folder), "query", word)


def test_padding_bits_and_labels_under_a_matching_manifest(folder):
    for name, value, word in (("query.npy", 0x80, "padding"), ("query_labels.npy", 2, "labels must be 0 or 1")):
        content = bytearray((folder / name).read_bytes())
        content[-1] |= value
        (folder / name).write_bytes(content)
        reseal(folder)
        assert_refused_alike(folder, "query side", word)
        content[-1] &= ~value & 0xFF
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": 2}, "written by a newer deephash"),
        ({"format": 0}, "has format 0, expected 1"),
        ({"format": "1"}, "no format number"),
        ({"format": True}, "no format number"),
        ({"format": None}, "no format number"),
        ({"bits": 0}, "bits between"),
        ({"bits": 10**9}, "bits between"),
        ({"bits": 12.0}, "bits between"),
        ({"bits": "12"}, "bits between"),
        ({"bits": 20}, "query.npy has shape (3, 2)"),
        ({"bits": 11}, "padding"),
        ({"bit_order": "big"}, "bit_order"),
        ({"bit_order": ["little" * 1000]}, "bit_order"),
        ({"query": {"count": 4, "classes": 3}}, "query.npy has shape (3, 2)"),
        ({"query": {"count": -3, "classes": 3}}, "count and classes of the query"),
        ({"query": {"count": 3}}, "count and classes of the query"),
        ({"database": {"count": 7, "classes": 4}}, "database_labels.npy has shape (7, 3)"),
        ({"database": [7, 3]}, "count and classes of the database"),
        ({"files": []}, "bytes and sha256 of query.npy"),
        ({"files": {}}, "bytes and sha256 of query.npy"),
        ({"files": {"../query.npy": {"bytes": 1, "sha256": ""}}}, "bytes and sha256 of query.npy"),
        ({"files": {"query.npy": {"bytes": "134", "sha256": ""}}}, "bytes and sha256 of query.npy"),
        ({"files": {"query.npy": {"bytes": 134, "sha256": 5}}}, "bytes and sha256 of query.npy"),
    ],
)
def test_manifests_that_lie(folder, changes, word):
    reseal(folder, **changes)
    assert_refused(folder, word)


def test_sides_with_different_classes_are_refused_on_loading(folder):
    (folder / "query_labels.npy").write_bytes(npy(np.zeros((3, 5), np.uint8)))
    reseal(folder, query={"count": 3, "classes": 5})
    assert_refused(folder, "5 classes")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"1", b"null", b"\xff\xfe", b'"' + b"x" * 10, b"[" * 100_000, b"1" * 10_000, b" " * (2**20 + 1)],
)
def test_manifests_that_are_none(folder, content):
    (folder / "manifest.json").write_bytes(content)
    assert_refused(folder, "manifest.json")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_refused_or_harmless(tmp_path, data):
    original, damaged = tmp_path / "original", tmp_path / "damaged"
    if not original.exists():
        save(original)
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(original, damaged)
    sealed = data.draw(st.booleans(), label="manifest repaired afterwards")
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(FILES[:-1] if sealed else FILES))
        content = bytearray((damaged / name).read_bytes())
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 8)))
        content[start:stop] = data.draw(st.binary(max_size=8))
        (damaged / name).write_bytes(content)
    if sealed:
        reseal(damaged)
    try:
        query, database, _ = load_codes(damaged)
    except ArtifactError:
        return
    # With the digests repaired, other codes that are valid in themselves cannot be told from the original.
    if not sealed:
        expected_query, expected_database, _ = load_codes(original)
        assert same(query, expected_query)
        assert same(database, expected_database)


# Every entry of a manifest means what it meant, or is refused in one sentence.


MANIFEST = {
    "provenance": {
        "method": "m",
        "module": {"a": 1},
        "model": "m",
        "dataset": "d",
        "split": {"name": "s", "sha256": "0"},
        "seed": 0,
        "class_names": ["a", "b", "c"],
        "checkpoint": {"file": "f", "sha256": "0"},
    },
    "evaluation": {"ks": [1], "map_at": [2], "radius": 2, "zero_hits": "zero"},
    "source": {"root": "r"},
    "skipped": 0,
}
WRONG = [None, [], [1, "a"], "x", -1, 10**40, True, 1.5, {}, ["a", "a", "b"], ["a", "b"], [0], "\x00"]


def entries(node, above=()):
    """Yield the keys that lead to each entry of a manifest."""
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from entries(value, (*above, key))


def test_every_entry_of_a_manifest_is_understood_or_refused(tmp_path):
    query, database = (code_set(name, 5) for name in ("query", "database"))
    save_codes(tmp_path, query, database, MANIFEST)
    path = tmp_path / "manifest.json"
    whole = read_sealed(path)
    numbers = {name: value for name, value in score(tmp_path, {}).items() if name not in MANIFEST["provenance"]}
    refusals = []
    for keys in entries(whole):
        for value in (..., *WRONG):
            manifest = json.loads(json.dumps(whole))
            inner = manifest
            for key in keys[:-1]:
                inner = inner[key]
            if value is ...:
                del inner[keys[-1]]
            else:
                inner[keys[-1]] = value
            path.write_text(json.dumps(manifest))
            try:
                found = score(tmp_path, {})
            except ArtifactError as error:
                refusals.append(str(error))
            else:
                # Other settings are allowed to give other numbers; nothing else is.
                assert keys[0] == "evaluation" or numbers.items() <= found.items(), (keys, value)
    assert len(refusals) > 200
    assert not [message for message in refusals if "\n" in message or "manifest.json" not in message]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"seed": NaN', "NaN is not a finite number"),
        ('"seed": -Infinity', "-Infinity is not a finite number"),
        ('"seed": 1e999', "1e999 is not a finite number"),
        ('"seed": 0, "seed": 1', "the key 'seed' occurs twice"),
        ('"model": "\\ud800"', "surrogates not allowed"),
        ('"seed": ' + "9" * 5000, "Exceeds the limit"),
    ],
)
def test_a_manifest_that_readers_of_json_understand_differently(tmp_path, text, reason):
    save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"bits"', f'"provenance": {{{text}}}, "bits"'))
    assert_refused(tmp_path, "manifest.json is not valid JSON", reason)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "b"], ["a", "b", 3], "abc", None])
def test_class_names_must_fit_the_label_columns(tmp_path, names):
    query, database = (code_set(name, 5) for name in ("query", "database"))
    save_codes(tmp_path, query, database, {"provenance": {"class_names": names}})
    assert_refused(tmp_path, "manifest.json must give")
    with pytest.raises(ArtifactError, match=r"manifest\.json must give"):
        open_side(tmp_path)


def test_a_manifest_cannot_replace_metrics(tmp_path):
    query, database = (code_set(name, 5) for name in ("query", "database"))
    save_codes(tmp_path, query, database, {**MANIFEST, "provenance": {**MANIFEST["provenance"], "map": 1.0}})
    with pytest.raises(ArtifactError, match="only the origin of the codes under provenance, got metrics: map"):
        score(tmp_path, {})

"""Compare the indexes of faiss with exact search and loops: results, their order, and the index files."""

import contextlib
import json
import shutil

import digests
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import SETTINGS, codes, twin

from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.files import read_json, read_sealed, sha256_file
from deephash_cli.retrieval import indexes, ranking
from deephash_cli.retrieval.codes import CodeSet
from deephash_cli.retrieval.codes_folder import open_side, save_database

FAISS = ("flat", "ivf", "hnsw", "multihash")


def database(folder, packed, bits):
    """The database side of a codes folder."""
    labels = np.zeros((len(packed), 0), np.uint8)
    save_database(folder, CodeSet(packed, bits, labels, [str(i) for i in range(len(packed))]), {})
    return open_side(folder)


def built(kind, packed, bits, **changes):
    return indexes.build(kind, packed, bits, {**SETTINGS.get(kind, {}), **changes})


def assert_ordered(distances, positions):
    for row in zip(distances.tolist(), positions.tolist(), strict=True):
        pairs = [pair for pair in zip(*row, strict=True) if pair != (indexes.MISSING, indexes.MISSING)]
        assert pairs == sorted(set(pairs))
        assert all(position >= 0 for _, position in pairs)
        assert all(position == indexes.MISSING for position in row[1][len(pairs) :])


# What is found


@pytest.mark.parametrize("bits", [12, 36, 48, 64, 100])
def test_a_flat_index_from_a_file_finds_what_the_exact_search_finds(tmp_path, bits):
    side = database(tmp_path / "codes", codes(700, bits), bits)
    queries = codes(30, bits, seed=1)
    indexes.save(indexes.build("flat", side.packed, bits, {}), tmp_path / "flat.faiss", side)
    opened = indexes.load(tmp_path / "flat.faiss", side)
    assert (opened.kind, opened.bits, opened.n) == ("flat", bits, 700)
    exact = indexes.Exact(side.packed, bits)
    for k in (1, 10, 700, 5000):
        for ours, theirs in zip(exact.nearest(queries, k), opened.nearest(queries, k), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for radius in (0, 3, bits, 10**12):
        for one, other in zip(exact.within(queries, radius), opened.within(queries, radius), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("k", [1, 9, 60, 300, 1500])
def test_of_equally_near_items_a_flat_index_keeps_the_first(monkeypatch, k, threads):
    """faiss does not promise this. If a version behaves differently, ``Faiss.nearest`` must be changed."""
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    for bits in (3, 6, 20):
        packed, queries = codes(3000, bits, seed=k), codes(70, bits, seed=k + 1)
        ours = indexes.Exact(packed, bits).nearest(queries, k)
        theirs = indexes.build("flat", packed, bits, {}).nearest(queries, k)
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 5, 8, 12, 64, 65]), st.integers(0, 70), st.integers(0, 40))
def test_the_radius_is_inclusive(seed, bits, radius, n):
    packed, queries = codes(n, bits, seed, centres=2), codes(4, bits, seed + 1, centres=2)
    slow = [[pair for pair in row if pair[0] <= radius] for row in twin(queries, packed, bits)]
    for index in (indexes.Exact(packed, bits), *([indexes.build("flat", packed, bits, {})] if n else [])):
        found = [list(zip(*(side.tolist() for side in sides), strict=True)) for sides in index.within(queries, radius)]
        assert found == slow


@pytest.mark.parametrize(
    ("kind", "changes", "radius"),
    [("ivf", {}, 9), ("ivf", {"lists": None}, 9), ("multihash", {}, 5), ("multihash", {"flips": 4}, 14)],
)
def test_an_index_that_looks_everywhere_finds_everything_within_the_radius(kind, changes, radius):
    """Items in all lists (ivf), or in buckets with at most ``flips`` wrong bits in one part of the code (multihash)."""
    packed, queries = codes(150, 12), codes(6, 12, seed=1)
    index = built(kind, packed, 12, **changes)
    if kind == "ivf":
        index.inner.nprobe = index.inner.nlist
    slow = [[pair for pair in row if pair[0] <= radius] for row in twin(queries, packed, 12)]
    assert sum(map(len, slow)) > 50
    found = [list(zip(*(side.tolist() for side in sides), strict=True)) for sides in index.within(queries, radius)]
    assert found == slow


@pytest.mark.parametrize("bits", [12, 48, 64])
@pytest.mark.parametrize("kind", FAISS)
def test_results_are_in_order_with_their_true_distances(kind, bits):
    packed, queries = codes(400, bits), codes(20, bits, seed=1)
    distances, positions = built(kind, packed, bits).nearest(queries, 30)
    assert distances.shape == positions.shape == (20, 30)
    assert_ordered(distances, positions)
    for *row, items in zip(distances.tolist(), positions.tolist(), twin(queries, packed, bits), strict=True):
        assert {pair for pair in zip(*row, strict=True) if pair[1] >= 0} <= set(items)
    exact = indexes.Exact(packed, bits).nearest(queries, 30)[0]
    assert ((distances <= exact[:, -1:]) & (positions >= 0)).mean() > 0.9


@pytest.mark.parametrize(("kind", "changes"), [("multihash", {"flips": 0, "hash_bits": 12}), ("ivf", {"probes": 1})])
def test_what_is_not_found_is_missing_and_not_the_last_item(kind, changes):
    packed, queries = codes(60, 12), codes(5, 12, seed=1)
    queries[0] = ~packed.max(axis=0) & np.array([255, 15], np.uint8)  # unlike any code in the database
    distances, positions = built(kind, packed, 12, **changes).nearest(queries, 60)
    missing = positions == indexes.MISSING
    assert missing[0].any()
    np.testing.assert_array_equal(missing, distances == indexes.MISSING)
    assert_ordered(distances, positions)


@pytest.mark.parametrize("bits", [12, 48, 64, 100])
def test_the_exact_search_is_that_of_ranking(bits):
    packed, queries = codes(300, bits), codes(20, bits, seed=1)
    exact = indexes.Exact(packed, bits)
    np.testing.assert_array_equal(exact.nearest(queries, 9), ranking.nearest(queries, packed, bits, 9))
    for one, other in zip(exact.within(queries, 5), ranking.within(queries, packed, bits, 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_codes_of_whole_words_are_not_copied():
    packed = codes(50, 64)
    assert np.shares_memory(indexes.Exact(packed, 64)._codes, packed)


def test_no_queries():
    packed = codes(50, 12)
    for index in (indexes.Exact(packed, 12), *(built(kind, packed, 12) for kind in FAISS)):
        assert [side.shape for side in index.nearest(packed[:0], 3)] == [(0, 3)] * 2
        if indexes.has_radius(index.kind):
            assert list(index.within(packed[:0], 3)) == []


def test_the_centres_of_an_ivf_index_come_from_its_seed(tmp_path):
    packed = codes(500, 36)
    side = database(tmp_path / "codes", packed, 36)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        indexes.save(built("ivf", packed, 36, seed=seed), tmp_path / f"{name}.faiss", side)
    a, b, c = (sha256_file(tmp_path / f"{name}.faiss") for name in "abc")
    assert a == b != c


def test_numbers_that_settings_leave_open():
    packed = codes(400, 36)
    assert built("ivf", packed, 36, lists=None, probes=16).settings["lists"] == 80
    assert built("ivf", packed[:3], 36, lists=None, probes=16).settings["probes"] == 3
    for settings_, expected in (
        ({"hashes": None, "hash_bits": None}, (4, 9)),  # 2^9 buckets for 400 items
        ({"hashes": 6, "hash_bits": None}, (6, 6)),
        ({"hashes": None, "hash_bits": 16}, (2, 16)),
    ):
        used = built("multihash", packed, 36, **settings_).settings
        assert (used["hashes"], used["hash_bits"]) == expected
    assert built("multihash", packed[:1], 36, hashes=None, hash_bits=None, flips=4).settings["flips"] == 1


# What is refused


def test_an_hnsw_index_has_no_radius():
    packed = codes(50, 12)
    with pytest.raises(ConfigError, match=r"kind hnsw finds the nearest items only.*use exact, flat, ivf, multihash$"):
        built("hnsw", packed, 12).within(packed, 2)


def test_settings_that_do_not_suit_the_codes():
    packed = codes(50, 12)
    with pytest.raises(ConfigError, match=r"ivf.lists must be at most the number of codes, 50, got 51"):
        built("ivf", packed, 12, lists=51)
    with pytest.raises(ConfigError, match="must be at most the 12 bits of a code, got 4 times 4"):
        built("multihash", packed, 12, hashes=4)
    for kind in FAISS:
        with pytest.raises(ConfigError, match=f"kind {kind} needs codes, got a database without any: use exact"):
            built(kind, packed[:0], 12)


def test_codes_that_do_not_fit():
    packed = codes(50, 12)
    flat = built("flat", packed, 12)
    for index in (indexes.Exact(packed, 12), flat):
        for search in (index.nearest, index.within):
            with pytest.raises(ValueError, match="padding bits of the query codes must be zero"):
                search(packed | 128, 3)
        with pytest.raises(ValueError, match=r"k must be .*got 0"):
            index.nearest(packed, 0)
        with pytest.raises(ValueError, match="radius must be at least 0, got -1"):
            index.within(packed, -1)
    for search in (flat.nearest, flat.within, indexes.Exact(packed, 12).nearest, indexes.Exact(packed, 12).within):
        with pytest.raises(ValueError, match="codes of 12 bits take 2 bytes a row, got 3"):
            search(np.zeros((2, 3), np.uint8), 3)
    for make in (indexes.Exact, lambda *codes: built("flat", *codes)):
        with pytest.raises(ValueError, match="padding bits of the database codes"):
            make(packed | 128, 12)


def test_without_faiss_the_exact_search_works_and_the_others_say_what_to_install(uninstall, tmp_path):
    side = database(tmp_path / "codes", codes(50, 12), 12)
    uninstall("faiss")
    assert indexes.open_or_build("exact", side, SETTINGS).nearest(side.packed[:2], 3)[0].shape == (2, 3)
    for kind in FAISS:
        with pytest.raises(ConfigError, match=r"needs faiss: pip install 'deephash\[faiss\]'$"):
            indexes.open_or_build(kind, side, SETTINGS)


# Files


@pytest.fixture
def saved(tmp_path):
    """An index file and the codes that it was built from."""
    side = database(tmp_path / "codes", codes(200, 36), 36)
    path = tmp_path / "ivf.faiss"
    indexes.save(built("ivf", side.packed, 36), path, side)
    return path, side


def edit(path, **changes):
    record = path.with_name(f"{path.name}.json")
    digests.put(record, {**read_sealed(record), **changes})


@pytest.mark.parametrize("kind", FAISS)
def test_a_file_gives_the_same_index_again(tmp_path, kind):
    side = database(tmp_path / "codes", codes(200, 36), 36)
    index, queries = built(kind, side.packed, 36), codes(20, 36, seed=1)
    path = tmp_path / "an index.faiss"
    indexes.save(index, path, side)
    again = indexes.open_or_build(str(path), side, {})
    np.testing.assert_array_equal(index.nearest(queries, 7), again.nearest(queries, 7))
    assert again.settings == index.settings
    assert read_json(tmp_path / "an index.faiss.json")["kind"] == kind
    assert sorted(file.name for file in tmp_path.iterdir()) == ["an index.faiss", "an index.faiss.json", "codes"]


def test_a_word_builds_an_index_and_anything_else_is_a_file(saved):
    side = saved[1]
    for kind in indexes.KINDS:
        assert indexes.open_or_build(kind, side, SETTINGS).kind == kind
    with pytest.raises(ConfigError, match=r"got 'hnws', which does not exist; did you mean 'hnsw'\?"):
        indexes.open_or_build("hnws", side, SETTINGS)


def test_a_damaged_file_never_reaches_faiss(saved, monkeypatch):
    import faiss

    path, side = saved
    content = path.read_bytes()
    monkeypatch.setattr(faiss, "read_index_binary", lambda _: pytest.fail("faiss was given a damaged file"))
    for damaged in (content[:-1], content + b"\0", content[:50] + bytes([content[50] ^ 1]) + content[51:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"does not match ivf.faiss.json: it was damaged or replaced"):
            indexes.load(path, side)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"could not read .*No such file"):
        indexes.load(path, side)


def test_an_index_of_other_codes(saved, tmp_path):
    path, side = saved
    for other in (codes(200, 36, seed=5), codes(201, 36)):
        with pytest.raises(
            ArtifactError, match=r"is an index of other codes \(200 codes of 36 bits\).* deephash index output="
        ):
            indexes.load(path, database(tmp_path / "other", other, 36))
    assert indexes.load(path, database(tmp_path / "same", side.packed, 36)).n == 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, but this deephash reads 1: build the index again"),
        ({"format": "1"}, "has no format number"),
        ({"kind": "pq"}, "must give kind, got something else"),
        ({"kind": ["ivf"], "bytes": True}, "must give kind, bytes, got something else"),
        ({"kind": "flat"}, "is not the index that ivf.faiss.json describes"),
        ({"settings": None}, "must give settings"),
    ],
)
def test_a_record_that_was_edited(saved, changes, message):
    path, side = saved
    edit(path, **changes)
    with pytest.raises(ArtifactError, match=message):
        indexes.load(path, side)


def test_records_that_are_none(saved):
    path, side = saved
    record = path.with_name("ivf.faiss.json")
    for content, message in (
        ("[]", "must be a JSON object"),
        ("{}", "has no format number"),
        ("{", "is not valid JSON"),
    ):
        record.write_text(content)
        with pytest.raises(ArtifactError, match=message):
            indexes.load(path, side)
    record.unlink()
    with pytest.raises(
        ArtifactError, match=r"has no ivf.faiss.json beside it: it is incomplete, or was not written by deephash index"
    ):
        indexes.open_or_build(str(path), side, {})


def test_what_faiss_cannot_read(saved):
    path, side = saved
    for content in (b"not an index of faiss", path.read_bytes()[:200]):
        path.write_bytes(content)
        edit(path, sha256=sha256_file(path), bytes=len(content))
        with pytest.raises(ArtifactError, match=r"cannot be read by faiss .*: build it again"):
            indexes.load(path, side)


def test_a_disk_that_is_full_leaves_the_old_index(saved, monkeypatch):
    path, side = saved
    before = path.read_bytes()
    original = indexes.atomic_write

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

    @contextlib.contextmanager
    def full(target):
        with original(target):
            yield Full()

    monkeypatch.setattr(indexes, "atomic_write", full)
    with pytest.raises(ArtifactError, match=r"could not write .*ivf.faiss: "):
        indexes.save(built("flat", side.packed, 36), path, side)
    assert path.read_bytes() == before
    assert indexes.load(path, side).kind == "ivf"


def test_a_moved_index_still_opens(saved, tmp_path):
    path, side = saved
    (tmp_path / "elsewhere").mkdir()
    for file in (path, path.with_name("ivf.faiss.json")):
        shutil.move(file, tmp_path / "elsewhere")
    assert indexes.load(tmp_path / "elsewhere" / "ivf.faiss", side).n == 200
    assert "tmp" not in json.dumps(read_json(tmp_path / "elsewhere" / "ivf.faiss.json"))

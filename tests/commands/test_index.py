"""``deephash index``: the file that it writes, and its measurements, checked against loops."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from searching import SETTINGS, codes, ranked, twin, with_continuous
from synthetic import write_run

from deephash_cli import runs
from deephash_cli.cli import arguments
from deephash_cli.commands import index as indexing
from deephash_cli.files import read_json
from deephash_cli.retrieval import codes_folder, indexes
from deephash_cli.retrieval.codes import CodeSet
from deephash_cli.retrieval.codes_folder import open_side, save_codes, save_database

BITS = 20


def code_set(packed, prefix):
    labels = np.zeros((len(packed), 2), np.uint8)
    return CodeSet(packed, BITS, labels, [f"{prefix}{i}" for i in range(len(packed))])


@pytest.fixture
def folder(tmp_path):
    """Write codes of queries and of a database."""
    save_codes(tmp_path / "codes", code_set(codes(40, BITS, 1), "q"), code_set(codes(300, BITS), "d"), {})
    return tmp_path / "codes"


@pytest.fixture
def shard(tmp_path):
    """Write codes of a database without queries."""
    save_database(tmp_path / "mine", code_set(codes(300, BITS), "d"), {})
    return tmp_path / "mine"


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "multihash"])
def test_an_index_of_each_kind(deephash, folder, kind):
    result = deephash("index", f"codes={folder}", f"kind={kind}", "output=it.faiss", "--check", "k=5", "radius=3")
    assert (result.code, result.err) == (0, ""), result
    opened = indexes.load(Path("it.faiss"), open_side(folder))
    assert opened.kind == kind
    measured = json.loads(Path("it.faiss.check.json").read_text())
    assert (measured["queries"], measured["queries_from"], measured["database"]) == (40, "query side", 300)
    assert measured["settings"] == opened.settings
    assert measured["bytes"] == Path("it.faiss").stat().st_size
    assert measured["sha256"] == read_json(Path("it.faiss.json"))["sha256"]
    assert measured["nearest"]["k"] == 5
    assert 0.9 < measured["nearest"]["recall"] <= 1
    assert (measured["within"] is None) == (kind == "hnsw")
    if kind == "flat":
        assert measured["nearest"]["recall"] == measured["within"]["recall"] == 1
    for part in (measured["nearest"], measured["within"] or measured["nearest"]):
        assert min(part["queries_per_second"], part["exact_queries_per_second"]) > 0
    assert f"{measured['nearest']['recall']:.4f}" in result.out
    assert ("hnsw has no search within a radius" in result.out) == (kind == "hnsw")


def test_of_a_run_beside_its_codes(deephash, folder, tmp_path):
    write_run(tmp_path / "run")
    folder = Path(shutil.move(folder, tmp_path / "run" / runs.CODES))
    result = deephash("index", f"run={tmp_path / 'run'}")
    assert result.code == 0, result
    assert indexes.load(folder / "ivf.faiss", open_side(folder)).n == 300
    assert not (folder / "ivf.faiss.check.json").exists()
    assert deephash("index", f"run={tmp_path / 'run'}", "check=true", "check_output=it.json").code == 0
    assert read_json(Path("it.json"))["kind"] == "ivf"


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("kind", "changes"), [("ivf", {"probes": 1}), ("multihash", {"flips": 0, "hash_bits": 10})])
def test_recall_against_loops(kind, changes, own):
    packed = codes(300, BITS)
    index = indexes.build(kind, packed, BITS, {**SETTINGS[kind], **changes})
    at = np.arange(0, 300, 11) if own else None
    queries = codes(25, BITS, 1) if at is None else packed[at]
    measured = indexing.compare(index, indexes.Exact(packed, BITS), queries, at, k=30, radius=4)

    hits, inside, all_inside = [], 0, 0
    distances, positions = index.nearest(queries, 31 if own else 30)
    for i, items in enumerate(twin(queries, packed, BITS)):
        others = [pair for pair in items if not own or pair[1] != at[i]]
        found = zip(distances[i].tolist(), positions[i].tolist(), strict=True)
        found = [pair for pair in found if pair[1] >= 0 and not (own and pair[1] == at[i])][:30]
        hits.append(sum(distance <= others[29][0] for distance, _ in found) / 30)
        all_inside += sum(distance <= 4 for distance, _ in others)
    for i, (_, near) in enumerate(index.within(queries, 4)):
        inside += sum(not own or position != at[i] for position in near.tolist())
    assert measured["nearest"]["recall"] == pytest.approx(np.mean(hits))
    assert measured["within"]["items"] == all_inside
    assert measured["within"]["recall"] == inside / all_inside
    assert measured["nearest"]["recall"] < 1


def test_rescoring_is_compared_with_exact_asymmetric_search(deephash, folder):
    query, database, _ = codes_folder.load_codes(folder)
    labels = [np.eye(2, dtype=np.uint8)[np.arange(side.n) // 3 % 2] for side in (query, database)]
    query, database = replace(with_continuous(query), labels=labels[0]), replace(database, labels=labels[1])
    save_codes(folder, query, database, {})
    arguments = ("index", f"codes={folder}", "kind=ivf", "ivf.probes=1", "output=it.faiss", "--check", "k=10")
    result = deephash(*arguments, "rescore=asymmetric", "shortlist=30")
    assert (result.code, result.err) == (0, ""), result
    measured = read_json(Path("it.faiss.check.json"))["rescored"]
    index = indexes.load(Path("it.faiss"), open_side(folder))
    expected = {"by_distance": [], "rescored": [], "exact": []}
    for i, u in enumerate(query.u.astype(float)):
        near = [at[0].tolist() for at in (index.nearest(query.packed[i : i + 1], k)[1] for k in (10, 30))]
        best = ranked(u, database.packed, 300)
        score = {j: score for score, _, j in best}
        found = {"by_distance": near[0], "rescored": [j for _, _, j in best if j in near[1]][:10]}
        for name, positions in (*found.items(), ("exact", [j for _, _, j in best[:10]])):
            hits = [int(j >= 0 and j // 3 % 2 == i // 3 % 2) for j in positions]
            precisions = [hit * sum(hits[: at + 1]) / (at + 1) for at, hit in enumerate(hits)]
            recall = sum(j >= 0 and score[j] >= best[9][0] for j in positions) / 10
            expected[name].append((recall, sum(hits) / 10, sum(precisions) / max(1, sum(hits))))
    for at, metric in enumerate(("recall", "precision_at_10", "map_at_10_stable")):
        for name, values in expected.items():
            assert measured[metric][name] == pytest.approx(np.mean([value[at] for value in values])), (metric, name)
    assert measured["recall"]["by_distance"] < measured["recall"]["rescored"] < measured["recall"]["exact"] == 1
    assert min(measured["queries_per_second"], measured["exact_queries_per_second"]) > 0
    assert "map_at_10_stable" in result.out


def test_rescoring_items_of_the_database_without_labels(deephash, shard):
    side = open_side(shard)
    plain = CodeSet(np.asarray(side.packed), BITS, np.zeros((300, 0), np.uint8), list(side.ids))
    save_database(shard, with_continuous(plain), {})
    arguments = ("index", f"codes={shard}", "kind=flat", "output=it.faiss", "--check", "queries=50")
    assert deephash(*arguments, "rescore=asymmetric", "shortlist=299", "k=1000").code == 2
    result = deephash(*arguments, "rescore=asymmetric", "shortlist=1000", "k=1000")
    assert result.code == 0, result
    measured = read_json(Path("it.faiss.check.json"))["rescored"]
    assert (measured["k"], measured["recall"]["rescored"], measured["precision_at_299"]) == (299, 1, None)


def test_without_queries_items_of_the_database_search_for_others(deephash, shard):
    arguments = ("index", f"codes={shard}", "kind=flat", "output=it.faiss", "--check", "queries=50", "k=299")
    result = deephash(*arguments)
    assert result.code == 0, result
    assert "queries: database, each left out of its own results; 1 thread" in result.out
    measured = read_json(Path("it.faiss.check.json"))
    assert (measured["queries"], measured["nearest"]["k"], measured["nearest"]["recall"]) == (50, 299, 1)
    deephash(*arguments, "k=1000", "seed=1")
    assert read_json(Path("it.faiss.check.json"))["nearest"]["k"] == 299


def test_nothing_lies_within_the_radius(deephash, tmp_path):
    packed = np.array([[0, 0, 0], [255, 255, 15]], np.uint8)
    save_database(tmp_path / "two", code_set(packed, "d"), {})
    result = deephash("index", f"codes={tmp_path / 'two'}", "kind=flat", "output=it.faiss", "--check")
    assert result.code == 0, result
    assert "no such items" in result.out
    assert read_json(Path("it.faiss.check.json"))["within"]["recall"] is None


REFUSED = {
    "no codes": (["kind=ivf"], 2, "deephash index needs run=<run folder> or codes=<folder of codes>, got neither"),
    "another kind": (["codes=codes", "kind=pq"], 2, "kind must be flat or hnsw or ivf or multihash, got pq"),
    "exact": (["codes=codes", "kind=exact"], 2, "kind must be flat or hnsw or ivf or multihash, got exact"),
    "another ending": (["codes=codes", "output=database.npy"], 2, "output must be a file that ends in .faiss"),
    "no such folder": (
        ["codes=codes", "output=no/it.faiss"],
        2,
        "output=no/it.faiss is in a folder that does not exist",
    ),
    "a report without a check": (["codes=codes", "check_output=it.json"], 2, "check_output= needs --check"),
    "another report": (["codes=codes", "check_output=it", "--check"], 2, "must be a file that ends in .json, got it"),
    "no such codes": (["codes=nothing"], 4, "nothing has no manifest.json"),
    "rescoring without a check": (["codes=codes", "rescore=asymmetric"], 2, "rescore= needs --check, which"),
    "no continuous codes": (
        ["codes=codes", "kind=flat", "--check", "rescore=asymmetric"],
        2,
        "needs the continuous codes of the queries, but codes has no database_u.npy",
    ),
    "a short shortlist": (
        ["codes=codes", "--check", "rescore=asymmetric", "shortlist=9"],
        2,
        "shortlist must be at least k, got",
    ),
    "k": (["codes=codes", "k=0"], 2, "k must be a whole number"),
    "probes": (["codes=codes", "ivf.probes=0"], 2, "ivf.probes must be a whole number"),
    "unknown": (["codes=codes", "ivf.probe=1"], 2, "unknown key 'ivf.probe'; did you mean 'ivf.probes'?"),
    "unknown option": (["codes=codes", "--chek"], 2, "--chek"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(deephash, name):
    arguments, code, message = REFUSED[name]
    save_database(Path("codes"), code_set(codes(5, BITS), "d"), {})
    before = sorted(Path().rglob("*"))
    result = deephash("index", *arguments)
    assert (result.code, result.err[:7], result.err.count("\n")) == (code, "error: ", 1), result
    assert message in result.err
    assert sorted(Path().rglob("*")) == before


def test_too_many_lists_and_a_database_of_one_code(deephash, folder, tmp_path):
    result = deephash("index", f"codes={folder}", "ivf.lists=301")
    assert (result.code, "ivf.lists must be at most the number of codes, 300, got 301" in result.err) == (2, True)
    save_database(tmp_path / "one", code_set(codes(1, BITS), "d"), {})
    result = deephash("index", f"codes={tmp_path / 'one'}", "kind=flat", "output=it.faiss", "--check")
    assert (result.code, "--check needs queries" in result.err) == (2, True)
    assert not Path("it.faiss").exists()


def test_check_is_an_option_of_index_only():
    assert arguments.normalize("--check", "index") == "check=true"
    assert arguments.normalize("check=true", "index") == "check=true"
    assert arguments.normalize("--check", "train") == "--check"

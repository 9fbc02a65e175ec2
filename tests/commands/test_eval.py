"""``deephash eval``: the same numbers from the codes on disk, without torch; damaged codes are refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import digests
import numpy as np
import pytest
from conftest import QUICK, write_photos

from deephash_cli import runs
from deephash_cli.cli import main as cli
from deephash_cli.files import read_sealed
from deephash_cli.retrieval import ceiling, similarity
from deephash_cli.retrieval.codes import CodeSet, pack, unpack
from deephash_cli.retrieval.codes_folder import load_codes, save_codes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a run that the tests share and must not change."""
    place = tmp_path_factory.mktemp("trained")
    photos = write_photos(place / "photos")
    folder = place / "run"
    command = ["dataset=image_folder", f"dataset.root={photos}", *QUICK, "bits=12", f"run_dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        assert cli.run(["train", *command]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """Copy the trained run for a test that changes it."""
    return Path(shutil.copytree(trained, tmp_path / "elsewhere" / "moved run"))


def test_the_numbers_are_those_of_the_training_to_the_last_digit(deephash, trained):
    result = deephash("eval", f"run={trained}", "output=again.json")
    assert result.code == 0, result
    assert Path("again.json").read_bytes() == (trained / runs.METRICS).read_bytes()
    metrics = json.loads(Path("again.json").read_text())
    for name in ("map", "map_stable", "empty_ball_rate"):
        assert repr(metrics[name]) in result.out
    assert f"{metrics['queries']} queries, {metrics['database']} database items" in result.out


def test_from_the_codes_alone(deephash, trained, tmp_path):
    shutil.copytree(trained / runs.CODES, tmp_path / "only codes")
    result = deephash("eval", f"codes='{tmp_path / 'only codes'}'", "output=again.json")
    assert result.code == 0, result
    assert Path("again.json").read_bytes() == (trained / runs.METRICS).read_bytes()


def test_a_run_that_was_moved(deephash, trained, run):
    shutil.rmtree(run / runs.CHECKPOINTS)
    result = deephash("eval", f"run='{run}'", "output=again.json")
    assert result.code == 0, result
    assert Path("again.json").read_bytes() == (trained / runs.METRICS).read_bytes()


def test_it_writes_nothing_unless_asked_to(deephash, trained):
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*")}
    assert deephash("eval", f"run={trained}").code == 0
    assert {file: file.stat().st_mtime_ns for file in trained.rglob("*")} == before
    assert list(Path().iterdir()) == []


def test_it_needs_no_torch(trained):
    code = f"""
import sys
from deephash_cli.cli import main as cli
code = cli.run(["eval", "run={trained}"])
print(code, sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "pytorch_lightning", "wandb", "timm"}}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert result.stdout.splitlines()[-1] == "0 []", result


def test_other_cut_offs(deephash, trained):
    result = deephash("eval", f"run={trained}", "output=m.json", "ks=[7,3,3]", "map_at=[10]", "radius=3")
    assert result.code == 0, result
    metrics = json.loads(Path("m.json").read_text())
    before = json.loads((trained / runs.METRICS).read_text())
    assert list(metrics["precision_at_k"]) == list(metrics["recall_at_k"]) == ["3", "7"]
    assert "map_at_10" in metrics
    assert "precision_within_3" in metrics
    assert "precision_within_2" not in metrics
    assert metrics["map"] == before["map"]
    assert metrics["pr_by_radius"] == before["pr_by_radius"]


def test_cut_offs_beyond_the_database_are_flagged(deephash, trained):
    assert deephash("eval", f"run={trained}", "output=m.json", "ks=[1,1000000000000]", "radius=0").code == 0
    metrics = json.loads(Path("m.json").read_text())
    assert metrics["k_beyond_database"] == [1000000000000]
    assert metrics["recall_at_k"]["1000000000000"] == pytest.approx(1)


@pytest.mark.parametrize(
    "file", ["query.npy", "query_labels.npy", "query_ids.txt", "database.npy", "query_u.npy", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damaged_codes_give_no_numbers(deephash, run, file, damage):
    path = run / runs.CODES / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        position = 5 if file == "manifest.json" else -3
        content[position] ^= 1
        path.write_bytes(content)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: -5 if damage == "cut" else 0])
    result = deephash("eval", f"run='{run}'", "output=m.json")
    assert result.code == 4, result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert file in result.err
    assert not Path("m.json").exists()


def ceiling_of(result, file="m.json"):
    assert result.code == 0, result
    return json.loads(Path(file).read_text())["ceiling"]


def test_the_map_of_the_features_comes_from_the_cache(deephash, hashed, monkeypatch):
    """ITQ on a frozen backbone: its features are in the cache of the run, and no longer in another one."""
    cache = hashed.run.parent / "cache"
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", str(cache))
    result = deephash("eval", f"run={hashed.run}", "output=m.json")
    found = ceiling_of(result)
    (file,) = (cache / "features").glob("*/features.npy")
    split = json.loads((hashed.run / "split.json").read_text())
    every = sorted(path.relative_to(hashed.photos).as_posix() for path in hashed.photos.glob("*/*.jpg"))
    features, rows = np.load(file), [[every.index(name) for name in split[side]] for side in ("query", "database")]
    query, database, _ = load_codes(hashed.run / runs.CODES)
    expected = ceiling.average_precision(
        features[rows[0]], features[rows[1]].__getitem__, query.labels, database.labels, np.full(query.n, -1)
    )
    assert found["map_features"] == expected.mean()
    assert f"{found['map_features']:.4f}" in result.out
    trained = json.loads((hashed.run / runs.METRICS).read_text())["ceiling"]
    assert {name: value for name, value in found.items() if name != "map_features"} == trained

    monkeypatch.setenv("DEEPHASH_CACHE_DIR", "elsewhere")
    result = deephash("eval", f"codes={hashed.run / runs.CODES}", "output=m.json")
    assert ceiling_of(result) == {**trained, "map_features": None}
    assert "map_features is not known: the features are not in the cache" in result.out


@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"\x01", lambda content: content[:-2]])
def test_damaged_features_are_not_taken(deephash, hashed, monkeypatch, change):
    cache = Path(shutil.copytree(hashed.run.parent / "cache", "cache"))
    (file,) = (cache / "features").glob("*/features.npy")
    file.write_bytes(change(file.read_bytes()))
    monkeypatch.setenv("DEEPHASH_CACHE_DIR", "cache")
    assert ceiling_of(deephash("eval", f"run={hashed.run}", "output=m.json"))["map_features"] is None


@pytest.mark.parametrize("key", ["../../..", "x" * 32, ""])
def test_a_key_that_is_none_opens_no_file(deephash, hashed, key):
    folder = Path(shutil.copytree(hashed.run / runs.CODES, "codes"))
    manifest = read_sealed(folder / "manifest.json")
    digests.edit(folder / "manifest.json", provenance={**manifest["provenance"], "features": {"key": key}})
    assert ceiling_of(deephash("eval", "codes=codes", "output=m.json"))["map_features"] is None


@pytest.mark.parametrize("argument", ["run=nowhere", "codes=nowhere", "run=.", "codes=."])
def test_what_is_no_run_and_what_are_no_codes(deephash, argument):
    result = deephash("eval", argument)
    assert result.code == 4
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


def test_codes_of_unknown_origin_are_refused_in_one_sentence(deephash, tmp_path):
    """Other programs may write this format, but the manifest must say which method and data the codes belong to."""
    codes = CodeSet(pack(np.eye(4, 8, dtype=bool)), 8, np.eye(4, 2, dtype=np.uint8), list("abcd"))
    for provenance in ({}, {"provenance": None, "evaluation": []}, {"provenance": {"method": "x"}, "evaluation": "ks"}):
        save_codes(tmp_path / "codes", codes, codes, provenance)
        result = deephash("eval", f"codes={tmp_path / 'codes'}")
        assert result.code == 4
        assert "manifest.json must give" in result.err


@pytest.mark.parametrize(("kept", "typed", "left_out"), [
    (None, None, False), ("zero", None, False), ("skip", None, True), (None, "skip", True), ("skip", "zero", False),
])  # fmt: skip
def test_what_becomes_of_queries_without_a_relevant_item(deephash, tmp_path, kept, typed, left_out):
    """The command decides, otherwise the manifest; a manifest from before this setting existed does not have it."""
    write_codes(tmp_path / "codes", [[1, 0], [1, 0], [0, 1], [0, 1]], [[1, 0]] * 4, zero_hits=kept)
    arguments = [f"zero_hits={typed}"] if typed else []
    result = deephash("eval", f"codes={tmp_path / 'codes'}", "output=m.json", *arguments)
    assert result.code == 0, result
    metrics = json.loads(Path("m.json").read_text())
    assert metrics["queries_without_relevant"] == 2
    assert metrics["map"] == (1 if left_out else 0.5)
    assert f"2 queries: {metrics['policies']['zero_hits']}" in result.out
    assert "source" not in metrics


@pytest.mark.parametrize(("kept", "typed", "must_agree"), [
    (None, None, False), ("one", None, False), ("all", None, True), (None, "all", True), ("all", "one", False),
])  # fmt: skip
def test_what_counts_as_similar(deephash, tmp_path, kept, typed, must_agree):
    """The command decides, otherwise the manifest; a manifest from before this setting existed does not have it."""
    write_codes(tmp_path / "codes", [[1, 1], [1, 0], [0, 1], [0, 1]], [[1, 1], [1, 1], [1, 1], [0, 1]], similar=kept)
    arguments = [f"similar={typed}"] if typed else []
    result = deephash("eval", f"codes={tmp_path / 'codes'}", "output=m.json", "per_class=true", *arguments)
    assert result.code == 0, result
    metrics = json.loads(Path("m.json").read_text())
    assert metrics["queries_without_relevant"] == int(must_agree)
    assert metrics["policies"]["similar"] == similarity.SIMILAR["all" if must_agree else "one"]
    assert ("4 database items, all labels must agree" in result.out) == must_agree
    # The item in the row of a query has its code, and the other three are at distance 2.
    three = (1 + ((1 + 1) + (1 + 3 / 4) + (2 / 3 + 3 / 4)) / 3) / 3  # the nearest item and two of three are relevant
    last = (1 / 2 + 1 / 3 + 1 / 4) / 3  # one of the three is relevant
    by_rows = [three, 0, last, 1] if must_agree else [1, three, 1, 1]
    assert metrics["map"] == pytest.approx(np.mean(by_rows))
    lines = re.findall(r"│ (cat|dog) +│ +(\d) │ ([01]\.\d{4}) │", result.out)
    classes = {"cat": by_rows[:2], "dog": [by_rows[0], *by_rows[2:]]}
    expected = {name: (str(len(values)), f"{np.mean(values):.4f}") for name, values in classes.items()}
    assert {name: (count, value) for name, count, value in lines} == expected
    assert [float(value) for *_, value in lines] == sorted((float(value) for *_, value in lines), reverse=True)
    assert "mAP of each class: a query counts for each of its labels" in result.out


def write_codes(folder, query_labels, database_labels, **evaluation):
    """A codes folder of four queries, each with the code of one of four items. Settings that are None are left out."""
    sides = [
        CodeSet(pack(np.eye(4, 8, dtype=bool)), 8, np.array(labels, np.uint8), list(names))
        for labels, names in ((query_labels, "abcd"), (database_labels, "efgh"))
    ]
    facts = {
        "method": "m",
        "module": {},
        "model": "m",
        "dataset": "d",
        "split": {"name": "s", "sha256": "0"},
        "seed": 0,
        "class_names": ["cat", "dog"],
    }
    evaluation = {name: value for name, value in evaluation.items() if value is not None}
    evaluation = {"ks": [1], "map_at": [], "radius": 2, **evaluation}
    save_codes(folder, *sides, {"provenance": facts, "evaluation": evaluation})


@pytest.mark.parametrize(
    "change",
    [
        {"zero_hits": "ignore"},
        {"zero_hits": []},
        {"similar": "some"},
        {"similar": {}},
        {"ks": 5},
        {"ks": [0]},
        {"ks": [10**30]},
        {"map_at": ["1"]},
        {"radius": 1.5},
        {"radius": -1},
    ],
)
def test_a_manifest_that_was_edited(deephash, run, change):
    path = run / runs.CODES / "manifest.json"
    digests.edit(path, evaluation=read_sealed(path)["evaluation"] | change)
    digests.renew(run)
    result = deephash("eval", f"run='{run}'", "output=m.json")
    assert result.code == 4, result
    assert re.search(rf"manifest\.json must give [a-z0-9 ]+ as evaluation\.{next(iter(change))}, got ", result.err)
    assert result.err.count("\n") == 1
    assert not Path("m.json").exists()


def test_a_place_where_nothing_can_be_written(deephash, trained):
    result = deephash("eval", f"run={trained}", "output=nowhere/m.json")
    assert result.code == 2
    assert "output=nowhere/m.json is in a folder that does not exist" in result.err


def test_the_manifest_says_all_that_is_needed(trained):
    query, database, manifest = load_codes(trained / runs.CODES)
    assert (query.n, database.n, query.bits) == (6, 54, 12)
    assert manifest["provenance"]["method"] == "dpsh"
    split = json.loads((trained / runs.SPLIT).read_text())
    assert manifest["provenance"]["split"]["sha256"] == split["sha256"]
    assert query.ids == split["query"]
    assert database.ids == split["database"]


def test_the_first_bits_alone(deephash, trained, tmp_path):
    bits = json.loads((trained / runs.METRICS).read_text())["bits"]
    result = deephash("eval", f"run={trained}", "bits=5", "prefix=true", "output=first.json")
    assert result.code == 0
    assert f"the first 5 of the {bits} bits were not trained to be a code by themselves" in result.err
    query, database, _ = load_codes(trained / runs.CODES)
    first = json.loads(Path("first.json").read_text())
    cut = [pack(unpack(side.packed, bits)[:, :5]) for side in (query, database)]
    for name, array in zip(("query", "database"), cut, strict=True):
        np.save(f"{name}.npy", array)
        np.save(f"{name}_labels.npy", {"query": query, "database": database}[name].labels)
    files = [f"{name}={name}.npy" for name in ("query", "database", "query_labels", "database_labels")]
    assert deephash("eval", *files, "bits=5", "output=cut.json").code == 0
    assert json.loads(Path("cut.json").read_text())["map"] == first["map"]
    assert first["prefix_of"] == bits


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["prefix=true"], "prefix=true evaluates the first bits of longer codes: add their number"),
        (["prefix=true", "bits=999"], "a prefix must have 1 to"),
        (["bits=5"], "to evaluate the first bits alone add prefix=true"),
        (["prefix=true", "bits=5", "output={run}/metrics.json"], "is one of the files of the run folder"),
    ],
)
def test_first_bits_that_cannot_be_evaluated(deephash, trained, arguments, sentence):
    result = deephash("eval", f"run={trained}", *(text.format(run=trained) for text in arguments))
    assert result.code == 2
    assert sentence in result.err
    assert result.err.count("\n") == 1

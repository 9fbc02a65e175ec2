"""Unseen classes, long tails and few labels: what is left to train on, what is recorded, and what a run makes of it."""

import dataclasses
import json
from pathlib import Path

import fitting
import numpy as np
import pytest
import yaml
from conftest import sampled

from deephash_cli import runs
from deephash_cli.data import trial
from deephash_cli.data.changes import Changes, in_words, is_record
from deephash_cli.data.dataset import RetrievalDataset, Vectors
from deephash_cli.data.fashion_mnist import fashion_mini
from deephash_cli.data.protocol import hold_out_validation, load_split, make_split, save_split
from deephash_cli.data.training_part import reduce_training
from deephash_cli.errors import ArtifactError, ConfigError, DataError
from deephash_cli.runs import listing, results
from deephash_cli.training import resuming


@pytest.fixture(scope="module")
def mini():
    return fashion_mini()


def made(labels, official=None):
    labels = np.asarray(labels, np.uint8)
    names = [f"c{column}" for column in range(labels.shape[1])]
    parts = {role: np.array(rows) for role, rows in official.items()} if official else None
    images = Vectors(np.zeros((len(labels), 2), np.float32))
    return RetrievalDataset("made", [f"i{row}" for row in range(len(labels))], labels, names, images, parts)


def of_sizes(*sizes):
    """Classes of these sizes, with one more image of each as query."""
    numbers = np.repeat(np.arange(len(sizes)), np.array(sizes) + 1)
    query = np.flatnonzero(np.diff(numbers, prepend=-1))
    train = np.setdiff1d(np.arange(len(numbers)), query)
    return made(np.eye(len(sizes))[numbers], {"query": query, "train": train})


def several(rows=400, classes=8, seed=0):
    return made(np.random.default_rng(seed).random((rows, classes)) < np.linspace(0.05, 0.3, classes))


def reduced(dataset, protocol="s1", seed=0, **changes):
    split = make_split(protocol, dataset, seed)
    return split, reduce_training(split, dataset, Changes.of(changes), seed)


def counts(dataset, rows):
    return dataset.labels[rows].sum(axis=0).tolist()


# Unseen classes


@pytest.mark.parametrize(("share", "count"), [(0.25, 3), (0.01, 1), (0.5, 5), (0.99, 9)])
def test_a_share_of_the_classes_has_no_training_image(mini, share, count):
    split, new = reduced(mini, unseen=share)
    names = new.changes["unseen"]["classes"]
    assert len(names) == count
    assert sorted(names, key=mini.class_names.index) == names
    assert counts(mini, new.train) == [0 if name in names else 500 for name in mini.class_names]
    assert np.array_equal(new.query, split.query)
    assert np.array_equal(new.database, split.database)
    assert new.sha256 != split.sha256
    assert (new.name, new.version, new.seed) == ("s1", 1, 0)


def test_the_seed_of_the_split_draws_the_classes(mini):
    draws = [reduced(mini, seed=seed, unseen=0.25)[1].changes["unseen"]["classes"] for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len({tuple(names) for names in draws}) == 3
    assert draws[0] == ["T-shirt/top", "Trouser", "Sandal"]  # this pins today's draw, so that runs stay comparable


def test_named_classes_and_several_labels():
    data = several()
    split, new = reduced(data, "holdout", unseen=["c6", "c0"])
    assert new.changes == {"unseen": {"classes": ["c0", "c6"]}}
    kept = [row for row in split.train if not data.labels[row, 0] and not data.labels[row, 6]]
    assert new.train.tolist() == kept
    assert (~data.labels[new.train].any(axis=1)).any()  # an image without a label has no unseen one
    assert new == reduced(data, "holdout", unseen=["c0", "c6"])[1]


@pytest.mark.parametrize("unseen", ["cat", 1, 0, 1.0, -0.5, [], True, {"a": 1}])
def test_what_is_neither_a_share_nor_a_list(unseen):
    with pytest.raises(ConfigError, match=r"^dataset\.unseen must be a share of the classes between 0 and 1, such as"):
        Changes.of({"unseen": unseen})


@pytest.mark.parametrize(
    ("unseen", "sentence"),
    [
        (["c1", "x"], "dataset.unseen has x, which data set made does not have; its classes are c0, c1, c2"),
        (["c11"], "dataset.unseen has c11, which data set made does not have; did you mean 'c1'?"),
        (["c1", "c1"], "dataset.unseen must have each class once, got c1, c1"),
        (["c0", "c1", "c2"], "dataset.unseen has all 3 classes of made: leave one to train on"),
        (["c2"], "no query has one of the unseen classes c2: choose other classes for dataset.unseen"),
        (["c0", "c1"], "every training image has one of the unseen classes c0, c1: lower or shorten dataset.unseen"),
    ],
)
def test_classes_that_cannot_be_unseen(unseen, sentence):
    data = made(np.eye(3)[[0, 1, 0, 1]], {"query": [0, 1], "train": [2, 3]})
    with pytest.raises((ConfigError, DataError)) as caught:
        reduced(data, "official", unseen=unseen)
    assert str(caught.value).startswith(sentence)


def test_a_share_needs_two_classes_and_all_changes_need_labels():
    with pytest.raises(ConfigError, match=r"^dataset\.unseen=0.5 needs at least two classes, and made has one"):
        reduced(of_sizes(5), "official", unseen=0.5)
    with pytest.raises(ConfigError, match=r"^dataset\.labelled needs labels, and data set made has none: leave it out"):
        reduced(made(np.zeros((20, 0))), "holdout", labelled=5)


# Long tails


@pytest.mark.parametrize("factor", [1, 10, 100])
def test_a_long_tail_has_the_exponential_profile(mini, factor):
    _, new = reduced(mini, imbalance=factor)
    assert counts(mini, new.train) == [int(500 * factor ** (-c / 9) + 1e-9) for c in range(10)]
    assert new.changes == {"imbalance": factor}


def test_a_long_tail_of_classes_of_other_sizes_keeps_the_profile():
    # The second class has too few images for a profile that begins with 100
    for sizes, kept in (((100, 20, 50), [40, 20, 10]), ((8, 0, 8), [8, 0, 2])):
        data = of_sizes(*sizes)
        assert counts(data, reduced(data, "official", imbalance=4)[1].train) == kept


def test_what_cannot_have_a_long_tail():
    for data, factor, sentence in (
        (several(), 10, r"^dataset\.imbalance=10 needs images of one class each, but training images of made have sev"),
        (of_sizes(9), 10, r"^dataset\.imbalance=10 needs training images of at least two classes"),
        (of_sizes(9, 9), 10, r"leaves the class c1 without a training image, .* has 9: choose a factor of at most 9$"),
    ):
        with pytest.raises((ConfigError, DataError), match=sentence):
            reduced(data, "holdout" if data.official is None else "official", imbalance=factor)


# Few labels


def test_few_labels_are_drawn_evenly(mini):
    split, new = reduced(mini, labelled=205)
    assert sorted(counts(mini, new.train)) == [20] * 5 + [21] * 5
    assert np.isin(new.train, split.train).all()
    assert new.changes == {"labelled": 205}
    assert new == reduced(mini, labelled=205)[1]
    data = of_sizes(2, 30, 30)
    assert counts(data, reduced(data, "official", labelled=12)[1].train) == [2, 5, 5]


def test_few_labels_of_images_with_several():
    data = several()
    _, new = reduced(data, "holdout", labelled=60)
    assert len(new.train) == 60
    assert data.labels[new.train].any(axis=1).all()
    assert min(counts(data, new.train)) > 8


def test_more_labels_than_there_are():
    data = several()
    labelled = int(data.labels[make_split("holdout", data, 0).train].any(axis=1).sum())
    assert len(reduced(data, "holdout", labelled=labelled)[1].train) == labelled
    with pytest.raises(DataError, match=f"^dataset.labelled=999 is more than the {labelled} training images with a la"):
        reduced(data, "holdout", labelled=999)


# Together, in split files, in trials


ALL = {"unseen": 0.25, "imbalance": 10, "labelled": 300}


def test_all_three_together(mini):
    _, tail = reduced(mini, unseen=0.25, imbalance=10)
    _, new = reduced(mini, **ALL)
    assert list(new.changes) == ["unseen", "imbalance", "labelled"]
    left = [size for size in counts(mini, tail.train) if size]
    assert left == [int(500 * 10 ** (-c / 6) + 1e-9) for c in range(7)]
    assert np.isin(new.train, tail.train).all()
    assert sorted(counts(mini, new.train)) == [0] * 3 + [42, *[43] * 6]
    words = in_words(new.changes)
    assert words[0].startswith("3 unseen classes: ")
    assert words[1:] == ["long tail of factor 10", "300 labelled images"]


def test_no_change_leaves_the_split_as_it_is(mini):
    split, new = reduced(mini)
    assert new is split
    assert split.changes == {}


def test_a_division_that_draws_nothing_gets_the_seed_of_what_was_drawn():
    data = of_sizes(20, 20)
    assert reduced(data, "official", seed=7, labelled=4)[1].seed == 7
    assert reduced(data, "official", seed=7, unseen=["c1"])[1].seed is None


def test_a_split_file_restores_the_changes(mini, tmp_path):
    _, new = reduced(mini, **ALL)
    save_split(tmp_path / "split.json", new, mini)
    assert load_split(tmp_path / "split.json", mini) == new


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"unseen": {"classes": ["c0"]}}, "trains on images of its unseen classes"),
        ({"unseen": {"classes": ["x"]}}, "has unseen classes that the data set made does not have: x"),
        *(
            (odd, "no valid 'changes'")
            for odd in (3, [], {"else": 1}, {"imbalance": "10"}, {"labelled": -1}, {"unseen": [1]}, {"unseen": {}})
        ),
    ],
)
def test_changes_in_a_split_file_that_was_edited(tmp_path, changes, sentence):
    data, path = of_sizes(9, 9), tmp_path / "split.json"
    save_split(path, make_split("official", data, 0), data)
    path.write_text(json.dumps({**json.loads(path.read_text()), "changes": changes}))
    with pytest.raises(DataError, match=sentence):
        load_split(path, data)


def test_a_trial_keeps_the_record(mini):
    _, new = reduced(mini, unseen=0.25)
    small, few = trial.reduce(mini, new, 50)
    assert few.changes == new.changes
    unseen = [small.class_names.index(name) for name in few.changes["unseen"]["classes"]]
    assert not small.labels[few.train][:, unseen].any()


def test_validation_queries_are_of_seen_classes(mini):
    _, new = reduced(mini, unseen=0.25)
    train, validation = hold_out_validation(new, mini, 70, 0)
    assert sorted(counts(mini, validation)) == [0] * 3 + [10] * 7
    assert len(train) == 3500 - 70


@pytest.mark.parametrize("odd", [None, 3, {"unseen": 1, "imbalance": "x", "labelled": 10**5000}, {"unseen": {}}])
def test_an_edited_record_has_no_words(odd):
    assert in_words(odd) == []
    assert not is_record(odd)


# Runs


@pytest.fixture
def train(deephash, tmp_path):
    """Train on 300 vectors of five classes: a classic method, if no other is named."""
    x, labels = fitting.clusters(300, 16, 5)
    for name, array in (("x", x.astype(np.float32)), ("y", labels.astype(np.uint8))):
        np.save(tmp_path / f"{name}.npy", array)
    data = f"dataset=vectors dataset.vectors={tmp_path / 'x.npy'} dataset.labels={tmp_path / 'y.npy'}".split()

    def run(*settings):
        method = [] if any(text.startswith("method=") for text in settings) else ["method=itq"]
        quick = ("bits=8", "trainer=cpu", "logger=none", "trainer.max_epochs=1", "checkpoint.every_seconds=0")
        return deephash("train", *data, *quick, *method, *settings)

    return run


def content(file):
    return json.loads(Path(file).read_text())


def test_a_run_records_its_changes_and_eval_repeats_every_number(train, deephash):
    result = train(
        "run_dir=runs/a", "nested=[]", "dataset.unseen=['1',4]", "dataset.imbalance=2", "dataset.labelled=60"
    )
    assert (result.code, result.surprises) == (0, "")
    changes = {"unseen": {"classes": ["1", "4"]}, "imbalance": 2, "labelled": 60}
    assert "2 unseen classes: 1, 4; long tail of factor 2; 60 labelled images: 60 training images" in result.out
    assert "map, unseen@unseen" in result.out
    record, manifest, metrics = (content(f"runs/a/{name}") for name in (runs.RECORD, runs.CODES_MANIFEST, runs.METRICS))
    assert record["changes"] == content("runs/a/split.json")["changes"] == metrics["split"]["changes"] == changes
    assert manifest["provenance"]["split"]["changes"] == changes
    assert manifest["evaluation"]["unseen"] == [1, 4]
    sizes = [(part["queries"], part["database"]) for part in metrics["by_classes"].values()]
    assert sizes == [(18, 162), (18, 270), (12, 108), (12, 270)]
    before = Path("runs/a/metrics.json").read_bytes()
    deephash("eval", "run=runs/a", "output=runs/a/metrics.json")
    assert Path("runs/a/metrics.json").read_bytes() == before
    deephash("eval", "codes=runs/a/codes", "output=m.json")
    assert content("m.json")["by_classes"] == metrics["by_classes"]


def test_tables_have_the_four_numbers_and_keep_other_training_parts_apart(train, deephash):
    for name, changes in {"a": ["dataset.unseen=['1',4]"], "b": [], "c": ["dataset.labelled=100"]}.items():
        assert train(f"run_dir=runs/{name}", *changes).code == 0
    assert train("run_dir=runs/d", "seed=1", "dataset.split_file=runs/a/split.json").code == 0
    sections = results.sections(results.collect([Path("runs")])[0])
    assert sorted(section.changes for section in sections) == [[], ["100 labelled images"], ["2 unseen classes: 1, 4"]]
    unseen = next(section for section in sections if section.split.get("changes", {}).get("unseen"))
    assert "(2 unseen classes: 1, 4): 30 queries, 270 database items" in unseen.title
    (row,) = unseen.rows  # the file gives the same split, so that both are seeds of one row
    parts = [content(f"runs/{name}/metrics.json")["by_classes"]["unseen@all"] for name in "ad"]
    assert row.cells[8][0].value("unseen@all.map_stable") == parts[0]["map_stable"]
    (cell,) = unseen.cells("unseen@all.precision_at_5")[0]
    assert cell.mean == pytest.approx(np.mean([part["precision_at_k"]["5"] for part in parts]), abs=1e-12)
    table = deephash("compare", "runs", "--metric", "unseen@unseen.map,seen@all.map_worst", "--format", "markdown").out
    assert "unseen@unseen: queries of unseen classes search the items of unseen classes" in table
    assert "relevant items come last in ties" in table
    csv = deephash("compare", "runs/a", "--metric", "seen@seen.map", "--format", "csv").out
    assert "2 unseen classes: 1, 4" in csv
    assert deephash("compare", "runs", "--metric", "unseen@unseen.mapp").code == 2
    listed = {run.folder.name: run for run in listing.read_all(results.find([Path("runs")]))[0]}
    assert listed["a"].columns["dataset"] == "vectors holdout, 2 unseen classes"
    assert listed["a"].note.startswith("seen@seen 0.")
    assert listed["b"].note == ""
    assert deephash("report", "runs", "-o", "r.html").code == 0
    page = Path("r.html").read_text()
    assert "trained on fewer images: 2 unseen classes: 1, 4</h2>" in page
    assert "unseen@unseen" in page


def test_a_split_file_has_its_own_changes(train, deephash):
    assert train("run_dir=runs/a", "dataset.unseen=['1',4]").code == 0
    result = train("dataset.split_file=runs/a/split.json", "dataset.labelled=50")
    assert result.err == (
        "error: runs/a/split.json has a changed training part (2 unseen classes: 1, 4): leave out dataset.labelled, or "
        "the file\n"
    )
    assert train("run_dir=runs/b", "dataset.split_file=runs/a/split.json").code == 0
    one, other = (content(f"runs/{name}/metrics.json") for name in "ab")
    assert one["by_classes"] == other["by_classes"]
    assert one["split"] == other["split"]


def test_a_transductive_method_is_refused(train):
    for name, value, words in (("unseen", "['1',4]", "2 unseen classes: 1, 4"), ("labelled", 50, "50 labelled images")):
        result = train("method=adsh", f"dataset.{name}={value}")
        assert result.code == 2
        assert result.err == (
            "error: method=adsh learns from the labels of the whole database, so its training part cannot have "
            f"{words}: choose another method, or leave out dataset.{name}\n"
        )
    assert not Path("runs").exists()


def test_a_transductive_method_is_refused_whose_source_cannot_be_found(train, tmp_path, monkeypatch):
    package = tmp_path / "reexporting"
    package.mkdir()
    (package / "method.py").write_text("from deephash_cli.methods.adsh import ADSH\n\n\nclass Mine(ADSH):\n    pass\n")
    (package / "__init__.py").write_text("from .method import Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = train("method=adsh", "module._target_=reexporting.Mine", "dataset.labelled=50")
    assert result.code == 2
    assert "learns from the labels of the whole database" in result.err


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("dataset.unseen=2", "dataset.unseen must be a share of the classes between 0 and 1"),
        ("dataset.unseen=cat", "dataset.unseen must be a share of the classes between 0 and 1"),
        ("dataset.unseen=[x]", "dataset.unseen has x, which data set vectors does not have"),
        ("dataset.imbalance=0", "dataset.imbalance must be a whole number, at least 1, got 0"),
        ("dataset.imbalance=a", "dataset.imbalance must be a whole number, at least 1, got a"),
        ("dataset.labelled=0.5", "dataset.labelled must be a whole number, at least 2, got 0.5"),
        ("dataset.labelled=9999", "dataset.labelled=9999 is more than the 270 training images with a label"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(train, setting, sentence):
    result = train(setting)
    assert result.code in (2, 3)
    assert result.err.startswith(f"error: {sentence}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("method", sampled(["csq", "orthohash", "greedyhash", "dsdh", "sdh"]))
def test_classes_without_training_images_break_no_method(train, method):
    result = train(f"method={method}", "dataset.unseen=['0',4]", "run_dir=runs/a", "dataset.split_seed=0")
    assert result.code == 0
    parts = content("runs/a/metrics.json")["by_classes"]
    assert all(0 < part["map"] <= 1 for part in parts.values())


def test_the_best_checkpoint_is_chosen_by_queries_of_seen_classes(train):
    result = train("method=dpsh", "dataset.unseen=['1',4]", "validation.queries=9", "run_dir=runs/a")
    assert result.code == 0
    assert content("runs/a/metrics.json")["validation"]["queries"] == 9


def test_a_resumed_run_keeps_its_changes(train):
    assert train("run_dir=runs/a", "dataset.unseen=['1',4]").code == 0
    assert "already done" in train("run_dir=runs/a", "dataset.unseen=['1',4]", "resume=auto").out
    refused = train("run_dir=runs/a", "dataset.unseen=['1',3]", "resume=auto")
    assert refused.code == 2
    assert "dataset.unseen: ['1', 4] -> ['1', 3]" in refused.err
    # A run of an earlier version has none of the settings
    assert train("run_dir=runs/b").code == 0
    old = yaml.safe_load(Path("runs/b/config.yaml").read_text())
    for name in ("unseen", "imbalance", "labelled"):
        del old["dataset"][name]
    now = yaml.safe_load(Path("runs/b/config.yaml").read_text())
    assert runs.forbidden_changes(old, now) == []
    assert runs.fingerprint(old) == runs.fingerprint(now)
    assert now["dataset"]["unseen"] is None


def test_a_resumed_run_keeps_its_unseen_classes_when_the_split_file_was_edited(mini, tmp_path):
    _, split = reduced(mini, unseen=["Bag"])
    resuming.keep_split(tmp_path, split, mini)
    resuming.keep_split(tmp_path, split, mini)
    with pytest.raises(ArtifactError, match="is not the split that the settings give now"):
        resuming.keep_split(tmp_path, dataclasses.replace(split, changes={}), mini)
    assert load_split(tmp_path / "split.json", mini) == split

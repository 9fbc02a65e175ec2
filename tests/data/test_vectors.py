"""Vectors from other programs: what is read, what is refused, and runs with ids, several labels or no labels."""

import json
import os
import pickle
import shutil
from pathlib import Path

import digests
import numpy as np
import pytest
from conftest import METHODS, sampled, write_photos

from deephash_cli import runs
from deephash_cli.cli.checking import check
from deephash_cli.data.dataset import Vectors
from deephash_cli.data.protocol import hold_out_validation, load_split, make_split, save_split
from deephash_cli.data.vectors import vectors
from deephash_cli.errors import ArtifactError, ConfigError, DataError
from deephash_cli.models import NoBackbone
from deephash_cli.retrieval.codes_folder import load_codes

N, D, CLASSES = 90, 16, 3
rng = np.random.default_rng(0)
IDS = rng.permutation(N) % CLASSES
X = (2 * np.eye(CLASSES, D)[IDS] + 0.3 * rng.normal(size=(N, D))).astype(np.float32)
HOT = np.eye(CLASSES, dtype=np.uint8)[IDS]
HOT[::5, 0] = 1  # several labels
SHORT = ("trainer=cpu", "trainer.max_epochs=2", "loader.batch_size=32", "logger=none", "bits=8")
DATASET = ("dataset=vectors", "dataset.vectors=x.npy")
LABELLED = (*DATASET, "dataset.labels=y.npy")


@pytest.fixture(autouse=True)
def files(isolated):
    """Write the files of a data set to the test's own empty folder."""
    np.save("x.npy", X)
    np.save("y.npy", IDS)


def load(x=X, labels=None, ids=None):
    np.save("x.npy", x)
    if labels is not None:
        np.save("y.npy", labels)
    if ids is not None:
        Path("ids.txt").write_bytes(ids)
    return vectors("x.npy", None if labels is None else "y.npy", None if ids is None else "ids.txt")


def one_sentence(result, code, *parts):
    assert result.code == code, result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1, result.err
    for part in parts:
        assert part in result.err


# What is read


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_float_gives_the_same_vectors(kind, order):
    whole = np.round(8 * X) / 8  # which float16 holds exactly
    images = load(np.array(whole, dtype=kind, order=order)).images
    assert isinstance(images, Vectors)
    assert len(images) == N
    batch = images.batch(np.array([7, 0, 7]))
    assert batch.dtype == np.float32
    assert np.array_equal(batch, whole[[7, 0, 7]])
    assert images.digest() == Vectors(whole).digest()
    assert images.digest() != Vectors(whole[::-1]).digest()


def test_vectors_stay_on_disk_until_they_are_asked_for():
    images = load().images
    assert isinstance(images, Vectors)
    assert isinstance(images.array, np.memmap)
    assert not images.array.flags.writeable


LABELS = {
    "class ids": (IDS, HOT * 0 + np.eye(CLASSES, dtype=np.uint8)[IDS]),
    "a column of class ids": (IDS[:, None].astype("i2"), np.eye(CLASSES)[IDS]),
    "class ids as floats": (IDS.astype("f4"), np.eye(CLASSES)[IDS]),
    "ids with gaps": (2 * IDS, np.eye(2 * CLASSES - 1)[2 * IDS]),
    "-1": (np.where(IDS == 2, -1, IDS), np.eye(CLASSES)[IDS][:, :2]),
    "-1 alone": (np.full(N, -1), np.zeros((N, 0))),
    "multi-hot": (HOT, HOT),
    "multi-hot truth values": (HOT.astype(bool), HOT),
    "multi-hot floats": (HOT.astype("f8"), HOT),
    "multi-hot of -1 and 1": (np.where(HOT, 1, -1).astype("i1"), HOT),
    "multi-hot of -1 and 1 as floats": (np.where(HOT, 1.0, -1.0), HOT),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels(name):
    labels, expected = LABELS[name]
    data = load(labels=labels)
    assert data.labels.dtype == np.uint8
    assert np.array_equal(data.labels, expected)
    assert data.class_names == [str(column) for column in range(expected.shape[1])]


def test_without_labels_there_are_no_classes():
    data = load()
    assert data.labels.shape == (N, 0)
    assert data.class_names == []


@pytest.mark.parametrize(("end", "mark"), [(b"\n", b""), (b"\r\n", b""), (b"\n", b"\xef\xbb\xbf")])
@pytest.mark.parametrize("last", [True, False])
def test_ids(end, mark, last):
    names = [f"Bild {row} ä" for row in range(N)]
    text = end.join(name.encode() for name in names)
    assert load(ids=mark + text + (end if last else b"")).ids == names
    assert load().ids == [str(row) for row in range(N)]


# What is refused


def changed(value, kind="f4"):
    x = X.astype(kind)
    x[3, 5] = value
    return x


NO_VECTORS = {
    "NaN": (changed(np.nan), "finite as float32, got nan in row 3, column 5: leave out such vectors"),
    "infinity": (changed(-np.inf), "got -inf in row 3, column 5"),
    "more than float32 holds": (changed(1e300, "f8"), "got 1e+300 in row 3, column 5: scale the vectors"),
    "one dimension": (X[:, 0], "in an array of 2 dimensions, one row per item, got 1"),
    "three dimensions": (X[None], "in an array of 2 dimensions, one row per item, got 3"),
    "whole numbers": (IDS[:, None], "as floating-point numbers, got <i8: convert it, such as with array.astype(np.flo"),
    "truth values": (HOT.astype(bool), "as floating-point numbers, got |b1"),
    "complex numbers": (X.astype("c8"), "as floating-point numbers, got <c8"),
    "text": (np.array([["a"]]), "as floating-point numbers, got <U1"),
    "objects": (X.astype(object), "got pickled Python objects, which are never opened"),
    "no rows": (X[:0], "vectors of at least one item, got an array of shape (0, 16)"),
    "no columns": (X[:, :0], "vectors of at least one item, got an array of shape (90, 0)"),
}
NO_LABELS = {
    "too few": (IDS[:-1], "x.npy has 90 vectors but y.npy has labels for 89 items"),
    "too many rows": (np.repeat(HOT, 2, axis=0), "x.npy has 90 vectors but y.npy has labels for 180 items"),
    "-2": (IDS - 2, "whole numbers from -1 to"),
    "fractions": (IDS + 0.5, "number the classes 0, 1, 2"),
    "NaN": (np.where(IDS == 0, np.nan, IDS), "must hold class ids"),
    "-1 and 1 in one column": (np.where(IDS == 0, 1, -1), "holds only -1 and 1, which has two meanings"),
    "-1 beside 0": (np.where(HOT, 1, np.where(IDS == 0, -1, 0)[:, None]), "it has -1 elsewhere, so give all entries"),
    "twos": (2 * HOT, "must hold multi-hot labels, 0 or 1 with one column per class, got 2"),
    "objects": (IDS.astype(object), "got pickled Python objects, which are never opened"),
    "three dimensions": (HOT[None], "in an array of 1 or 2 dimensions"),
    "ids of millions": (IDS * 10**8, "too many classes for 90 items: number them 0, 1, 2, ..."),
}
NO_IDS = {
    "too few": (b"a\nb\n", "x.npy has 90 vectors but ids.txt has 2 ids"),
    "an empty file": (b"", "x.npy has 90 vectors but ids.txt has 0 ids"),
    "one twice": (b"a\n" * N, "dataset.ids=ids.txt:2: the id 'a' is already in line 1"),
    "an empty line": (
        b"0\n\n" + b"\n".join(b"%d" % row for row in range(2, N)),
        "dataset.ids=ids.txt:2: the line is empty",
    ),
    "other bytes": (b"\xff\n" * N, "dataset.ids=ids.txt:1: not UTF-8 text"),
}
CASES = [(what, name) for what, cases in (("x", NO_VECTORS), ("labels", NO_LABELS), ("ids", NO_IDS)) for name in cases]


@pytest.mark.parametrize(("what", "name"), CASES)
def test_malformed_files_are_refused_in_one_sentence(what, name):
    content, sentence = {"x": NO_VECTORS, "labels": NO_LABELS, "ids": NO_IDS}[what][name]
    with pytest.raises(DataError) as caught:
        load(**{what: content})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_truncated_files_are_refused():
    with pytest.raises(DataError, match=r"needs dataset\.vectors=<file\.npy>"):
        vectors(None, None, None)
    for arguments in (("no.npy", None, None), ("x.npy", "no.npy", None), ("x.npy", None, "no.txt")):
        with pytest.raises(
            DataError, match=r"dataset\.(vectors|labels|ids).* no\..*(does not exist|No such file)|no\.txt"
        ):
            vectors(*arguments)
    whole = Path("x.npy").read_bytes()
    Path("x.npy").write_bytes(whole[:-1])
    with pytest.raises(DataError, match="it was truncated"):
        vectors("x.npy", None, None)
    os.mkfifo("pipe.npy")
    with pytest.raises(DataError, match="not a plain file"):
        vectors("pipe.npy", None, None)


class Touch:
    """An object whose pickle leaves a file behind if it is opened."""

    def __reduce__(self):
        return (Path.touch, (Path("mark"),))


def test_nothing_in_a_file_is_executed():
    for name in ("x", "y"):
        np.save("evil.npy", np.array([[Touch()]], dtype=object), allow_pickle=True)
        arguments = {"x": "x.npy", "y": None, name: "evil.npy"}
        with pytest.raises(DataError, match="never opened"):
            vectors(arguments["x"], arguments["y"], None)
    with pytest.raises(ArtifactError, match="never opened"):
        NoBackbone("evil.npy")
    Path("evil.npy").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(DataError, match=r"not a \.npy array"):
        vectors("evil.npy", None, None)
    assert not Path("mark").exists()


def test_the_network_learns_the_length_from_the_header():
    assert NoBackbone("x.npy").num_features == D
    assert list(NoBackbone("x.npy").parameters()) == []
    np.save("flat.npy", X[:, 0])
    with pytest.raises(ArtifactError, match="2 dimensions"):
        NoBackbone("flat.npy")
    with pytest.raises(ConfigError, match=r"set dataset\.vectors="):
        NoBackbone(None)


# How they are divided


def test_a_tenth_at_random_are_queries_where_there_are_no_labels():
    data = load(X[:85])
    split = make_split("holdout", data, 0)
    assert len(split.query) == 9  # a tenth, rounded up
    assert np.array_equal(np.sort(np.concatenate([split.query, split.train])), np.arange(85))
    assert np.array_equal(split.train, split.database)
    assert split.flags["label_kind"] == "none"
    assert split.flags["unlabelled_rows"] == {"query": 9, "train": 76, "database": 76}
    assert make_split("holdout", data, 0) == split
    assert make_split("holdout", data, 1).sha256 != split.sha256
    save_split(Path("split.json"), split, data)
    assert load_split(Path("split.json"), data) == split


def test_items_without_a_class_are_searched_and_are_no_queries():
    data = load(labels=np.where(np.arange(N) < 40, -1, IDS))
    split = make_split("holdout", data, 0)
    assert split.query.min() >= 40
    assert split.flags["unlabelled_rows"] == {"query": 0, "train": 40, "database": 40}


def test_what_needs_labels_says_so():
    data = load()
    for protocol in ("s1", "s1_disjoint", "s2"):
        with pytest.raises(DataError, match="data set vectors has no labels but protocol s"):
            make_split(protocol, data, 0)
    with pytest.raises(DataError, match="no division of its own"):
        make_split("official", data, 0)
    split = make_split("holdout", data, 0)
    with pytest.raises(ConfigError, match=r"validation\.queries=5 needs labels, and data set vectors has none"):
        hold_out_validation(split, data, 5, 0)
    assert np.array_equal(hold_out_validation(split, data, 0, 0)[0], split.train)
    with pytest.raises(DataError, match="leaves no train images"):
        make_split("holdout", load(X[:1]), 0)


# Choosing the data set chooses the model


def test_the_data_set_chooses_the_model_and_the_command_line_wins():
    assert check("train", [*DATASET], None, multirun=False).model.name == "vectors"
    assert check("train", ["method=itq", *DATASET], None, multirun=False).model.name == "vectors"
    for order in ([*DATASET, "model=resnet18"], ["model=resnet18", *DATASET]):
        assert check("train", order, None, multirun=False).model.name == "resnet18"
    assert check("train", [], None, multirun=False).model.name == "efficientnet_lite0"


@pytest.mark.parametrize("model", ["efficientnet_lite0", "resnet18", "small_cnn"])
def test_a_model_for_images_is_refused(deephash, model):
    result = deephash("train", *LABELLED, f"model={model}", *SHORT)
    one_sentence(result, 2, f"dataset=vectors holds vectors but model={model} takes images: leave out model=")
    assert not Path("runs").exists()


def test_vectors_are_refused_as_a_model_for_images(deephash, tmp_path):
    dataset = ("dataset=image_folder", f"dataset.root={write_photos(tmp_path / 'photos')}")
    result = deephash("train", *dataset, "model=vectors", *SHORT)
    one_sentence(result, 2, "dataset=image_folder holds images but model=vectors takes vectors: leave out model=")


# Runs


def train(deephash, *settings, run_dir="run"):
    result = deephash("train", *SHORT, *settings, f"run_dir={run_dir}")
    assert result.code == 0, result
    return result, json.loads(Path(run_dir, runs.METRICS).read_text())


@pytest.mark.parametrize("method", ["itq", "dpsh"])
def test_a_run_on_multi_hot_labels_with_ids(deephash, method):
    np.save("y.npy", HOT)
    names = [f"item-{row}" for row in range(N)]
    Path("names.txt").write_text("\n".join(names) + "\n")
    settings = (*LABELLED, "dataset.ids=names.txt", f"method={method}", "trainer.max_epochs=20")
    _, metrics = train(deephash, *settings)
    query, database, _ = load_codes(Path("run", runs.CODES))
    assert sorted([*query.ids, *database.ids]) == sorted(names)
    for side in (query, database):
        assert np.array_equal(side.labels, HOT[[names.index(name) for name in side.ids]])
    assert metrics["split"]["label_kind"] == "multi"
    assert metrics["map"] > 0.9  # of three clusters that are far apart
    assert metrics["vectors"] == {"sha256": Vectors(X).digest()}
    assert not (Path(os.environ["DEEPHASH_CACHE_DIR"]) / "features").exists()

    train(deephash, *settings, run_dir="again")
    assert (
        Path("again", runs.CODES, "database.npy").read_bytes() == Path("run", runs.CODES, "database.npy").read_bytes()
    )
    again = json.loads(Path("again", runs.METRICS).read_text())
    assert {**again, "checkpoint": None} == {**metrics, "checkpoint": None}


def test_more_training_rows_than_fit_rows_are_sampled_and_recorded(deephash):
    result, metrics = train(deephash, *LABELLED, "method=klsh", "fit_rows=30")
    assert "fitting on 30 of 81 training rows, drawn at random (fit_rows=30)" in result.out
    assert metrics["fitted_on"] == 30
    assert metrics["database"] == 81
    found = deephash("search", "run=run", "query=x.npy", "k=100", "output=found.json")
    assert found.code == 0, found
    assert "warning: k=100 is more than the 81 images that are searched" in found.err
    result, metrics = train(deephash, *LABELLED, "method=klsh", run_dir="all")
    assert "fitting on" not in result.out
    assert "fitted_on" not in metrics


def test_a_run_says_what_its_numbers_are_worth(deephash):
    result, metrics = train(deephash, *LABELLED, "method=itq")
    assert f"warning: every metric is an estimate from only {metrics['queries']} queries" in result.err
    assert result.err == deephash("eval", "run=run").err
    sweep = deephash("train", "-m", *LABELLED, "method=itq", *SHORT)
    assert result.err in sweep.err


def test_validation_and_a_split_file(deephash):
    _, metrics = train(deephash, *LABELLED, "method=dpsh", "validation.queries=6")
    assert metrics["selection"] == "best on validation queries"
    _, other = train(deephash, *LABELLED, "method=itq", f"dataset.split_file=run/{runs.SPLIT}", run_dir="itq")
    assert other["split"]["sha256"] == metrics["split"]["sha256"]


def test_a_run_without_labels_reports_what_needs_none(deephash):
    result, metrics = train(deephash, *DATASET, "method=itq")
    told = {"queries", "database", "bits", "bit_balance", "bit_correlation", "unique_code_ratio", "policies"}
    assert told <= set(metrics)
    assert not [name for name in metrics if name.startswith(("map", "precision", "recall", "ndcg", "pr_", "per_class"))]
    assert list(metrics["policies"]) == ["labels"]
    assert metrics["method"] == "itq"
    assert "map" not in result.out
    assert f"{metrics['unique_code_ratio']:.4f}" in result.out
    assert result.out.count("there are no labels") == 1

    query, database, _ = load_codes(Path("run", runs.CODES))
    assert (query.n, database.n) == (9, 81)
    assert query.labels.shape == (9, 0)
    again = deephash("eval", "run=run", "output=again.json")
    assert again.code == 0, again
    assert again.out.count("there are no labels") == 1
    assert Path("again.json").read_bytes() == Path("run", runs.METRICS).read_bytes()


@pytest.mark.parametrize("method", sampled(METHODS, 6))
def test_a_method_that_learns_from_labels_is_refused_without_any(deephash, method):
    result = deephash("train", *DATASET, f"method={method}", *SHORT)
    if result.code != 0:
        one_sentence(result, 3, f"method={method} learns from labels, but data set vectors has no labels: add labels")
        assert not Path("runs").exists()
    assert (result.code == 0) == (supervision(method) == "none")


def supervision(method):
    from hydra.utils import get_object

    return get_object(check("train", [f"method={method}"], None, multirun=False).module._target_).supervision


def test_validation_without_labels_is_refused(deephash):
    result = deephash("train", *DATASET, "method=itq", "validation.queries=5", *SHORT)
    one_sentence(result, 2, "validation.queries=5 needs labels, and data set vectors has none")


def test_a_sweep_without_labels_has_a_table(deephash):
    result = deephash("train", "-m", *DATASET, "method=itq", *SHORT[:-1], "bits=8,12", "seed=1,2")
    assert result.code == 0, result
    table = result.out[result.out.rindex("run folder") :]
    assert "unique_code_ratio" in table
    assert "map" not in table
    assert table.count("±") == 2


def test_dashboards_take_a_run_without_labels(deephash):
    result, metrics = train(deephash, *DATASET, "method=itq", "logger=csv")
    assert "warning" not in result.err
    assert repr(metrics["unique_code_ratio"]) in Path("run", "csv", "metrics.csv").read_text()

    result, _ = train(deephash, *DATASET, "method=itq", "logger=wandb", run_dir="logged")
    assert result.err == ""
    assert json.loads(Path("logged/wandb/status.json").read_text())["whole"]


def test_a_run_is_taken_up_and_a_run_folder_decides_no_more_than_its_settings(deephash):
    train(deephash, *LABELLED, "method=dpsh")
    more = deephash("train", "resume=run", "trainer.max_epochs=3")
    assert more.code == 0, more
    folder = Path(shutil.copytree("run", "evil"))
    overrides = runs.read_record(folder)["overrides"]
    np.save("evil.npy", np.array([[Touch()]], dtype=object), allow_pickle=True)
    for override in ("dataset.vectors=evil.npy", "dataset.labels=evil.npy", "dataset.source._target_=os.system"):
        digests.edit(folder / runs.RECORD, overrides=[*overrides, override])
        result = deephash("train", f"resume={folder}", "trainer.max_epochs=4")
        assert result.code in (2, 3), result
        assert result.err.count("\n") == 1
    assert not Path("mark").exists()

"""Whole runs of the command line: the default method, every kind of data set, odd code lengths, reused splits."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, sampled, write_photos
from PIL import Image

from deephash_cli import runs
from deephash_cli.data.cifar10 import CLASS_NAMES
from deephash_cli.files import sha256_file
from deephash_cli.retrieval.codes import unpack
from deephash_cli.retrieval.codes_folder import load_codes

ONE_EPOCH = (*QUICK, "trainer.max_epochs=1", "bits=12")


def complete(folder: Path) -> dict:
    """Check that a run folder is a complete answer; return its metrics."""
    assert runs.read_record(folder)["status"] == "finished"
    names = {entry.name for entry in folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "metrics.json", "split.json", "codes", "checkpoints", "run.json"} <= names
    assert not list(folder.rglob("*.tmp"))
    query, database, manifest = load_codes(folder / runs.CODES)
    metrics = json.loads((folder / runs.METRICS).read_text())
    split = json.loads((folder / runs.SPLIT).read_text())
    assert (query.ids, database.ids) == (split["query"], split["database"])
    assert (metrics["queries"], metrics["database"], metrics["bits"]) == (query.n, database.n, query.bits)
    assert manifest["provenance"]["split"]["sha256"] == metrics["split"]["sha256"] == split["sha256"]
    checkpoint = manifest["provenance"]["checkpoint"]
    assert sha256_file(folder / checkpoint["file"]) == checkpoint["sha256"]
    assert 0 <= metrics["map_worst"] <= metrics["map"] <= metrics["map_best"] <= 1
    return metrics


def trained(deephash, *overrides: str) -> Path:
    result = deephash("train", *overrides, "run_dir=run")
    assert result.code == 0, result
    assert result.surprises == ""
    assert "run folder: run" in result.out
    assert "deephash eval run=run" in result.out
    return Path("run")


# The default


def test_the_default_method_on_real_images(deephash):
    """The package contains a part of Fashion-MNIST, and a network that is trained from scratch needs no weights."""
    settings = {
        "model": "small_cnn",
        "model.image_size": 16,
        "module.pairs": "batch",
        "trainer": "cpu",
        "logger": "none",
    }
    short = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 4}
    small = [f"{name}={value}" for name, value in {**settings, **short}.items()]
    metrics = complete(trained(deephash, *small))
    assert metrics["method"] == "dpsh"
    assert metrics["dataset"] == "fashion_mini"
    assert (metrics["bits"], metrics["queries"], metrics["database"]) == (48, 1000, 9000)
    assert metrics["split"]["name"] == "s1"
    assert metrics["map"] > 0.1, "at least as good as a draw"
    assert metrics["module"]["pairs"] == "batch"


def test_learning_shows(deephash, photos):
    metrics = complete(
        trained(deephash, *photos, "bits=12", "trainer.max_epochs=12", "loader.batch_size=16", "augment=none")
    )
    assert metrics["map"] > 0.9, "three colours are three classes"


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(deephash, photos):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert deephash("train", *photos, *ONE_EPOCH, f"seed={seed}", f"run_dir={name}").code == 0
    for file in ("metrics.json", "split.json", "codes/query.npy", "codes/database.npy", "codes/manifest.json"):
        assert Path("one", file).read_bytes() == Path("two", file).read_bytes(), file
    assert Path("one/split.json").read_bytes() == Path("three/split.json").read_bytes(), "one split for all seeds"
    assert Path("one/checkpoints/last.ckpt.json").read_bytes() != Path("three/checkpoints/last.ckpt.json").read_bytes()


# Every kind of data set


def list_file(path: Path, rows: dict[str, str]) -> str:
    path.write_text("".join(f"{name} {labels}\n" for name, labels in rows.items()))
    return str(path)


@pytest.fixture
def two_labels(tmp_path):
    """Folder of images and, for each path, its multi-hot labels: a class, and light or dark."""
    root = write_photos(tmp_path / "photos", each=12)
    columns = {"bag": "1 0 0", "boot": "0 1 0", "coat": "0 0 1"}
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.jpg"))
    return root, {name: f"{columns[name.split('/')[0]]} {i % 3 % 2}" for i, name in enumerate(names)}


def test_an_image_folder(deephash, photos):
    metrics = complete(trained(deephash, *photos, *ONE_EPOCH))
    assert metrics["dataset"] == "image_folder"
    assert metrics["split"]["label_kind"] == "single"


def test_image_lists_with_several_labels(deephash, two_labels, tmp_path):
    root, rows = two_labels
    names = list(rows)
    query = list_file(tmp_path / "query.txt", {name: rows[name] for name in names[::4]})
    rest = list_file(tmp_path / "rest.txt", {name: rows[name] for name in names if name not in names[::4]})
    lists = [f"dataset.train={rest}", f"dataset.query={query}", f"dataset.root={root}"]
    run = trained(deephash, "dataset=image_list", *lists, *ONE_EPOCH, "dataset.map_at=[5]")
    metrics = complete(run)
    assert metrics["split"]["name"] == "official"
    assert metrics["split"]["label_kind"] == "multi"
    assert (metrics["queries"], metrics["database"]) == (9, 27)
    assert "map_at_5" in metrics
    query_codes, _, _ = load_codes(run / runs.CODES)
    assert query_codes.labels.shape == (9, 4)
    assert query_codes.labels.sum(axis=1).max() == 2


@pytest.mark.parametrize("with_split", [False, True])
def test_a_table(deephash, two_labels, tmp_path, with_split):
    root, rows = two_labels
    table = tmp_path / "table.csv"
    lines = [f"path,labels{',split' if with_split else ''}"]
    for i, name in enumerate(rows):
        part = "query" if i % 4 == 0 else "train;database"
        lines.append(f"{name},{name.split('/')[0]};{'dark' if i % 2 else 'light'}{f',{part}' if with_split else ''}")
    table.write_text("\n".join(lines))
    settings = ["dataset=csv", f"dataset.file={table}", f"dataset.root={root}", *ONE_EPOCH]
    run = trained(deephash, *settings)
    metrics = complete(run)
    assert metrics["split"]["name"] == ("official" if with_split else "holdout")
    assert metrics["split"]["label_kind"] == "multi"
    if with_split:
        assert json.loads((run / runs.SPLIT).read_text())["query"] == list(rows)[::4]


def test_a_table_without_labels(deephash, two_labels, tmp_path):
    root, rows = two_labels
    table = tmp_path / "table.csv"
    table.write_text("path,caption\n" + "".join(f"{name},text\n" for name in rows))
    settings = ["dataset=csv", f"dataset.file={table}", f"dataset.root={root}", *ONE_EPOCH, "run_dir=run"]
    result = deephash("train", *settings, "method=dpsh")
    assert result.code == 3
    assert "data set csv has no labels: add labels (a column labels in the table), or choose a method" in result.err
    result = deephash("train", *settings, "method=itq")
    assert result.code == 0, result
    assert (
        "csv: 36 images, no labels; not used: column caption; 4 queries, 32 for training, database of 32; drawn by "
        "dataset.protocol=holdout\n"
    ) in result.out
    assert json.loads(Path("run", runs.METRICS).read_text())["split"]["label_kind"] == "none"


def test_cifar10_as_folders_of_images(deephash, tmp_path):
    for part, each in (("train", 6), ("test", 2)):
        write_photos(tmp_path / "cifar10" / part, CLASS_NAMES, each)
    settings = [f"dataset.root={tmp_path / 'cifar10'}", "dataset=cifar10"]
    metrics = complete(trained(deephash, *settings, *ONE_EPOCH, "dataset.protocol=official"))
    assert (metrics["dataset"], metrics["queries"], metrics["database"]) == ("cifar10", 20, 60)


def test_fashion_mnist_in_the_folder_for_data(deephash, tmp_path, monkeypatch):
    import gzip
    import struct

    folder = tmp_path / "data" / "fashion_mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8).tobytes()
        labels = (np.arange(n) % 10).astype(np.uint8).tobytes()
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 0x803, n, 28, 28) + images)
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 0x801, n) + labels)
    monkeypatch.setenv("DEEPHASH_DATA_DIR", str(tmp_path / "data"))
    metrics = complete(trained(deephash, "dataset=fashion_mnist", *ONE_EPOCH, "dataset.protocol=official"))
    assert (metrics["queries"], metrics["database"]) == (20, 60)


def test_images_of_every_kind_in_one_folder(deephash, tmp_path):
    """Grey, transparent, indexed and wide images all become what the network takes."""
    for name, mode in (("a", "L"), ("b", "RGBA")):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        for i in range(8):
            image = Image.new(mode, (30 + 5 * i, 20), 255 // (i + 1) if mode == "L" else (i * 20, 0, 9, 128))
            image.convert("P" if i == 7 else mode).save(tmp_path / "mixed" / name / f"{i} ü.png")
    assert complete(trained(deephash, "dataset=image_folder", f"dataset.root={tmp_path / 'mixed'}", *ONE_EPOCH))


# Splits


def test_a_split_that_was_written_can_be_used_again(deephash, photos):
    first = complete(trained(deephash, *photos, *ONE_EPOCH, "dataset.split_seed=5"))
    again = deephash("train", *photos, *ONE_EPOCH, "dataset.split_file=run/split.json", "run_dir=again")
    assert again.code == 0, again
    assert complete(Path("again"))["split"] == first["split"]
    assert Path("again/codes/query_ids.txt").read_bytes() == Path("run/codes/query_ids.txt").read_bytes()
    other = deephash("train", *photos, *ONE_EPOCH, "run_dir=other")
    assert other.code == 0
    assert complete(Path("other"))["split"]["sha256"] != first["split"]["sha256"]


def test_a_split_of_other_data_is_refused(deephash, photos, tmp_path):
    trained(deephash, *photos, *ONE_EPOCH)
    more = write_photos(tmp_path / "more", classes=("cat", "dog"))
    rest = [override for override in photos if not override.startswith("dataset.root=")]
    result = deephash("train", *rest, f"dataset.root={more}", "dataset.split_file=run/split.json", "run_dir=other")
    assert result.code == 3
    assert "ids that the data set image_folder does not have" in result.err
    assert not Path("other").exists()


# Code lengths


@pytest.mark.parametrize("bits", sampled([65, 12, 1, 36]))
def test_odd_code_lengths(deephash, photos, bits):
    run = trained(deephash, *photos, f"bits={bits}", "trainer.max_epochs=1")
    assert complete(run)["bits"] == bits
    query, database, _ = load_codes(run / runs.CODES)
    assert query.packed.shape[1] == -(-bits // 8)
    assert unpack(np.asarray(database.packed), bits).shape == (database.n, bits)
    assert deephash("eval", "run=run", "output=again.json").code == 0
    assert Path("again.json").read_bytes() == (run / runs.METRICS).read_bytes()


def test_validation_queries_choose_the_checkpoint(deephash, photos):
    metrics = complete(trained(deephash, *photos, "bits=12", "validation.queries=6"))
    assert metrics["selection"] == "best on validation queries"
    assert metrics["checkpoint"]["file"] == "checkpoints/best.ckpt"


def test_codes_of_an_image_and_its_mirror_image_say_so(deephash, photos):
    run = trained(deephash, *photos, "bits=12", "trainer.max_epochs=1", "model.network.mirrored=true")
    complete(run)
    views = json.loads((run / runs.CODES / "manifest.json").read_text())["provenance"]["views"]
    assert views == "two, features averaged: the image and its mirror image; shorter side resized, centre crop"


def test_folders_with_spaces_and_umlauts(deephash, tmp_path):
    root = write_photos(tmp_path / "my photos, ü")
    result = deephash(
        "train", "dataset=image_folder", f"dataset.root='{root}'", *ONE_EPOCH, "run_dir='a run, of = mine'"
    )
    assert result.code == 0, result
    complete(Path("a run, of = mine"))
    assert deephash("eval", "run='a run, of = mine'").code == 0

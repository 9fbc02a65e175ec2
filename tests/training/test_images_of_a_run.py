"""The images of a run: files that are left out, unreadable ones among them, and folders without labels."""

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, write_photos
from PIL import Image

from deephash_cli import runs
from deephash_cli.files import read_json
from deephash_cli.retrieval.codes_folder import open_side
from deephash_cli.training import fit

FAST = (*QUICK, "method=lsh", "bits=8", "gallery=false")


@pytest.fixture
def large(tmp_path):
    """A folder of 24 images in two classes, too large to be held in memory, and three files that are no images."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 255, (70, 80, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    return tmp_path / "photos"


def spoil(photos, *names):
    for name in names:
        content = (photos / name).read_bytes()
        (photos / name).write_bytes(content[: len(content) // 2])


def ids(run):
    return {name for side in ("query", "database") for name in open_side(run / runs.CODES, side).ids}


@pytest.mark.parametrize("workers", [0, 2])
def test_one_message_names_all_bad_images(deephash, large, workers):
    spoil(large, "a/5.jpg", "b/3.jpg")
    result = deephash(
        "train", "dataset=image_folder", f"dataset.root={large}", *FAST, f"loader.num_workers={workers}", "run_dir=run"
    )
    assert result.code == 3
    assert result.err.startswith("error: 2 of the 24 images cannot be read: a/5.jpg (image file is truncated")
    assert "b/3.jpg (image file is truncated" in result.err
    assert result.err.endswith("or set bad_images=skip to leave out such files and list them\n")
    assert result.err.count("\n") == 1
    assert not Path("run").exists()


def test_bad_images_are_skipped_before_the_split(deephash, large):
    spoil(large, "a/5.jpg", "b/3.jpg")
    (large / "a" / "notes.txt").touch()
    data = ("dataset=image_folder", f"dataset.root={large}", *FAST, "bad_images=skip")
    result = deephash("train", *data, "run_dir=run")
    assert result.code == 0
    assert result.err.splitlines()[:2] == [
        "warning: left out 1 file: 1 .txt; skipped.csv in the run folder names it",
        "warning: 2 images could not be read and are left out: skipped.csv in the run folder says why",
    ]
    with Path("run/skipped.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["a/notes.txt", "a/5.jpg", "b/3.jpg"]
    assert len(ids(Path("run"))) == 22
    assert not ids(Path("run")) & {"a/5.jpg", "b/3.jpg"}
    assert read_json(Path("run/codes/manifest.json"))["provenance"]["skipped_images"] == 2
    assert deephash("train", *data, "resume=run").code == 0
    (large / "a" / "5.jpg").unlink()
    (large / "b" / "3.jpg").unlink()
    whole = deephash("train", "dataset=image_folder", f"dataset.root={large}", *FAST, "run_dir=whole")
    assert whole.code == 0
    assert ids(Path("whole")) == ids(Path("run"))
    assert "skipped_images" not in read_json(Path("whole/codes/manifest.json"))["provenance"]


@pytest.mark.parametrize("kind", ["csv", pytest.param("image_list", marks=pytest.mark.slow)])
def test_missing_files_are_skipped_before_the_split(deephash, large, kind):
    names = [f"{label}/{number}.jpg" for label in "ab" for number in range(12)]

    def data(names):
        if kind == "csv":
            rows = [f"{name},{name[0]},{'query' if name.endswith('/1.jpg') else 'train'}" for name in names]
            Path("all.csv").write_text("\n".join(["path,labels,split", *rows]))
            return ("dataset=csv", "dataset.file=all.csv", f"dataset.root={large}", *FAST)
        for part in ("query", "train"):
            own = [name for name in names if name.endswith("/1.jpg") == (part == "query")]
            Path(f"{part}.txt").write_text("".join(f"{name} {int(name[0] == 'b')}\n" for name in own))
        return (
            "dataset=image_list",
            "dataset.train=train.txt",
            "dataset.query=query.txt",
            f"dataset.root={large}",
            *FAST,
        )

    settings = data([*names, "a/gone.jpg", "b/gone.jpg"])
    stopped = deephash("train", *settings, "run_dir=run")
    assert stopped.code == 3
    assert "2 of the images named do not exist" in stopped.err
    assert "or bad_images=skip to leave them out" in stopped.err
    result = deephash("train", *settings, "bad_images=skip", "run_dir=run")
    assert result.code == 0, result
    assert (
        "warning: 2 images could not be read and are left out: skipped.csv in the run folder says why\n" in result.err
    )
    with Path("run/skipped.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == ["a/gone.jpg", "b/gone.jpg"]
    assert all("No such file" in row["reason"] for row in found)
    assert deephash("train", *data(names), "run_dir=whole").code == 0
    splits = [read_json(Path(run, "codes/manifest.json"))["provenance"]["split"] for run in ("run", "whole")]
    assert splits[0] == splits[1]
    none = deephash("train", *data(["a/gone.jpg", "c/1.jpg", "b/gone.jpg"]), "bad_images=skip", "run_dir=none")
    assert none.code == 3
    assert "3 of the images named do not exist" in none.err


def test_small_images_are_skipped_too(deephash, tmp_path):
    photos = write_photos(tmp_path / "photos", each=12)
    (photos / "bag" / "003.jpg").write_bytes(b"<html>")
    data = ("dataset=image_folder", f"dataset.root={photos}", *FAST)
    stopped = deephash("train", *data)
    assert stopped.code == 3
    assert "image bag/003.jpg cannot be read: it is none of JPEG" in stopped.err
    assert deephash("train", *data, "bad_images=skip", "run_dir=run").code == 0
    assert len(ids(Path("run"))) == 35


def test_a_trained_network_is_not_thrown_away_for_a_bad_query(deephash, large, monkeypatch):
    data = ("dataset=image_folder", f"dataset.root={large}", *QUICK, "method=dpsh", "bits=8", "gallery=false")
    trained = fit.Source.codes

    def spoiled(source, rows, precision):
        spoil(large, source.dataset.ids[rows[0]])
        return trained(source, rows, precision)

    monkeypatch.setattr(fit.Source, "codes", spoiled)
    result = deephash("train", *data, "trainer.max_epochs=1", "model.frozen=false", "run_dir=run")
    assert result.code == 3
    assert "cannot be read: image file is truncated" in result.err
    assert "the run folder is kept: resume=run continues after its last checkpoint" in result.out
    assert Path("run/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_a_folder_without_labels_is_hashed_and_searched(deephash, tmp_path, form):
    photos = write_photos(tmp_path / "photos", each=8)
    settings = ["dataset=image_folder", f"dataset.root={photos}", "dataset.labels=none"]
    if form == "flat":
        settings = ["dataset=image_folder", f"dataset.root={photos / 'bag'}"]
    refused = deephash("train", *settings, *QUICK, "method=dpsh")
    assert refused.code == 3
    assert "add labels (a sub-folder for each class), or choose a method that needs none: " in refused.err
    assert "itq" in refused.err
    assert "dpsh" not in refused.err.split("needs none")[1]
    result = deephash("train", *settings, *FAST, "gallery=true", "run_dir=run")
    assert result.code == 0
    assert "there are no labels" in result.out
    assert "deephash report" not in result.out  # it would find no metric
    query = photos / "bag" / "003.jpg"
    found = deephash("search", "run=run", f"query={query}", "k=2", "output=found.json")
    assert found.code == 0
    assert len(read_json(Path("found.json"))["queries"][0]["results"]) == 2
    assert deephash("encode", "run=run", *settings, "output=codes", "num_workers=0", "accelerator=cpu").code == 0
    assert deephash("export", "run=run", "to=parquet", "output=table.parquet").code == 0
    assert deephash("index", "run=run", "kind=flat").code == 0


def test_the_choice_of_labels_is_checked(deephash, tmp_path):
    photos = write_photos(tmp_path / "photos", each=2)
    result = deephash("train", "dataset=image_folder", f"dataset.root={photos}", *FAST, "dataset.labels=nothing")
    assert result.code == 2
    assert "dataset.labels of an image folder must be folders or none, got nothing" in result.err

"""The gallery: results are the nearest images by their codes, and the pictures are those of the images named."""

import numpy as np
import pytest
from PIL import Image

from deephash_cli.data.dataset import ImageArray, ImageFiles, RetrievalDataset, Vectors
from deephash_cli.files import read_json
from deephash_cli.retrieval import metrics, ranking, scoring
from deephash_cli.retrieval.codes import CodeSet, pack, unpack
from deephash_cli.retrieval.codes_folder import save_codes
from deephash_cli.training import gallery

N = 40
CLASSES = ("<script>alert(1)</script>", "=cmd()", "Käfer")


def dataset_of(images, labels):
    names = CLASSES[: labels.shape[1]]
    return RetrievalDataset("made", [f"image/{row}" for row in range(len(images))], labels, list(names), images)


@pytest.fixture
def labels():
    return (np.random.default_rng(1).random((N, len(CLASSES))) < 0.4).astype(np.uint8)


@pytest.fixture
def images():
    """Images of a single colour each, which identifies the image."""
    return ImageArray(np.broadcast_to((np.arange(N) * 5).astype(np.uint8)[:, None, None, None], (N, 3, 20, 16)))


def write(folder, dataset, query, database, hardest=(), bits=8, **evaluation):
    codes = np.random.default_rng(0).random((N, bits)) < 0.5
    sides = [
        CodeSet(pack(codes[rows]), bits, dataset.labels[rows], [dataset.ids[row] for row in rows])
        for rows in (np.array(query), np.array(database))
    ]
    save_codes(folder / "codes", *sides, {"evaluation": evaluation})
    gallery.write(folder, dataset, hardest)
    return sides


def pixels(folder):
    with Image.open(folder / "retrieval.webp") as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_results_are_the_nearest_and_the_pictures_are_theirs(tmp_path, images, labels):
    dataset = dataset_of(images, labels)
    hardest = [f"image/{row}" for row in range(9)]
    query, database = write(tmp_path, dataset, range(20), range(20, N), hardest)
    shown = read_json(tmp_path / "retrieval.json")
    assert (shown["tile"], shown["k"], len(shown["queries"])) == (16, 10, gallery.HARDEST + gallery.DRAWN)
    assert [entry["id"] for entry in shown["queries"][: gallery.HARDEST]] == hardest[: gallery.HARDEST]
    assert [entry["kind"] for entry in shown["queries"]] == ["hardest"] * gallery.HARDEST + ["drawn"] * gallery.DRAWN
    assert not {entry["id"] for entry in shown["queries"] if entry["kind"] == "drawn"} & set(hardest)

    codes, searched = unpack(query.packed, 8), unpack(database.packed, 8)
    picture = pixels(tmp_path)
    assert picture.shape == (12 * 16, 11 * 16, 3)
    for number, entry in enumerate(shown["queries"]):
        row = int(entry["id"].removeprefix("image/"))
        distances = (codes[row] != searched).sum(axis=1)
        order = np.argsort(distances, kind="stable")[:10]
        assert [result["id"] for result in entry["results"]] == [f"image/{20 + position}" for position in order]
        assert [result["distance"] for result in entry["results"]] == distances[order].tolist()
        relevant = (labels[20:] @ labels[row]) > 0
        assert [result["relevant"] for result in entry["results"]] == relevant[order].tolist()
        assert entry["labels"] == [name for name, has in zip(CLASSES, labels[row], strict=True) if has]
        (part,) = ranking.count(query.packed[[row]], database.packed, 8, labels[[row]], labels[20:])
        expected = metrics.average_precision(metrics.Histograms.of_shared(part.shared))[0]
        assert entry["average_precision"] == expected
        centres = picture[number * 16 + 8, 8::16, 0]
        assert centres == pytest.approx(5 * np.array([row, *(20 + order)]), abs=6)  # WebP changes colours slightly


def test_all_labels_must_agree_if_the_codes_are_evaluated_so(tmp_path, images, labels):
    dataset = dataset_of(images, labels)
    query, database = write(tmp_path, dataset, range(20), range(20, N), similar="all")
    result = scoring.evaluate(query, database, ks=[], map_at=[], radius=2, similar="all")
    hardest = {entry["query"]: entry["average_precision"] for entry in result["hardest_queries"]}
    shown = read_json(tmp_path / "retrieval.json")["queries"]
    assert hardest.keys() & {entry["id"] for entry in shown}
    for entry in shown:
        assert entry["average_precision"] == hardest.get(entry["id"], entry["average_precision"])
        for result in entry["results"]:
            assert result["relevant"] == (result["labels"] == entry["labels"] != [])


def test_a_query_that_is_in_the_database_does_not_find_itself(tmp_path, images, labels):
    write(tmp_path, dataset_of(images, labels), range(N), range(N))
    for entry in read_json(tmp_path / "retrieval.json")["queries"]:
        assert len(entry["results"]) == 10
        assert entry["id"] not in [result["id"] for result in entry["results"]]


def test_a_database_of_few(tmp_path, images, labels):
    write(tmp_path, dataset_of(images, labels), [0, 1, 5], [0, 1, 2])
    shown = read_json(tmp_path / "retrieval.json")
    assert [len(entry["results"]) for entry in shown["queries"]] == [2, 2, 2]
    assert pixels(tmp_path).shape == (3 * 16, 3 * 16, 3)


def test_nothing_to_find_is_not_shown(tmp_path, images, labels):
    write(tmp_path, dataset_of(images, labels), [0], [0])
    assert not (tmp_path / "retrieval.json").exists()


def test_without_labels_nothing_is_right_or_wrong(tmp_path, images):
    write(tmp_path, dataset_of(images, np.zeros((N, 0), np.uint8)), range(5), range(5, N))
    shown = read_json(tmp_path / "retrieval.json")["queries"]
    assert [entry["kind"] for entry in shown] == ["drawn"] * 5
    assert {entry["average_precision"] for entry in shown} == {None}
    assert {result["relevant"] for entry in shown for result in entry["results"]} == {None}


def test_grey_images_and_files(tmp_path, labels):
    grey = ImageArray(np.full((N, 1, 100, 80), 7, np.uint8))
    write(tmp_path / "grey", dataset_of(grey, labels), range(5), range(5, N))
    assert read_json(tmp_path / "grey" / "retrieval.json")["tile"] == gallery.TILE

    paths = []
    for row in range(N):
        Image.new("RGB", (90, 120), (5 * row, 0, 0)).save(tmp_path / f"{row}.png")
        paths.append(tmp_path / f"{row}.png")
    write(tmp_path / "files", dataset_of(ImageFiles(paths, tmp_path), labels), range(5), range(5, N))
    picture = pixels(tmp_path / "files")
    shown = read_json(tmp_path / "files" / "retrieval.json")["queries"]
    first = [5 * int(entry["id"].removeprefix("image/")) for entry in shown]
    assert picture[32::64, 32, 0] == pytest.approx(np.array(first), abs=8)


def test_vectors_have_no_pictures(tmp_path, labels):
    write(tmp_path, dataset_of(Vectors(np.zeros((N, 4), np.float32)), labels), range(5), range(5, N))
    assert not (tmp_path / "retrieval.json").exists()


def test_a_run_keeps_its_gallery_unless_told_otherwise(photos, deephash, tmp_path):
    for folder, setting in (("run", []), ("without", ["gallery=false"])):
        deephash("train", *photos, "bits=12", "trainer.max_epochs=1", f"run_dir={tmp_path / folder}", *setting)
    assert read_json(tmp_path / "run" / "retrieval.json")["queries"]
    assert not list((tmp_path / "without").glob("retrieval*"))

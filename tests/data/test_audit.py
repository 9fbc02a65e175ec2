"""What an audit counts, beside counting with loops; and how images are recognized."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deephash_cli.data import audit
from deephash_cli.data.audit import Division, differences, examine
from deephash_cli.data.dataset import ImageArray, ImageFiles, Vectors
from deephash_cli.data.fingerprints import difference_hash, fingerprints

ROLES = audit.ROLES


def smooth(number, side=64):
    """An image of soft spots, which is another one for each number."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (5, 6), np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC).convert("RGB")


def files(folder, *names):
    return ImageFiles([Path(name) for name in names], folder)


def random_division(seed):
    """A division of images of few kinds, so that contents repeat, with labels that often differ."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 12, 40)
    images = ImageArray(rng.integers(0, 256, (12, 1, 9, 9), np.uint8)[kinds])
    labels = rng.integers(0, 2, (40, 2)).astype(np.uint8)
    parts = {role: np.sort(rng.permutation(40)[:size]) for role, size in zip(ROLES, (6, 9, 20), strict=True)}
    return Division("toys", [f"i{row}" for row in range(40)], parts, labels, ["a", "b"]), images, kinds


@pytest.mark.parametrize("seed", range(4))
def test_every_count_is_that_of_a_loop(seed):
    division, images, kinds = random_division(seed)
    rows = [row for row in range(40) if any(row in division.parts[role] for role in ROLES)]
    found = examine(division, fingerprints(images, division.used, near=True))
    pairs = [(a, b) for a, b in itertools.permutations(rows, 2) if kinds[a] == kinds[b]]
    same = {}
    for row in rows:
        same.setdefault(int(kinds[row]), []).append(row)
    duplicates = found["duplicates"]
    assert duplicates["groups"] == sum(len(own) > 1 for own in same.values())
    assert duplicates["repeated"] == len(rows) - len(same)
    for one, other in (("query", "train"), ("query", "database"), ("train", "database")):
        inside = {a for a, b in pairs if a in division.parts[one] and b in division.parts[other]}
        assert duplicates[f"{one}_{other}"] == len(inside)
        overlap = {row for row in rows if row in division.parts[one] and row in division.parts[other]}
        assert found["overlap"][f"{one}_in_{other}"] == len(overlap)
    known = [{tuple(division.labels[row]) for row in own if division.labels[row].any()} for own in same.values()]
    assert duplicates["conflicts"] == sum(len(own) > 1 for own in known)
    hashes = [difference_hash(Image.fromarray(images.images[row, 0])) for row in range(40)]
    near = [
        (a, b) for a, b in itertools.combinations(rows, 2)
        if kinds[a] != kinds[b] and np.bitwise_count(hashes[a] ^ hashes[b]).sum() <= audit.NEAR
    ]  # fmt: skip
    assert found["near_duplicates"]["pairs"] == len(near)
    for role in ROLES:
        bare = sum(not division.labels[row].any() for row in division.parts[role])
        assert found["parts"][role]["without_label"] == bare
        assert sum(found["parts"][role]["labels_per_image"]["histogram"].values()) == len(division.parts[role])
        for column, name in enumerate("ab"):
            assert found["per_class"][name][role] == sum(division.labels[row, column] for row in division.parts[role])
    assert found["unused"] == 40 - len(rows)


def test_a_shrunk_and_compressed_image_is_near_and_another_one_is_not(tmp_path):
    for number in range(6):
        smooth(number).save(tmp_path / f"{number}.png")
    smooth(0).resize((50, 50)).save(tmp_path / "near.jpg", quality=60)
    images = files(tmp_path, *(f"{number}.png" for number in range(6)), "near.jpg")
    prints = fingerprints(images, np.arange(7), near=True)
    assert [others.tolist() for others in prints.near(2)] == [[6], [], [], [], [], [], [0]]
    assert len(np.unique(prints.groups())) == 7
    mirrored = difference_hash(smooth(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert np.bitwise_count(mirrored ^ difference_hash(smooth(0))).sum() > 2


def test_equal_bytes_equal_pixels_and_equal_vectors_have_one_group(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        smooth(name == "c.png").save(tmp_path / name)
    images = fingerprints(files(tmp_path, "a.png", "b.png", "c.png"), np.arange(3), near=False)
    pixels = fingerprints(ImageArray(np.array([[[[1]]], [[[1]]], [[[2]]]], np.uint8)), np.arange(3), near=False)
    vectors = fingerprints(Vectors(np.array([[0.1], [0.1], [0.2]], np.float64)), np.arange(3), near=True)
    for prints in (images, pixels, vectors):
        assert prints.groups().tolist() in ([0, 0, 1], [1, 1, 0])
        assert prints.hashes is None


def test_files_that_cannot_be_read_are_named_and_are_no_duplicates(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "empty2.png").touch()
    images = files(tmp_path, "gone.png", "gone2.png", "empty.png", "empty2.png")
    prints = fingerprints(images, np.arange(4), near=True)
    assert [position for position, _ in prints.unreadable] == [0, 1, 2, 3]
    assert prints.unreadable[0][1] == "cannot be read: No such file or directory"
    assert len(np.unique(prints.groups())) == 4
    assert not any(len(others) for others in prints.near(2))


def test_labels_are_compared_by_the_names_of_the_classes():
    labels = np.array([[1, 0], [0, 1], [1, 1]], np.uint8)
    parts = {"query": np.array([0]), "train": np.array([1, 2]), "database": np.array([1, 2])}
    first = Division("first", ["x", "y", "z"], parts, labels, ["a", "b"], {"sha256": "1"})
    same = Division("second", ["z", "x", "y"], {"query": np.array([1]), "database": np.array([0, 2])},
                    labels[[2, 0, 1]][:, ::-1], ["b", "a"], {"sha256": "1"})  # fmt: skip
    found = differences(first, same)
    assert (found["different_labels"], found["moved"], found["same_digest"]) == (0, 0, True)
    assert found["parts"].keys() == {"query", "database"}
    other = Division("third", ["x", "y", "w"], {**parts, "query": np.array([1]), "train": np.array([0, 2])},
                     np.array([[0, 1], [0, 1], [1, 1]], np.uint8), ["a", "b"])  # fmt: skip
    found = differences(first, other)
    assert (found["different_labels"], found["moved"]) == (1, 2)
    assert (found["only_in_first"], found["only_in_second"]) == (1, 1)
    assert found["examples"] == {
        "only_in_first": ["z"], "only_in_second": ["w"], "moved": ["x", "y"], "different_labels": ["x"]
    }  # fmt: skip
    assert found["same_digest"] is None
    wider = Division("fourth", ["x", "y", "z"], parts, np.ones((3, 3), np.uint8), ["a", "b", "c"])
    assert differences(first, wider)["labels"] == "2 and 3 label columns cannot be compared"
    assert differences(first, Division("fifth", ["x"], parts={"query": np.array([0])}))["different_labels"] is None

"""Looking over a data set: all files that cannot be read are found at once, and images that show nothing are named."""

import csv
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deephash_cli.data import inspection
from deephash_cli.data.dataset import ImageArray, ImageFiles, RetrievalDataset
from deephash_cli.data.image_folder import image_folder
from deephash_cli.errors import DataError


@pytest.fixture
def made(tmp_path):
    """Return a function that makes a data set of image files, of the given sides, in two classes by turns."""

    def make(*sides, official=None):
        for row, side in enumerate(sides):
            Image.new("L", (side, side), 200).save(tmp_path / f"{row}.png")
        paths = [tmp_path / f"{row}.png" for row in range(len(sides))]
        ids = [path.name for path in paths]
        labels = np.eye(2, dtype=np.uint8)[np.arange(len(ids)) % 2]
        return RetrievalDataset("made", ids, labels, ["a", "b"], ImageFiles(paths, tmp_path), official)

    return make


def spoil(folder, *rows):
    for row in rows:
        (folder / f"{row}.png").write_bytes(b"<html>")


def test_unreadable_images_leave_the_data_set(made, tmp_path):
    dataset = made(*[70] * 6, official={"train": np.array([0, 1, 3]), "query": np.array([5, 2])})
    spoil(tmp_path, 1, 4)
    bad = inspection.unreadable_images(dataset)
    assert [name for name, _ in bad] == ["1.png", "4.png"]
    assert all("it is none of JPEG" in reason for _, reason in bad)
    left = inspection.without(dataset, bad)
    assert left.ids == ["0.png", "2.png", "3.png", "5.png"]
    assert left.labels.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert left.official is not None
    assert {role: rows.tolist() for role, rows in left.official.items()} == {"train": [0, 2], "query": [3, 1]}
    assert left.unreadable == bad
    assert inspection.unreadable_images(left) == []
    assert inspection.without(left, []) is left


def test_small_images_without_the_unreadable_ones_are_held_in_memory(made, tmp_path):
    dataset = made(*[16] * 5)
    spoil(tmp_path, 2)
    left = inspection.without(dataset, inspection.unreadable_images(dataset))
    assert isinstance(left.images, ImageArray)
    assert len(left) == 4


def test_none_can_be_read(made, tmp_path):
    dataset = made(70, 70)
    spoil(tmp_path, 0, 1)
    with pytest.raises(DataError, match=r"none of the 2 images can be read; the first one is 0\.png, which cannot"):
        inspection.without(dataset, inspection.unreadable_images(dataset))


def test_the_message_names_five_and_the_file_all(tmp_path):
    bad = [(f"{row}\udcff.png", "cannot be read: it is empty") for row in range(7)]
    one = str(inspection.refusal(bad[:1], 9, tmp_path / "list.csv"))
    assert one.startswith("image 0\udcff.png cannot be read: it is empty; replace or remove it, or set bad_images=skip")
    five = str(inspection.refusal(bad[:5], 9, tmp_path / "list.csv"))
    assert "5 of the 9 images cannot be read: 0\udcff.png, 1\udcff.png, 2" in five
    assert five.count("it is empty") == 1
    assert not (tmp_path / "list.csv").exists()
    seven = str(inspection.refusal(bad, 9, tmp_path / "list.csv", [("a.svg", "is no image")]))
    assert f"4\udcff.png (it is empty) and 2 more, which {tmp_path / 'list.csv'} lists; replace or remove" in seven
    with (tmp_path / "list.csv").open() as file:
        names = [row["id"] for row in csv.DictReader(file)]
    assert names == ["a.svg", *(f"{row}\\xff.png" for row in range(7))]


def png_of_three_times_16_bits(values):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["grey.png", "grey.tif", "colour.png"])
@pytest.mark.parametrize(("bits", "warned"), [(10, True), (12, True), (14, True), (16, False)])
def test_few_of_16_bits_are_said(tmp_path, kind, bits, warned):
    values = np.linspace(0, 2**bits - 1, 80 * 90).reshape(80, 90).astype(np.uint16)
    if kind == "colour.png":
        (tmp_path / kind).write_bytes(png_of_three_times_16_bits(np.stack([values] * 3, axis=2)))
    else:
        Image.fromarray(values).save(tmp_path / kind)
    Image.new("L", (80, 90)).save(tmp_path / "black.png")  # an image of 8 bits may be black
    found = inspection.peculiarities(image_folder(tmp_path))
    assert len(found) == warned
    if warned:
        most = (2**bits - 1) >> 8
        assert "1 of 2 images looked at are images with 16 bits per value that are nearly black" in found[0]
        assert f"{kind} has no value above {most} of 255" in found[0]
        assert "scale their values to the full range of 16 bits, from 0 to 65535" in found[0]


def test_few_of_16_bits_are_said_for_small_images_too(tmp_path):
    for row in range(3):
        Image.fromarray(np.full((28, 28), 4095 - row, np.uint16)).save(tmp_path / f"{row}.png")
    dataset = image_folder(tmp_path)
    assert isinstance(dataset.images, ImageArray)
    assert "3 of 3 images looked at are images that are nearly black" in inspection.peculiarities(dataset)[0]
    Image.fromarray(np.full((28, 28), 65535, np.uint16)).save(tmp_path / "1.png")
    assert inspection.peculiarities(image_folder(tmp_path)) == []


def test_images_of_a_few_pixels_are_said(made, tmp_path):
    Image.new("RGB", (3000, 2)).save(tmp_path / "flat.png")
    dataset = made(80, 1, 7, 8)
    assert inspection.peculiarities(dataset) == [
        "2 of 4 images have fewer than 8 pixels on a side, too few to show anything: 1.png, 2.png; remove them if they "
        "are not meant"
    ]
    assert "2 of 5" not in inspection.peculiarities(image_folder(tmp_path))[0]
    assert "flat.png" in inspection.peculiarities(image_folder(tmp_path))[0]

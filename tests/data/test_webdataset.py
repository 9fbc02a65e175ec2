"""Shards in the form of WebDataset: samples are found once and read by position, and what is wrong is said."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK
from PIL import Image

from deephash_cli.cache import cache_folder
from deephash_cli.data import webdataset as module
from deephash_cli.data.decoding import ImageError
from deephash_cli.data.fingerprints import fingerprints
from deephash_cli.data.image_folder import image_folder
from deephash_cli.data.inspection import peculiarities, unreadable_images, without
from deephash_cli.data.preprocessing import central_square
from deephash_cli.data.webdataset import expanded, webdataset
from deephash_cli.errors import ConfigError, DataError


def picture(number: int, side: int = 20) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    pixels[:, : side // 2] = 60 * (number % 3)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write(path: Path, files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None) -> None:
    """Write a shard; ``change`` edits the header of each file."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if change:
                change(member)
            tar.addfile(member, io.BytesIO(content))


def samples(rows: range) -> dict[str, bytes]:
    """Three files for each sample, and others that are not looked at."""
    files = {"__index__": b"", "a/.hidden.png": b""}
    for row in rows:
        files[f"a/{row:03d}.png"] = picture(row)
        files[f"a/{row:03d}.seg.png"] = b"a mask"
        files[f"a/{row:03d}.cls"] = b"%d\n" % (row % 3)
        files[f"a/{row:03d}.txt"] = f"class {row % 3}; all".encode()
        files[f"a/{row:03d}.json"] = json.dumps({"label": row % 3, "width": 24}).encode()
    return files


@pytest.fixture
def shards(tmp_path) -> Path:
    for number in range(3):
        write(tmp_path / f"s-{number:02d}.tar", samples(range(8 * number, 8 * number + 8)))
    return tmp_path


def test_shards_are_the_same_as_a_folder(shards):
    dataset = webdataset(str(shards), "s-{00..02}.tar", "cls")
    folder = shards / "folder"
    for row in range(24):
        (folder / str(row % 3)).mkdir(parents=True, exist_ok=True)
        (folder / str(row % 3) / f"{row:03d}.png").write_bytes(picture(row))
    files = image_folder(folder)
    assert dataset.ids == [f"s-{row // 8:02d}.tar/a/{row:03d}" for row in range(24)]
    assert dataset.labels.argmax(1).tolist() == [row % 3 for row in range(24)]
    by_row = {int(Path(name).stem): position for position, name in enumerate(files.ids)}
    rows = np.array([5, 20, 0, 5])
    same = np.array([by_row[row] for row in rows.tolist()])
    assert np.array_equal(dataset.images.batch(rows, 16), files.images.batch(same, 16))
    some = dataset.subset(np.array([20, 3]))
    prepared = pickle.loads(pickle.dumps(some.images.prepared(central_square(12))))
    assert np.array_equal(prepared.batch(np.arange(2)), files.images.batch(np.array([by_row[20], by_row[3]]), 12))
    assert some.images.digest() != dataset.images.digest()
    assert peculiarities(dataset) == []


@pytest.mark.parametrize(
    ("kind", "names"),
    [("cls", ["class 0", "class 1", "class 2"]), ("json", ["class 0", "class 1", "class 2"]),
     ("txt", ["all", "class 0", "class 1", "class 2"]), ("none", [])],
)  # fmt: skip
def test_labels_are_in_a_file_of_each_sample(shards, kind, names):
    dataset = webdataset(str(shards), "s-01.tar", kind)
    assert dataset.class_names == names
    assert dataset.labels.sum(axis=1).tolist() == [{"txt": 2, "none": 0}.get(kind, 1)] * 8
    for row in range(8) if names else ():
        assert dataset.labels[row, names.index(f"class {(8 + row) % 3}")] == 1


def test_json_has_names_too(tmp_path):
    contents = [{"labels": ["red", "shoe; boot"]}, {"label": "red"}, {}]
    files = {f"{n}.{end}": c for n, j in enumerate(contents) for end, c in (("jpg", picture(n)), ("json", dumped(j)))}
    write(tmp_path / "a.tar", files)
    dataset = webdataset(None, str(tmp_path / "a.tar"), "json")
    assert dataset.class_names == ["red", "shoe; boot"]
    assert dataset.labels.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert dataset.ids == ["a.tar/0", "a.tar/1", "a.tar/2"]  # the same on every machine


def dumped(content: object) -> bytes:
    return json.dumps(content).encode()


def test_an_archive_is_looked_through_once(shards, monkeypatch):
    first = webdataset(str(shards), "s-00.tar", "cls")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_look_through", None)
        again = webdataset(str(shards), "s-00.tar", "cls")
        assert again.ids == first.ids
        assert again.images.digest() == first.images.digest()
    for kept in (cache_folder() / "shards").iterdir():
        kept.write_text("{}")  # damaged
    assert webdataset(str(shards), "s-00.tar", "cls").ids == first.ids
    write(shards / "s-00.tar", samples(range(2)))
    changed = webdataset(str(shards), "s-00.tar", "cls")
    assert len(changed) == 2
    assert changed.images.digest() != first.images.digest()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "a.tar", {"0.jpg": picture(0), "0.cls": b"0", "1.jpg": picture(1)[:200], "1.cls": b"1"})
    dataset = webdataset(str(tmp_path), "a.tar", "cls")
    with pytest.raises(ImageError, match=r"a\.tar/1\.jpg cannot be read: .*; replace or remove the file"):
        dataset.images.load(1, 8)
    bad = unreadable_images(dataset)
    assert [name for name, _ in bad] == ["a.tar/1"]
    assert without(dataset, bad).ids == ["a.tar/0"]
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ImageError, match=r"a\.tar/0\.jpg cannot be read: No such file"):
        dataset.images.load(0, 8)
    with pytest.raises(ImageError, match=r"a\.tar cannot be read: No such file"):
        dataset.images.digest()


def test_patterns():
    assert expanded("a.tar") == ["a.tar"]
    assert expanded("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expanded("{1..2}/{0..1}.tar") == ["1/0.tar", "1/1.tar", "2/0.tar", "2/1.tar"]
    for pattern, said in {
        "a-{3..2}.tar": "the range {3..2}, which must go up",
        "a-{0..999999}.tar": "at most 100000 numbers",
        "{0..999}{0..999}.tar": "more than 100000 archives",
        "https://host/a.tar": "must be files on this machine, got https://host/a.tar",
        "pipe:cat a.tar": "must be files on this machine",
    }.items():
        with pytest.raises(DataError, match=said.replace("{", r"\{").replace(".", r"\.")):
            expanded(pattern)


def link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0


BROKEN: dict[str, tuple[dict[str, bytes], Callable[[tarfile.TarInfo], None] | None, str]] = {
    "a link": ({"0.jpg": b""}, link, "0.jpg is a link or a special file"),
    "no image": ({"0.jpg": b"", "1.cls": b"1"}, None, "1 samples without an image, such as 1; an image ends in"),
    "two images": ({"0.jpg": b"", "0.png": b""}, None, "0.png is a second image of its sample"),
    "not UTF-8": ({"0.jpg": b"", "0.cls": b"\xff"}, None, "0.cls is not UTF-8 text"),
    "a huge label": ({"0.jpg": b"", "0.cls": b"1" * (2**20 + 1)}, None, "more than the 1048576 allowed for a label"),
    "no labels": ({"0.jpg": b"", "1.jpg": b""}, None, "none of the 2 samples has a label in a file .cls; set"),
    "a label missing": ({"0.jpg": b"", "0.cls": b"1", "1.jpg": b""}, None, "a.tar/1.cls is missing or empty"),
    "a word": ({"0.jpg": b"", "0.cls": b"cat"}, None, "a.tar/0.cls: labels must be 0 or 1, or one class number, got"),
    "nothing": ({}, None, "dataset.shards=a.tar has no image"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_shard_is_said(tmp_path, case):
    files, change, said = BROKEN[case]
    write(tmp_path / "a.tar", files, change)
    with pytest.raises(DataError) as caught:
        webdataset(str(tmp_path), "a.tar", "cls")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_there_twice_or_too_large(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.jpg", "0.JPG"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match=r"0\.JPG is in the shard twice"):
        webdataset(str(tmp_path), "a.tar", "none")
    write(tmp_path / "a.tar", {"0.jpg": b"12345"})
    monkeypatch.setattr(module, "_LARGEST_IMAGE", 4)
    with pytest.raises(DataError, match=r"0\.jpg has 5 bytes, more than the 4 allowed for an image"):
        webdataset(str(tmp_path), "a.tar", "none")


@pytest.mark.parametrize("cut", range(0, 10240, 512))
def test_a_shard_that_ends_too_early_is_refused(tmp_path, cut):
    write(tmp_path / "a.tar", {f"{row}.jpg": bytes([row]) * 900 for row in range(3)})
    content = (tmp_path / "a.tar").read_bytes()
    assert len(content) == 10240
    (tmp_path / "a.tar").write_bytes(content[: cut + 100])
    if cut > 3 * 1536:  # what follows the first block of zeros says nothing
        assert len(webdataset(str(tmp_path), "a.tar", "none")) == 3
        return
    with pytest.raises(DataError, match=r"shard .*a\.tar.* again$") as caught:
        webdataset(str(tmp_path), "a.tar", "none")
    assert "\n" not in str(caught.value)


def test_a_damaged_header_is_not_the_end(tmp_path):
    write(tmp_path / "a.tar", {"0.jpg": b"1", "1.jpg": b"2"})
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[1024 + 150] ^= 1  # in the checksum of the second header
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(
        DataError, match=r"a\.tar cannot be used: it is damaged at byte 1024; download or write it again"
    ):
        webdataset(str(tmp_path), "a.tar", "none")


def test_archives_that_were_put_one_after_another(tmp_path):
    """The samples of the second one would be missing."""
    write(tmp_path / "a.tar", {"0.jpg": b"1"})
    write(tmp_path / "b.tar", {"1.jpg": b"2"})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    with pytest.raises(DataError, match=r"it goes on after its end at byte 1024, as if archives were put one after"):
        webdataset(str(tmp_path), "a.tar", "none")


def test_ids_do_not_depend_on_the_spelling_of_a_path(tmp_path):
    write(tmp_path / "a.tar", {"0.jpg": b"1"})
    for spelling in ("a.tar", "./a.tar", "b/../a.tar", str(tmp_path / "a.tar")):
        (tmp_path / "b").mkdir(exist_ok=True)
        assert webdataset(str(tmp_path), spelling, "none").ids == ["a.tar/0"]


def test_other_mistakes(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    (tmp_path / "a.tar").mkdir()
    for shards, labels, kind, said in (
        (None, "cls", DataError, "shards need dataset.shards="),
        ("b.tar", "cls", DataError, "b.tar cannot be read: No such file or directory; correct dataset.shards or"),
        ("a.tar", "cls", DataError, "a.tar is not a file; expected a tar archive"),
        ("a.tar.gz", "cls", DataError, "a.tar.gz cannot be read as a tar archive that is not compressed: "),
        ("b.tar", "class", ConfigError, "dataset.labels of shards must be cls or json or txt or none, got class"),
    ):
        with pytest.raises(kind, match=said):
            webdataset(str(tmp_path), shards, labels)
    for content, said in ((b"[", "0.json is not JSON: "), (b"[1]", "must be a JSON object with the key label"),
                          (b'{"label": 1, "label": 2}', "0.json is not JSON: a key is there twice; write it again"),
                          (b'{"label": 1, "labels": [2]}', "0.json has both label and labels; keep the one"),
                          (b'{"label": 1.5}', "must have a class number in every sample, or a name")):  # fmt: skip
        write(tmp_path / "j.tar", {"0.jpg": b"", "0.json": content})
        with pytest.raises(DataError, match=said):
            webdataset(str(tmp_path), "j.tar", "json")


def test_a_run_on_shards_is_encoded_again_with_the_same_codes(deephash, shards):
    data = ["dataset=webdataset", f"dataset.root={shards}", "dataset.shards=s-{00..02}.tar"]
    result = deephash("train", *data, *QUICK, "method=itq", "bits=8", "run_dir=run", "loader.num_workers=1")
    assert result.code == 0, result.err
    assert "webdataset: 24 images, 3 classes: class 0, class 1, class 2" in result.out
    assert deephash("encode", "run=run", *data, "output=codes", "num_workers=1", "accelerator=cpu").code == 0
    names = Path("codes/database_ids.txt")
    assert len(names.read_text().splitlines()) == 24
    query = Path("query.png")
    query.write_bytes(picture(9))
    found = deephash("search", "run=run", "codes=codes", "query=query.png", "k=3", "picture=found.png")
    assert found.code == 0, found.err
    assert "s-01.tar/a/009" in found.out


def test_equal_content_in_shards_is_found(tmp_path):
    write(tmp_path / "s.tar", {"a.png": picture(0), "b.png": picture(1), "c.png": picture(0), "d.png": b"no image"})
    images = webdataset(tmp_path, "s.tar", "none").images
    found = fingerprints(images, np.arange(4), near=True)
    a, b, c, d = found.groups()
    assert a == c
    assert len({a, b, d}) == 3
    assert [position for position, _ in found.unreadable] == [3]
    (tmp_path / "s.tar").unlink()
    assert len(fingerprints(images, np.arange(4), near=False).unreadable) == 4

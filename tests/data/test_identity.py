"""One image is one row, however its path is spelled, and queries are found again in the database."""

import os
import unicodedata

import pytest

from deephash_cli.data.identity import ImageNames, listed
from deephash_cli.errors import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Make a folder of four files, one of them linked twice, and change to it."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "caf\u00e9.png"):
        (folder / name).write_bytes(b"x")
    (folder / "soft.png").symlink_to("a.png")
    os.link(folder / "a.png", folder / "hard.png")
    (tmp_path / "outside.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to("root")
    monkeypatch.chdir(folder)
    return folder


def rows(images, *paths):
    return [images.rows([path], ["l.txt:1"], "remove one")[0] for path in paths]


def test_spellings_of_one_image(root):
    images = ImageNames(root)
    spellings = ("a.png", "./a.png", "sub/../a.png", ".//a.png", str(root / "a.png"), "../root/a.png", "soft.png")
    assert rows(images, *spellings, "hard.png", f"{root.parent}/link/a.png") == [0] * 9
    assert rows(images, "sub/b.png", "sub\\b.png", "cafe\u0301.png", "caf\u00e9.png") == [1, 1, 2, 2]
    assert images.ids == ["a.png", "sub/b.png", "caf\u00e9.png"]
    assert rows(images, "../outside.png", str(root.parent / "outside.png")) == [3, 3]
    assert images.ids[3] == "../outside.png"


@pytest.mark.parametrize(
    ("path", "identifier"),
    [
        ("./a.png", "a.png"),
        ("sub/../a.png", "a.png"),
        ("{root}/sub/b.png", "sub/b.png"),
        ("{root}/../link/a.png", "a.png"),
        ("../root/sub/./b.png", "sub/b.png"),
        ("../outside.png", "../outside.png"),
        ("{root}/../outside.png", "{parent}/outside.png"),
        ("soft.png", "soft.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
    ],
)
def test_ids_are_short_paths_below_the_root(root, path, identifier):
    for folder in (root, root.parent / "link"):
        images = ImageNames(folder)
        rows(images, path.format(root=root))
        assert images.ids == [identifier.format(parent=root.parent)]


def test_a_link_and_back_is_not_the_same_folder(root):
    (root / "elsewhere").symlink_to("../other/deep")
    (root.parent / "other" / "deep").mkdir(parents=True)
    (root.parent / "other" / "a.png").write_bytes(b"y")
    images = ImageNames(root)
    assert rows(images, "a.png", "elsewhere/../a.png") == [0, 1]
    assert images.ids == ["a.png", "elsewhere/../a.png"]


def test_a_file_name_in_decomposed_form_is_opened(root):
    name = unicodedata.normalize("NFD", "\u00fcber.png")
    (root / name).write_bytes(b"x")
    images = ImageNames(root)
    assert rows(images, "\u00fcber.png", name) == [0, 0]
    assert (root / images.ids[0]).is_file()


def test_missing_files_are_named_together(root):
    images = ImageNames(root)
    rows(images, "a.png", "none.png", "./none.png", "a.png/x")
    with pytest.raises(
        DataError, match=r"t\.csv: 2 of the images named do not exist under .*: none\.png, a\.png/x; set"
    ):
        images.require_all("t.csv")
    absolute = ImageNames(root)
    rows(absolute, "/none/x.png")
    with pytest.raises(DataError, match=r"1 of the images named do not exist: /none/x\.png; correct the paths"):
        absolute.require_all("t.csv")
    nowhere = ImageNames(root / "none")
    rows(nowhere, "x.png")
    with pytest.raises(DataError, match=r"dataset\.root=.*none is not a folder"):
        nowhere.require_all("t.csv")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("x" * 300, "l.txt:1: the path 'x.*cannot be opened: File name too long"),
        ("a\0.png", "l.txt:1: .* cannot be opened"),
        ("sub", "l.txt:1: sub is a folder, expected an image file"),
        ("/dev/null", "l.txt:1: /dev/null is no ordinary file"),
    ],
)
def test_paths_that_cannot_be_opened(root, path, sentence):
    with pytest.raises(DataError, match=sentence):
        rows(ImageNames(root), path)


def test_text_lists(root):
    file = root / "list.txt"
    file.write_bytes(b"\xef\xbb\xbf./a.png\r\n\r\nsub/b.png\r\nnone.png\r\n" + b"x" * 300 + b"\r\n")
    assert listed(file, root).ids == ["a.png", "sub/b.png", "none.png", "x" * 300]
    file.write_text("a.png\nsub/b.png\nhard.png\n")
    with pytest.raises(DataError, match=r"list\.txt:3: hard\.png is already in line 1, where it is called a\.png;"):
        listed(file, root)
    file.write_bytes("a.png\n".encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16 text, expected UTF-8"):
        listed(file, root)

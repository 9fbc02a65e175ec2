"""Archives: what is unpacked, and what is refused before anything is written."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile

import pytest

from deephash_cli.data import archives
from deephash_cli.data.archives import extract
from deephash_cli.errors import DataError


def tar_of(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, change in members:
            info = tarfile.TarInfo(name)
            info.size = 3
            for key, value in change.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(b"abc") if info.size == 3 else None)
    return path


def zip_of(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for name, change in members:
            info = zipfile.ZipInfo(name)
            for key, value in () if isinstance(change, bytes) else change.items():
                setattr(info, key, value)
            content.writestr(info, change if isinstance(change, bytes) else b"abc", info.compress_type)
    return path


KINDS = {
    "a.tar": lambda path, *members: tar_of(path, *members, mode="w"),
    "a.tar.gz": tar_of,
    "a.zip": zip_of,
}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_archives(tmp_path, kind):
    archive = KINDS[kind](tmp_path / kind, ("top/one", {}), ("top/below/two", {}), ("other", {}))
    (tmp_path / "out" / "top").mkdir(parents=True)
    (tmp_path / "out" / "top" / "kept").write_text("mine")
    (tmp_path / "out" / "top" / "one").write_text("old")
    extract(archive, tmp_path / "out", 10, 100)
    found = {path.relative_to(tmp_path / "out").as_posix(): path.read_text() for path in files(tmp_path / "out")}
    assert found == {"top/one": "abc", "top/below/two": "abc", "other": "abc", "top/kept": "mine"}


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    archive = tar_of(tmp_path / "a.tar.gz", ("one", {}))
    left = tmp_path / "out" / ".a.tar.gz.abcdefgh.tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    extract(archive, tmp_path / "out", 10, 100)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one"]


NAMES = {
    "parent": "../evil", "deep_parent": "a/../../evil", "absolute": "/tmp/evil", "windows": "..\\evil",
    "drive": "c:evil",
}  # fmt: skip
EVIL_TAR = {
    **{kind: (name, {}) for kind, name in NAMES.items()},
    "symlink": ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}),
    "hardlink": ("link", {"type": tarfile.LNKTYPE, "linkname": "../evil", "size": 0}),
    "fifo": ("pipe", {"type": tarfile.FIFOTYPE, "size": 0}),
    "device": ("device", {"type": tarfile.CHRTYPE, "size": 0}),
}
EVIL_ZIP = {
    **{kind: (name, {}) for kind, name in NAMES.items()},
    "symlink": ("link", {"external_attr": (stat.S_IFLNK | 0o777) << 16}),
    "device": ("device", {"external_attr": (stat.S_IFCHR | 0o666) << 16}),
    "compression": ("one", {"compress_type": zipfile.ZIP_LZMA}),
}


@pytest.mark.parametrize(("make", "evil"), [
    *[pytest.param(tar_of, evil, id=f"tar-{kind}") for kind, evil in EVIL_TAR.items()],
    *[pytest.param(zip_of, evil, id=f"zip-{kind}") for kind, evil in EVIL_ZIP.items()],
])  # fmt: skip
def test_evil_archives_write_nothing(tmp_path, make, evil):
    make(tmp_path / "evil", ("good", {}), evil)
    with pytest.raises(DataError, match=r"^[^\n]*; it was not unpacked: get the archive from its authors$"):
        extract(tmp_path / "evil", tmp_path / "x" / "out", 10, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["evil"]


def test_an_encrypted_zip_is_refused(tmp_path):
    path = zip_of(tmp_path / "a.zip", ("one", {}))
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags in both headers
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="or encrypted or unusually compressed"):
        extract(path, tmp_path / "out", 10, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_archives_that_are_too_large_or_damaged(tmp_path, kind):
    path = KINDS[kind](tmp_path / kind, ("one", {}), ("two", {}))
    with pytest.raises(DataError, match="more than the 1 files or 100 bytes"):
        extract(path, tmp_path / "out", 1, 100)
    with pytest.raises(DataError, match="more than the 10 files or 5 bytes"):
        extract(path, tmp_path / "out", 10, 5)
    for content in (b"", b"<html>", b"PK", b"\x1f\x8b", path.read_bytes()[:60]):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(DataError, match=r"bad could not be unpacked .*; delete it and download it again"):
            extract(tmp_path / "bad", tmp_path / "out", 10, 100)
    assert not (tmp_path / "out").exists()


DAMAGED_ENDS = {
    "damaged header": (lambda tar: tar[:1024] + b"?" + tar[1025:], "it is damaged at byte 1024"),
    "cut in a header": (lambda tar: tar[:1124], "it is damaged at byte 1024"),
    "cut after a member": (lambda tar: tar[:2048], "it ends too early, at byte 2048"),
    "two archives": (lambda tar: tar + tar, "it goes on after its end at byte 2048"),
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", DAMAGED_ENDS)
def test_a_tar_archive_is_read_to_its_end(tmp_path, kind, compress):
    """Python takes a damaged header for the end: the members after it would be missing."""
    change, message = DAMAGED_ENDS[kind]
    path = tar_of(tmp_path / "a.tar", ("one", {}), ("two", {}), mode="w")
    path.write_bytes(compress(change(path.read_bytes())))
    with pytest.raises(DataError, match=rf"could not be unpacked \({message}.*; delete it and download it again"):
        extract(path, tmp_path / "out", 10, 100)
    assert not (tmp_path / "out").exists()


def test_a_damaged_member_leaves_nothing_behind(tmp_path):
    path = zip_of(tmp_path / "a.zip", ("top/one", {}))
    content = path.read_bytes()
    start = content.index(b"top/one") + len("top/one")
    path.write_bytes(content[:start] + b"\xff" + content[start + 1 :])
    with pytest.raises(DataError, match="could not be unpacked"):
        extract(path, tmp_path / "out", 10, 100)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_zip_bomb_that_lies_about_its_size(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("zeros", b"\0" * 10**6)
    with pytest.raises(DataError, match="more than the 10 files or 1000 bytes"):
        extract(path, tmp_path / "out", 10, 1000)
    size = struct.pack("<L", 10**6)
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<L", 900)))
    with pytest.raises(DataError, match="could not be unpacked"):
        extract(path, tmp_path / "out", 10, 1000)
    assert files(tmp_path / "out") == []


def test_a_tar_bomb_in_a_header(tmp_path):
    """A name may have its own length in a header, and Python reads it at once."""
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**33
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(name.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10_000))
    with pytest.raises(DataError, match="it has a header of 8589934592 bytes"):
        extract(tmp_path / "a.tar.gz", tmp_path / "out", 10, 100)


def test_a_folder_that_cannot_be_made(tmp_path):
    path = tar_of(tmp_path / "a.tar.gz", ("one", {}))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match=r"a\.tar\.gz could not be unpacked into .*out: File exists; correct that"):
        extract(path, tmp_path / "out", 10, 100)


def test_a_full_disk(tmp_path, monkeypatch):
    path = tar_of(tmp_path / "a.tar.gz", ("one", {}))
    monkeypatch.setattr(archives, "free_space", lambda _: 2)
    with pytest.raises(DataError, match=r"take 0\.0 kB, but only 0\.0 kB are free in .*; make room there, or set"):
        extract(path, tmp_path / "out", 10, 100)
    assert list((tmp_path / "out").iterdir()) == []

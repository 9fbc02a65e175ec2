"""Unpack archives without trusting them."""

import contextlib
import gzip
import io
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from deephash_cli.console import progress
from deephash_cli.errors import DataError, short
from deephash_cli.files import free_space, megabytes, reason, remove_leftovers, temporary_folder

_BLOCK = 1 << 20
_LARGEST_HEADER = 1 << 24  # bytes that a tar archive may have Python read at once; a name has a few hundred
_GZIP, _ZIP = b"\x1f\x8b", b"PK"
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError)
_ENCRYPTED = 1  # bit in the flags of a member of a zip archive


class _Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def extract(archive: Path, folder: Path, max_files: int, max_bytes: int) -> None:
    """Unpack an archive of plain files and folders into a folder, replacing files of the same names.

    Tar archives, as they are or compressed with gzip, and zip archives are read. Every member is checked before the
    first one is written. Links, devices, absolute names and ``..`` are refused, no matter who made the archive. A new
    folder appears at once with all its files, so an interrupted call leaves none that is incomplete.

    Args:
        archive: Path of the archive.
        folder: Folder to unpack into.
        max_files: Largest number of members accepted.
        max_bytes: Largest total size of the unpacked files accepted, in bytes.

    Raises:
        DataError: If the archive is damaged or too large, contains anything that a data set does not need, or does not
            fit on the disk.
    """
    try:
        with _opened(archive) as found:
            members = _checked(archive, found, max_files, max_bytes)
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder, archive.name)
            total = sum(member.size for member in members)
            if total > (free := free_space(folder)):
                raise DataError(
                    f"the files in {archive} take {megabytes(total)}, but only {megabytes(free)} are free in {folder}; "
                    "make room there, or set dataset.root to a folder on another disk"
                )
            with temporary_folder(folder / archive.name) as temporary:
                try:
                    _write(archive, members, temporary, total)
                    _move(temporary, folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, and not of a damaged archive
            raise DataError(
                f"{archive} could not be unpacked into {folder}: {reason(error, folder)}; correct that and try again"
            ) from error
        raise DataError(f"{archive} could not be unpacked ({error}); delete it and download it again") from error


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member | str]]:
    """Open an archive. Yields its members one after another: files, and of each thing that is no file its name."""
    with archive.open("rb") as file:
        head = file.read(2)
        file.seek(0)
        if head == _ZIP:
            with zipfile.ZipFile(file) as content:
                yield _zip_members(content)
        else:
            with gzip.GzipFile(fileobj=file) if head == _GZIP else file as plain:
                limited = _Limited(plain)
                with tarfile.open(fileobj=limited, mode="r:") as content:  # type: ignore[arg-type]
                    yield _tar_members(content, limited)


class _Limited:
    """A file that is never read in large pieces, because a tar archive may claim to have a header of any size.

    Attributes:
        last: What was read last; to read it once more, a compressed file would be unpacked again from its start.
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.seek, self.tell = file.seek, file.tell
        self.last = b""
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes.

        Raises:
            ValueError: If this is more than any archive needs.
        """
        if not 0 <= size <= _LARGEST_HEADER:
            raise ValueError(f"it has a header of {size} bytes")
        self.last = self._read(size)
        return self.last


def fault_at_end(last: bytes, read: Callable[[int], bytes], offset: int) -> str:
    """Say what is wrong with the end of a tar archive, which has a block of zeros and then nothing but zeros.

    The library takes a damaged header and the end of the file for the end of the archive, so members would be lost.

    Args:
        last: What was read where the next header would be, at most a block.
        read: Reads on from where ``last`` ends, up to so many bytes.
        offset: Where ``last`` begins, in bytes.

    Returns:
        What is wrong, or "" if nothing is.
    """
    if last.strip(b"\0"):
        return f"it is damaged at byte {offset}"
    if len(last) < tarfile.BLOCKSIZE:
        return f"it ends too early, at byte {offset + len(last)}"
    while block := read(_BLOCK):
        if block.strip(b"\0"):
            return f"it goes on after its end at byte {offset}, as if archives were put one after another"
    return ""


def _tar_members(content: tarfile.TarFile, file: _Limited) -> Iterator[_Member | str]:
    for member in content:
        if member.isreg():
            # The default argument holds the member of this turn of the loop.
            yield _Member(member.name, member.size, lambda member=member: content.extractfile(member))  # type: ignore[misc]
        elif not member.isdir():
            yield member.name
    if fault := fault_at_end(file.last, file.read, content.offset):
        raise tarfile.ReadError(fault)


def _zip_members(content: zipfile.ZipFile) -> Iterator[_Member | str]:
    for member in content.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        usual = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may need much memory
        if member.flag_bits & _ENCRYPTED or not usual or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield member.filename
        elif not member.is_dir():
            yield _Member(member.filename, member.file_size, lambda member=member: content.open(member))  # type: ignore[misc]


def _checked(archive: Path, found: Iterator[_Member | str], max_files: int, max_bytes: int) -> list[_Member]:
    members: list[_Member] = []
    total = 0
    for member in found:
        if isinstance(member, str):
            raise _refused(archive, member, "a link, a device, or encrypted or unusually compressed, not a plain file")
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or set("\\:\0") & set(member.name) or not name.parts:
            raise _refused(archive, member.name, "a name that points outside the folder")
        members.append(member)
        total += member.size
        if len(members) > max_files or total > max_bytes:
            raise DataError(
                f"{archive} contains more than the {max_files} files or {max_bytes} bytes expected; it was not "
                "unpacked: get the archive from its authors"
            )
    return members


def _refused(archive: Path, name: str, kind: str) -> DataError:
    return DataError(f"{archive} has {short(name)!r}, {kind}; it was not unpacked: get the archive from its authors")


def _write(archive: Path, members: list[_Member], folder: Path, total: int) -> None:
    """Write the members into a folder. A member never gives more bytes than it said, and fewer are an error."""
    written = 0
    with progress(f"unpacking {archive.name}, MB", max(1, total // 10**6)) as update:
        for member in members:
            target = folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            before = written
            with member.open() as source, target.open("wb") as file:
                while block := source.read(_BLOCK):
                    written += len(block)
                    file.write(block)
                    update(written // 10**6)
            if written - before != member.size:
                raise EOFError(f"{short(member.name)} ends after {written - before} of {member.size} bytes")


def _move(source: Path, target: Path) -> None:
    """Move a file or folder; the content of a folder that is there already is merged with it."""
    if source.is_dir() and target.is_dir():
        for entry in list(source.iterdir()):
            _move(entry, target / entry.name)
    else:
        source.replace(target)

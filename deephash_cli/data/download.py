"""Download files without trusting them, and continue where an earlier attempt was cut short."""

import contextlib
import hashlib
import http
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from deephash_cli.console import progress, say, with_speed
from deephash_cli.data.archives import extract
from deephash_cli.errors import ArtifactError, DataError
from deephash_cli.files import free_space, lock, megabytes, read_sealed, reason, write_sealed

# If a server accepts the connection and then sends nothing, the download fails instead of blocking for ever.
_TIMEOUT_S = 30.0
_BLOCK = 1 << 20
_ATTEMPTS = 4  # a server may cut the connection, or be away, this often in a row without sending anything new
_PAUSE_S = 2.0  # before the second attempt; twice as long before each further one
_PART = ".part"  # ending of what has arrived so far, and, with .json, of what is known about it


@dataclass(frozen=True)
class Archive:
    """An archive that the owner of a data set offers without a form.

    Attributes:
        url: Address; the last part of it is the name of the file.
        size: Number of bytes; None if it is not known.
        md5: MD5 checksum, in hexadecimal; None if it is not known.
        max_files: Largest number of files in it that is accepted.
        max_bytes: Largest total size of the files in it that is accepted, in bytes; and of the archive, if its size is
            not known.
        into: Folder, below that of the data set, into which it is unpacked.
    """

    url: str
    size: int | None
    md5: str | None
    max_files: int
    max_bytes: int
    into: str = "."


def fetch_archives(archives: Sequence[Archive], folder: Path) -> None:
    """Download archives into a folder and unpack them there. An archive that is there already is not fetched again.

    Args:
        archives: The archives, in the order in which they are unpacked.
        folder: Folder for the archives and for what is in them.

    Raises:
        DataError: If an archive cannot be downloaded, is not the expected one, or cannot be unpacked.
    """
    for archive in archives:
        file = folder / archive.url.rpartition("/")[2]
        download(archive.url, file, archive.md5, archive.size or archive.max_bytes, archive.size)
        extract(file, folder / archive.into, archive.max_files, archive.max_bytes)


def download(url: str, path: Path, md5: str | None, max_bytes: int, size: int | None = None) -> None:
    """Download ``url`` to ``path``, which is only written if the file is complete and is the expected one.

    A file that is there already and is the expected one is left as it is. What arrives is kept in ``<name>.part``, and
    a later call continues it if the server can, and if the file there is still the same. The SHA-256 of a finished file
    is written to ``<name>.json``, and compared when the same address is fetched again.

    Args:
        url: Address of the file.
        path: File to write.
        md5: Published MD5 checksum, in hexadecimal; None if none is known.
        max_bytes: Largest number of bytes accepted.
        size: Published number of bytes; None if it is not known.

    Raises:
        DataError: If the server cannot be reached, or offers or sends another file than the expected one, or if the
            disk has no room for it.
    """
    expected = _Expected(url, md5, max_bytes, size)
    try:
        if _is_there(path, expected):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(path) as part:
            if _is_there(path, expected):  # another process downloaded it while this one waited
                _forget_part(path)
                return
            _receive(expected, path, part)
            _finish(expected, path, part)
    except (ArtifactError, OSError) as error:
        raise _failed(expected, path, reason(error, path) if isinstance(error, OSError) else str(error)) from error


class _Expected(NamedTuple):
    """What is known about a file before it is downloaded."""

    url: str
    md5: str | None
    max_bytes: int
    size: int | None


class _Version(NamedTuple):
    """How a server names the version of the file that it sends, to notice if the file changes between two attempts."""

    etag: str | None
    modified: str | None
    size: int | None

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` may hold: a strong ETag, or else the time of the last change."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def _is_there(path: Path, expected: _Expected) -> bool:
    """Whether a file is complete: it has the known size and checksum, or else the recorded one.

    A file about which neither is known was put there by the user; it is taken as it is, and recorded.
    """
    if not path.is_file() or expected.size not in (None, path.stat().st_size):
        return False
    digests = _digests(path)
    if expected.md5 is not None:
        return digests["md5"] == expected.md5
    recorded = _recorded(path, expected)
    if recorded is None:
        _record(expected, path, digests)
    return recorded in (None, digests["sha256"])


@contextlib.contextmanager
def _part_of(path: Path) -> Iterator[IO[bytes]]:
    """Open the part of a file that has arrived, to append to it. Only one process at a time has it open."""
    name = path.with_name(path.name + _PART)
    while True:
        with name.open("ab") as part:
            if not lock(part):
                say(f"another process is downloading {path}; waiting for it")
                lock(part, wait=True)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(part.fileno()), name.stat()):  # not the one that was renamed meanwhile
                    part.seek(0, os.SEEK_END)
                    yield part
                    return


def _receive(expected: _Expected, path: Path, part: IO[bytes]) -> None:
    """Receive the rest of a file, in several attempts if the connection is cut after something arrived."""
    begun = most = part.tell()
    failures = 0
    while True:
        try:
            return _attempt(expected, path, part)
        except (_NetworkError, urllib.error.HTTPError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        failures = 0 if part.tell() > most else failures + 1
        most = max(most, part.tell())
        if failures == _ATTEMPTS or most == begun:
            raise _failed(expected, path, problem)
        time.sleep(_PAUSE_S * 2 ** max(0, failures - 1))


class _NetworkError(Exception):
    """An error of the network, as distinct from one of the disk."""


class _CannotContinueError(_NetworkError):
    """The server does not send the rest of the file of which a part is there."""


def _attempt(expected: _Expected, path: Path, part: IO[bytes]) -> None:
    """Ask for what is missing of a file, or else for the whole file.

    Raises:
        _NetworkError: If less arrives than is missing; so do the errors of HTTP.
    """
    before = _version_of_part(path, expected)
    if before is None:
        _empty(part)
    elif before.size == part.tell():
        return
    if before is not None and part.tell():
        with contextlib.suppress(_CannotContinueError):
            _ask(expected, path, part, before)
            return
        _empty(part)
    _ask(expected, path, part, None)


def _ask(expected: _Expected, path: Path, part: IO[bytes], before: _Version | None) -> None:
    """Ask for a file, or for the rest of a version of it, and append what comes to the part."""
    request = urllib.request.Request(expected.url, headers={"User-Agent": "deephash"})
    if before is not None:
        request.add_header("Range", f"bytes={part.tell()}-")
        if before.validator:
            request.add_header("If-Range", before.validator)
    with _opened(request) as response:
        version = _version(response)
        if response.status == http.HTTPStatus.OK:  # the server cannot continue, or the file is another one now
            _empty(part)
        elif before is None or not _continues(response, part.tell(), before, version):
            raise _CannotContinueError(f"the server answers with status {response.status}")
        else:
            version = _Version(
                version.etag or before.etag, version.modified or before.modified, version.size or before.size
            )
        _check_offer(expected, path, version.size, part.tell())
        write_sealed(_about_part(path), {"url": expected.url, **version._asdict()})
        _append(response, expected, path, part, version.size)


def _empty(part: IO[bytes]) -> None:
    part.seek(0)
    part.truncate()


@contextlib.contextmanager
def _opened(request: urllib.request.Request) -> Iterator[Any]:
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _CannotContinueError(str(error)) from error
        raise
    except OSError as error:
        raise _NetworkError(str(getattr(error, "reason", None) or error)) from error
    with response:
        yield response


def _version(response: Any) -> _Version:
    """Return the version of a file that a server sends, whole or in part."""
    part = response.headers["Content-Range"]
    length = response.headers["Content-Length"] if part is None else part.rpartition("/")[2]
    size = int(length) if re.fullmatch("[0-9]{1,18}", length or "") else None
    return _Version(response.headers["ETag"], response.headers["Last-Modified"], size)


def _continues(response: Any, start: int, before: _Version, version: _Version) -> bool:
    """Whether a server sends the rest of the version of a file that was begun, from the right place on."""
    if not (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
        return False
    return all(old is None or new is None or old == new for old, new in zip(before, version, strict=True))


def _check_offer(expected: _Expected, path: Path, offered: int | None, have: int) -> None:
    """Check the size that a server announces, and that the disk has room for it."""
    if offered is not None and expected.size not in (None, offered):
        raise _refused(
            path, f"{expected.url} offers {offered} bytes, but {expected.size} were expected: the file was replaced"
        )
    if offered is not None and offered > expected.max_bytes:
        raise _refused(path, f"{expected.url} offers {offered} bytes, more than the {expected.max_bytes} accepted")
    missing = (offered or expected.size or 0) - have
    if missing > (free := free_space(path)):
        raise DataError(
            f"{expected.url} needs {megabytes(missing)}, but only {megabytes(free)} are free in {path.parent}; make "
            "room there, or set dataset.root to a folder on another disk"
        )


def _append(response: Any, expected: _Expected, path: Path, part: IO[bytes], size: int | None) -> None:
    """Append what a server sends to the part, until the file is complete."""
    size = size if size is not None else expected.size
    total = expected.max_bytes if size is None else size
    with progress(f"downloading {path.name}, MB", max(1, total // 10**6)) as update:
        move = with_speed(update, max(1, total // 10**6), "MB")
        for block in _blocks(response):
            if part.tell() + len(block) > total:
                raise _refused(path, f"{expected.url} sent more than the {total} bytes expected")
            part.write(block)
            part.flush()
            move(part.tell() // 10**6)
        if size is not None and part.tell() < size:
            raise _NetworkError("the connection was cut")


def _blocks(response: Any) -> Iterator[bytes]:
    try:
        while block := response.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(error) or type(error).__name__) from error


def _finish(expected: _Expected, path: Path, part: IO[bytes]) -> None:
    """Check a complete part, and give it the name of the file."""
    os.fsync(part.fileno())
    digests = _digests(path.with_name(path.name + _PART))
    if expected.md5 not in (None, digests["md5"]):
        raise _refused(
            path,
            f"{expected.url} sent {part.tell()} bytes with MD5 {digests['md5']}, but {expected.md5} was expected: the "
            "file was replaced or damaged on its way",
        )
    recorded = _recorded(path, expected)
    if recorded not in (None, digests["sha256"]):
        raise _refused(
            path,
            f"{expected.url} sent another file than before: its SHA-256 is {digests['sha256']}, and that of the first "
            f"is in {_about(path)}, which you may delete if you trust the new one",
        )
    path.with_name(path.name + _PART).replace(path)
    _about_part(path).unlink(missing_ok=True)
    _record(expected, path, digests)


def _digests(path: Path) -> dict[str, str]:
    """Compute the MD5, which owners publish, and the SHA-256 of a file in one pass."""
    found = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    total = max(1, path.stat().st_size // 10**6)
    with path.open("rb") as file, progress(f"checking {path.name}, MB", total) as update:
        while block := file.read(_BLOCK):
            for digest in found.values():
                digest.update(block)
            update(file.tell() // 10**6)
    return {name: digest.hexdigest() for name, digest in found.items()}


def _about(path: Path) -> Path:
    """Return the path of the record of a finished file."""
    return path.with_name(f"{path.name}.json")


def _about_part(path: Path) -> Path:
    return path.with_name(f"{path.name}{_PART}.json")


def _record(expected: _Expected, path: Path, digests: dict[str, str]) -> None:
    write_sealed(_about(path), {"url": expected.url, "bytes": path.stat().st_size, **digests})


def _recorded(path: Path, expected: _Expected) -> str | None:
    """Return the SHA-256 that was recorded when the same address was fetched before; None if it was not."""
    if not _about(path).exists():
        return None
    try:
        content = read_sealed(_about(path))
    except ArtifactError as error:
        raise DataError(f"{error}; delete it, and the file is recorded again") from error
    return str(content.get("sha256")) if content.get("url") == expected.url else None


def _version_of_part(path: Path, expected: _Expected) -> _Version | None:
    """Return which version of the file the part belongs to; None if nothing says it, so the part cannot be used."""
    try:
        content = read_sealed(_about_part(path))
        version = _Version(content["etag"], content["modified"], content["size"])
    except (ArtifactError, KeyError):
        return None
    return version if content.get("url") == expected.url and version != (None, None, None) else None


def _forget_part(path: Path) -> None:
    path.with_name(path.name + _PART).unlink(missing_ok=True)
    _about_part(path).unlink(missing_ok=True)


def _refused(path: Path, why: str) -> DataError:
    """Return the error for a file that is not the expected one, of which nothing is kept."""
    _forget_part(path)
    return DataError(f"{why}; nothing was kept")


def _failed(expected: _Expected, path: Path, why: str) -> DataError:
    part = path.with_name(path.name + _PART)
    kept = part.stat().st_size if part.exists() else 0
    if not kept:
        _forget_part(path)
    continues = f"{megabytes(kept)} are kept, and the same command continues there; or " if kept else ""
    return DataError(
        f"could not download {expected.url} ({why}); {continues}fetch it on a machine with network access and put it "
        f"into {path.parent}"
    )

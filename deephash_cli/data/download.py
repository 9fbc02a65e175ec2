"""Files from the network, and archives, neither of which is trusted."""

import hashlib
import http.client
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from deephash_cli.errors import ArtifactError, DataError
from deephash_cli.files import atomic_write

# A server that accepts and then says nothing ends the download, instead of holding the command for ever.
_TIMEOUT_S = 30.0
_BLOCK = 1 << 20


def download(url: str, path: Path, md5: str, max_bytes: int) -> None:
    """Fetch ``url`` into ``path``, whole and with the right checksum, or not at all. A right file is left as it is.

    Raises:
        DataError: If the server cannot be reached, sends more than ``max_bytes``, or something else than was published.
    """
    try:
        if path.is_file() and _md5(path) == md5:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, atomic_write(path) as file:
            digest = hashlib.md5(usedforsecurity=False)
            received = 0
            for block in _blocks(response, url, path):
                received += len(block)
                if received > max_bytes:
                    raise DataError(f"{url} sent more than the {max_bytes} bytes expected; nothing was kept")
                digest.update(block)
                file.write(block)
            if digest.hexdigest() != md5:
                raise DataError(
                    f"{url} sent {received} bytes with MD5 {digest.hexdigest()} where {md5} was expected: the download "
                    "was cut short or the file was replaced; nothing was kept, try again"
                )
    except (ArtifactError, OSError, http.client.HTTPException) as error:
        raise _failed(url, path, error) from error


def extract_tar(archive: Path, folder: Path, max_files: int, max_bytes: int) -> None:
    """Unpack an archive of plain files and folders into ``folder``, over files of the same names.

    Every member is checked before the first one is written. Links, devices, absolute names and ``..`` are refused,
    whoever made the archive.

    Raises:
        DataError: If the archive is damaged, too large, or holds anything that a data set has no use for.
    """
    try:
        with tarfile.open(archive) as tar:
            members = []
            total = 0
            for member in tar:
                members.append(member)
                total += member.size
                if len(members) > max_files or total > max_bytes:
                    raise DataError(
                        f"{archive} holds more than the {max_files} files or {max_bytes} bytes expected; it was not "
                        "unpacked: get the archive from its authors"
                    )
                _check_member(archive, member)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as temporary:
                tar.extractall(temporary, members=members, filter="data")
                for member in members:
                    if member.isreg():
                        target = folder / member.name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        (Path(temporary) / member.name).replace(target)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{archive} could not be unpacked ({error}); delete it and download it again") from error


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        kind = "a link or a device, not a plain file or folder"
    elif name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
        kind = "a name that leads out of the folder"
    else:
        return
    raise DataError(f"{archive} holds {member.name!r}, {kind}; it was not unpacked: get the archive from its authors")


def _blocks(response: IO[bytes] | http.client.HTTPResponse, url: str, path: Path) -> Iterator[bytes]:
    # Caught here because atomic_write takes every OSError inside it for one of the disk.
    try:
        while block := response.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, path, error) from error


def _failed(url: str, path: Path, error: Exception) -> DataError:
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    return DataError(
        f"could not download {url} ({reason}); fetch it on a machine with a network and put it into {path.parent}"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

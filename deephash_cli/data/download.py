"""Download files and unpack archives, without trusting either."""

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

# If a server accepts the connection and then sends nothing, the download fails instead of blocking for ever.
_TIMEOUT_S = 30.0
_BLOCK = 1 << 20


def download(url: str, path: Path, md5: str, max_bytes: int) -> None:
    """Download ``url`` to ``path``, which is only written if the file is complete and its checksum is right.

    A file that already has the right checksum is left as it is.

    Args:
        url: Address of the file.
        path: File to write.
        md5: Published MD5 checksum, in hexadecimal.
        max_bytes: Largest number of bytes accepted.

    Raises:
        DataError: If the server cannot be reached, or sends more than ``max_bytes`` or a file with another checksum.
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
                    f"{url} sent {received} bytes with MD5 {digest.hexdigest()}, but {md5} was expected: the download "
                    "was cut short or the file was replaced; nothing was kept, try again"
                )
    except (ArtifactError, OSError, http.client.HTTPException) as error:
        raise _failed(url, path, error) from error


def extract_tar(archive: Path, folder: Path, max_files: int, max_bytes: int) -> None:
    """Unpack an archive of plain files and folders into ``folder``, replacing files of the same names.

    Every member is checked before the first one is written. Links, devices, absolute names and ``..`` are refused,
    no matter who made the archive.

    Args:
        archive: Path of the tar archive.
        folder: Folder to unpack into.
        max_files: Largest number of members accepted.
        max_bytes: Largest total size of the members accepted, in bytes.

    Raises:
        DataError: If the archive is damaged or too large, or contains anything that a data set does not need.
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
                        f"{archive} contains more than the {max_files} files or {max_bytes} bytes expected; it was not "
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
        kind = "a name that points outside the folder"
    else:
        return
    raise DataError(f"{archive} has {member.name!r}, {kind}; it was not unpacked: get the archive from its authors")


def _blocks(response: IO[bytes] | http.client.HTTPResponse, url: str, path: Path) -> Iterator[bytes]:
    # Caught here because atomic_write treats every OSError inside it as an error of the disk.
    try:
        while block := response.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, path, error) from error


def _failed(url: str, path: Path, error: Exception) -> DataError:
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    return DataError(
        f"could not download {url} ({reason}); fetch it on a machine with network access and put it into {path.parent}"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

"""Write files and folders whole or not at all (beside the target, then renamed), read them with limits, hash them."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from deephash_cli.errors import ArtifactError, ConfigError, short


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; on success flush it to disk and rename it, on failure remove it.

    A reader sees the whole old file or the whole new one, never a part, even after a power failure. What is written to
    a device, such as ``/dev/null``, goes straight to it.

    Raises:
        ArtifactError: If the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        if is_device(path):
            sys.stdout.flush()  # the device may be the screen, where the order counts
            with _open_device(path) as device:
                yield device
            return
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise ArtifactError(f"could not write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_device(path: Path) -> bool:
    """Return whether a path is a device, a pipe or an open stream of this process, and not a file of its own."""
    if str(path.absolute()).startswith(("/dev/std", "/dev/fd/", "/proc/")):  # even if the stream goes to a file
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def _open_device(path: Path) -> IO[bytes]:
    """Open a device for writing. A stream of this process is continued, so that nothing in its file is overwritten."""
    name = str(path.absolute())
    named = {"/dev/stdout": "1", "/dev/stderr": "2"}.get(name)
    number = named or name.removeprefix("/dev/fd/").removeprefix("/proc/self/fd/")
    return os.fdopen(os.dup(int(number)), "wb") if number.isdecimal() else path.open("ab")


@contextlib.contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success flush its files to disk and rename it, on failure remove it.

    Args:
        path: Path of a folder that does not exist or is empty. Missing parent folders are created.
        replace: Whether a folder that is not empty is replaced, and removed with all its files.

    Raises:
        ConfigError: If ``path`` exists and is not an empty folder.
        ArtifactError: If the folder cannot be written to, or the disk is full.
    """
    path = Path(path).absolute()
    temporary = None
    try:
        if path.exists() and not (path.is_dir() and (replace or not any(path.iterdir()))):
            raise ConfigError(f"{path} already exists: choose another folder, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as content:
                os.fsync(content.fileno())
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can enter
        if replace and path.exists():
            earlier = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
            path.replace(earlier)
            temporary.replace(path)
            shutil.rmtree(earlier)
        else:
            temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise ArtifactError(f"could not write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold a lock on a file while the context is open; other processes that want the lock wait.

    The file is created if it is missing, and its content does not change. It is opened for writing, because network
    file systems give no exclusive lock otherwise.
    """
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` as indented JSON, whole or not at all. Infinities and NaN are refused."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed

# The end of a sealed file. Both entries must be there: one flipped bit damages only one of them.
_SEAL = re.compile(r',\n  "sealed": "sha256",\n  "seal": "([0-9a-f]{64})"\n\}\n\Z')


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the SHA-256 of its own text, so that `read_sealed` notices any change of the file.

    The last two entries of the file are ``sealed``, the name of the digest, and ``seal``, the digest of all bytes
    before these two entries. ``content`` must not have entries of these names, and must not be empty.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    seal = hashlib.sha256(text.encode()).hexdigest()
    write_text(path, f'{text},\n  "sealed": "sha256",\n  "seal": "{seal}"\n}}\n')


def read_sealed(path: Path, limit: int = 256 * 2**20) -> dict[str, Any]:
    """Read a JSON object that `write_sealed` wrote, without its seal, after comparing the seal with the text.

    A file without a seal, as earlier versions wrote them, is read too; `is_sealed` tells them apart.

    Raises:
        ArtifactError: If the file is missing, too large, not a JSON object, or is not as it was written.
    """
    text, content = _read(Path(path), limit)
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} must be a JSON object; it was damaged or edited by hand")
    if "sealed" in content or "seal" in content:
        found = _SEAL.search(text)
        if found is None or hashlib.sha256(text[: found.start()].encode()).hexdigest() != found[1]:
            raise ArtifactError(f"{path} does not match its own SHA-256: it was damaged or edited by hand")
        del content["sealed"], content["seal"]
    return content


def is_sealed(path: Path, limit: int = 256 * 2**20) -> bool:
    """Return whether a JSON file says that it has the SHA-256 of its own text; files of earlier versions do not.

    Raises:
        ArtifactError: If the file is missing, too large, or not JSON.
    """
    _, content = _read(Path(path), limit)
    return isinstance(content, dict) and ("sealed" in content or "seal" in content)


def csv_text(names: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """Format records as CSV. Text that a spreadsheet would read as a formula gets an apostrophe in front."""
    file = io.StringIO()
    lines = csv.DictWriter(file, names, lineterminator="\n")
    lines.writeheader()
    for record in records:
        lines.writerow({name: _harmless(record[name]) for name in names})
    return file.getvalue()


def json_text(content: Any) -> str:
    """Format content as indented JSON that can be shown on a terminal: every command to the terminal is escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def read_json(path: Path, limit: int = 256 * 2**20) -> Any:
    """Read a JSON file of at most ``limit`` bytes.

    Only what every reader of JSON understands in the same way is accepted: no NaN or infinity, no key that occurs twice
    in an object, and no half of a surrogate pair, which no text file could hold.

    Raises:
        ArtifactError: If the file is missing, too large, or not JSON, or gives a key of an object twice.
    """
    return _read(Path(path), limit)[1]


@contextlib.contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain file for reading. A pipe, which could be waited for without an end, or a device is not opened.

    Raises:
        ArtifactError: If the file is missing, is not a plain file, or cannot be opened or read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArtifactError(f"{path} is not a plain file: it is a folder, a pipe or a device")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except OSError as error:
        raise ArtifactError(f"could not read {path}: {error.strerror or error}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a plain file of at most ``limit`` bytes.

    Raises:
        ArtifactError: If the file is missing, is not a plain file, is too large, or cannot be read.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ArtifactError(f"{path} must have at most {limit} bytes, got {size}")
        return file.read(size)


def _read(path: Path, limit: int) -> tuple[str, Any]:
    """Return the text and the content of a JSON file."""
    try:
        text = read_bytes(path, limit).decode("utf-8")
        content = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_without_repetition)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(content, ensure_ascii=False).encode()
        return text, content
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); it was damaged or edited by hand") from error


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text} is not a finite number")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these pairs. Of a key that occurs twice, one value would be ignored silently."""
    content = dict(pairs)
    if len(content) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {short(twice)!r} occurs twice")
    return content


def sha256_file(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _harmless(value: Any) -> Any:
    """Return the value of a cell of CSV: no formula to a spreadsheet, and no command to a terminal."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], value)
    return f"'{text}" if value[:1] in tuple("=+-@\t\r\n＝＋－＠") else text  # noqa: RUF001


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Some file systems do not support this for folders; there the rename alone must suffice."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

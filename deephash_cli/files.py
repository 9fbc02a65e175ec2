"""Write files and folders whole or not at all (beside the target, then renamed), read them with limits, hash them."""

import contextlib
import csv
import errno
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

LOCKS = "DEEPHASH_LOCKS"  # environment variable: on or off

# The names that `atomic_write` and `atomic_folder` give to what they have not finished.
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)


@contextlib.contextmanager
def atomic_write(path: Path, size: int | None = None) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; on success flush it to disk and rename it, on failure remove it.

    A reader sees the whole old file or the whole new one, never a part, even after a power failure. What is written to
    a device, such as ``/dev/null``, goes straight to it.

    Args:
        path: File to write.
        size: Number of bytes that will be written, for the message if the disk is full; None if it is not known.

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
        descriptor, temporary = _temporary_file(path)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise ArtifactError(
            f"could not write {path}: {reason(error, path, size)}; nothing was changed there"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def reason(error: OSError, path: Path, size: int | None = None) -> str:
    """Say why a file could not be written; for a full disk, how much space is needed and how much is free.

    Args:
        error: The error of the system.
        path: File or folder that could not be written.
        size: Number of bytes to write; None if it is not known.
    """
    text = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return text
    known = [] if size is None else [f"{megabytes(size)} are needed"]
    with contextlib.suppress(OSError, StopIteration):
        known.append(f"{megabytes(free_space(path))} are free")
    return f"{text} ({', '.join(known)})" if known else text


def free_space(path: Path) -> int:
    """Return how many bytes are free on the disk of a file or folder, which need not exist yet."""
    existing = next(above for above in (path, *path.absolute().parents) if above.exists())
    return shutil.disk_usage(existing).free


def megabytes(count: int) -> str:
    """Return a number of bytes as people read it, such as "3.1 MB"."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def make_folder(path: Path) -> None:
    """Make a folder and the folders above it, unless they exist.

    Raises:
        ArtifactError: If the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"could not make the folder {path}: {reason(error, path)}") from error


def append_text(path: Path, text: str) -> None:
    """Append ``text`` to a file as UTF-8. If that fails, the file keeps its earlier length where the system allows it.

    Raises:
        ArtifactError: If the file cannot be written, or the disk is full.
    """
    content = text.encode()
    try:
        with path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while content:
                    content = content[file.write(content) or 0 :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise ArtifactError(f"could not write {path}: {reason(error, path, len(content))}") from error


def is_temporary(name: str, of: str | None = None) -> bool:
    """Return whether a name is that of an unfinished file or folder of this module.

    Args:
        name: Name without its folder.
        of: Name of the finished file; None for any.
    """
    found = _TEMPORARY.fullmatch(name)
    return found is not None and of in (None, found[1])


def remove_leftovers(folder: Path, of: str | None = None) -> None:
    """Remove unfinished files and folders that killed processes left in a folder.

    What a running process is writing is locked, and stays. So does everything that does not have such a name.

    Args:
        folder: Folder to look into; it need not exist.
        of: Name of the finished file or folder whose leftovers are meant; None for all.
    """
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            if is_temporary(entry.name, of) and not entry.is_symlink():
                with contextlib.suppress(OSError, ConfigError):
                    _remove_leftover(entry)


def _remove_leftover(path: Path) -> None:
    if path.is_dir():
        with _opened_folder(path) as descriptor:
            if lock(descriptor):
                shutil.rmtree(path)
    elif path.is_file():
        with path.open("r+b") as file:
            if lock(file):
                path.unlink(missing_ok=True)


def _temporary_file(path: Path) -> tuple[int, Path]:
    """Make a file beside ``path``, locked so that nobody takes it for a leftover: its descriptor and its path."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            if _is_kept(descriptor, Path(name)):
                return descriptor, Path(name)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside ``path`` and lock it while the context is open, so that nobody takes it for a leftover."""
    while True:
        made = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        with _opened_folder(made) as descriptor:
            if _is_kept(descriptor, made):
                yield made
                return


def _is_kept(descriptor: int, path: Path) -> bool:
    """Lock a new file; return False if another process removed it as a leftover before that."""
    with contextlib.suppress(ConfigError):  # without locks nobody removes leftovers
        lock(descriptor, wait=True)
    return path.exists()


@contextlib.contextmanager
def _opened_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
        with temporary_folder(path) as temporary:
            yield temporary
            for file in temporary.iterdir():
                with file.open("rb") as content:
                    os.fsync(content.fileno())
            temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can enter
            if replace and path.exists():
                _exchange(temporary, path)
            else:
                temporary.replace(path)
            temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise ArtifactError(f"could not write {path}: {reason(error, path)}; nothing was changed there") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Put a new folder in the place of an old one and remove the old one; if that fails, the old one is kept."""
    earlier = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        path.replace(earlier)
    except OSError:
        earlier.rmdir()
        raise
    try:
        new.replace(path)
    except OSError:
        earlier.replace(path)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def locks_are_on() -> bool:
    """Return whether files are locked: unless the environment variable ``DEEPHASH_LOCKS`` is ``off``.

    Raises:
        ConfigError: If the variable has another value than ``on`` and ``off``.
    """
    value = os.environ.get(LOCKS) or "on"
    if value not in ("on", "off"):
        raise ConfigError(f"the environment variable {LOCKS} must be on or off, got {value!r}")
    return value == "on"


def lock(file: IO[Any] | int, wait: bool = False, shared: bool = False) -> bool:
    """Lock an open file for this process until it is closed. Every lock of this project is taken here.

    The system releases the lock when the process ends, even if it is killed. With ``DEEPHASH_LOCKS=off`` nothing is
    locked, and the answer is True.

    Args:
        file: Open file, or its descriptor. An exclusive lock on a network file system needs a file open for writing.
        wait: Whether to wait while another process holds the lock.
        shared: Whether other processes may have a shared lock at the same time.

    Returns:
        True if this process has the lock now, False if another one holds it.

    Raises:
        ConfigError: If the file system has no locks, or ``DEEPHASH_LOCKS`` is neither ``on`` nor ``off``.
    """
    if not locks_are_on():
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        name = file if isinstance(file, int) else file.name
        raise ConfigError(
            f"{name} could not be locked ({error.strerror or error}): on a file system without locks, set "
            f"{LOCKS}=off and let only one process at a time write to a folder"
        ) from error
    return True


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold a lock on a file while the context is open; other processes that want the lock wait.

    The file is created if it is missing, and its content does not change. It is opened for writing, because network
    file systems give no exclusive lock otherwise.

    Raises:
        ArtifactError: If the file cannot be written to.
        ConfigError: If the file system has no locks.
    """
    try:
        held = file.open("ab")
    except OSError as error:
        raise ArtifactError(f"could not open {file} for writing: {reason(error, file)}") from error
    with held:
        lock(held, wait=True)
        yield


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with atomic_write(path, len(content)) as file:
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


def read_json(path: Path, limit: int = 256 * 2**20, containers: int | None = None) -> Any:
    """Read a JSON file of at most ``limit`` bytes.

    Only what every reader of JSON understands in the same way is accepted: no NaN or infinity, no key that occurs twice
    in an object, and no half of a surrogate pair, which no text file could hold.

    Args:
        path: File to read.
        limit: Largest size in bytes.
        containers: Largest number of lists and objects, which cost far more memory than text; None for any number.

    Raises:
        ArtifactError: If the file is missing, too large, or not JSON, or gives a key of an object twice.
    """
    return _read(Path(path), limit, containers)[1]


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


def _read(path: Path, limit: int, containers: int | None = None) -> tuple[str, Any]:
    """Return the text and the content of a JSON file."""
    try:
        text = read_bytes(path, limit).decode("utf-8")
        if containers is not None and (count := text.count("[") + text.count("{")) > containers:
            raise ArtifactError(f"{path} must have at most {containers} lists and objects, got {count}")
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
    return sha256_start(path, None).hexdigest()


def sha256_start(path: Path, size: int | None) -> "hashlib._Hash":
    """Return a SHA-256 that was fed with the first ``size`` bytes of a file; None for the whole file.

    More can be fed to it. A file that is shorter gives the SHA-256 of the whole file.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        left = math.inf if size is None else size
        while left > 0 and (block := file.read(int(min(left, 1 << 20)))):
            digest.update(block)
            left -= len(block)
    return digest


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

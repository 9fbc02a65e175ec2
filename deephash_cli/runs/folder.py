"""Name, create, lock, write and find run folders."""

import base64
import contextlib
import datetime
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TypeGuard

from deephash_cli import __version__
from deephash_cli.errors import ArtifactError, ConfigError, command
from deephash_cli.files import (
    alone,
    is_temporary,
    lock,
    locks_are_on,
    make_folder,
    read_sealed,
    reason,
    remove_leftovers,
    write_sealed,
    write_text,
)
from deephash_cli.retrieval.codes_folder import MANIFEST, read_manifest
from deephash_cli.runs import sealing
from deephash_cli.runs.sealing import FILES, RECORD
from deephash_cli.runs.settings import CONFIG, hide_in_override

METRICS = "metrics.json"
STEPS = "metrics.jsonl"
HEAD_STEPS = "head.jsonl"
SPLIT = "split.json"
SKIPPED = "skipped.csv"
CODES = "codes"
RETRIEVAL = "retrieval.json"
RETRIEVAL_IMAGE = "retrieval.webp"
CHECKPOINTS = "checkpoints"
WANDB = "wandb"
ERROR = "error.txt"
CODES_MANIFEST = f"{CODES}/{MANIFEST}"  # it has the digests of the other files of the codes
# The files that have a digest in the record. Checkpoints have theirs in files beside them; W&B's files have none.
DIGESTED = (
    CONFIG, SPLIT, SKIPPED, STEPS, HEAD_STEPS, CODES_MANIFEST, METRICS, RETRIEVAL, RETRIEVAL_IMAGE, ERROR,
)  # fmt: skip
LOCK = ".lock"
STATE = ".deephash"  # folder beside runs: the number of the newest one, and what two processes agree with

_OWNER = re.compile(r"(process \d+ on .* since .*)?")  # content of a lock file; empty if the disk was full
_OF_CONFIG = ("method", "bits", "seed", "module")  # some settings of every run
_TRIES = 5  # so often a lock or a name is tried

_WORD_LIMIT = 200  # characters of a status, a time or a fingerprint
EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}  # reported to W&B for each status


class InUseError(ConfigError):
    """A run folder that another process is writing to.

    Attributes:
        folder: The run folder.
        owner: The process, as the lock file names it.
    """

    def __init__(self, folder: Path):
        with contextlib.suppress(OSError, ValueError):
            self.owner = (folder / LOCK).read_text()[:200].strip()
        self.owner = getattr(self, "owner", "") or "another process"
        self.folder = folder
        super().__init__(f"{folder} is in use by {self.owner}: wait for it to end, or choose another run_dir")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    packages = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy", "hydra-core", "wandb")
    return {
        "deephash": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


class Run:
    """A run folder that this process may write to until ``close``.

    Args:
        path: An existing folder.

    Raises:
        InUseError: If another process is writing to the folder.
        ConfigError: If the folder cannot be written to.
        ArtifactError: If the disk is full.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = _lock(path)
        self._unsealed: dict[str, tuple[tuple[int, ...] | None, str | None]] = {}  # states and digests at that time

    def start(self, config_yaml: str, fingerprint: str, overrides: Sequence[str], **facts: Any) -> str:
        """Record what is about to run, in ``config.yaml`` and ``run.json``.

        Args:
            config_yaml: The resolved configuration as YAML.
            fingerprint: Digest of the settings that decide the result, from `runs.fingerprint`.
            overrides: Overrides as typed; secrets in them are hidden.
            **facts: Further entries of the record, as plain values.

        Returns:
            The run's id. A resumed run keeps its id.
        """
        known = read_record(self.path) if (self.path / RECORD).exists() else {}
        if known:
            self.unseal(CONFIG)
        make_folder(self.path / CHECKPOINTS)
        for folder in (self.path, self.path / CHECKPOINTS, self.path / CODES):
            remove_leftovers(folder)
        write_text(self.path / CONFIG, config_yaml)  # before the record: a folder with a record is complete
        record = {
            "id": known.get("id") or secrets.token_hex(6),
            "number": _next_number(self.path.parent),
            "status": "running",
            "started": _now(),
            "process": os.getpid(),
            "host": platform.node(),
            "fingerprint": fingerprint,
            "overrides": [hide_in_override(override) for override in overrides],
            "versions": versions(),
            **facts,
            FILES: {
                name: digest
                for name, digest in sealing.digests(known).items()
                if (self.path / name).exists()  # what was deleted is made again
            }
            | {CONFIG: hashlib.sha256(config_yaml.encode()).hexdigest()},
        }
        write_sealed(self.path / RECORD, record)
        self._unsealed.clear()
        return record["id"]

    def unseal(self, *names: str) -> None:
        """Remove the digests of files from the record. This must be called before they are written again."""
        record = read_record(self.path)
        known = sealing.digests(record)
        for name in names:
            self._unsealed.setdefault(name, (sealing.state(self.path / name), known.get(name)))
        if not known.keys().isdisjoint(names):
            left = {name: digest for name, digest in known.items() if name not in names}
            write_sealed(self.path / RECORD, {**record, FILES: left})

    def seal(self, **changes: Any) -> None:
        """Record the digests of the files that were written since ``unseal``; the others get back their earlier ones.

        Args:
            **changes: Other entries of the record that change at the same time.
        """
        record = read_record(self.path)
        known = sealing.digests(record)
        for name, (before, digest) in sorted(self._unsealed.items()):
            now = sealing.state(self.path / name)
            if now is not None and now != before:
                digest = sealing.measured(self.path / name)
            if now is not None and digest is not None:
                known[name] = digest
        write_sealed(self.path / RECORD, {**record, **changes, FILES: known})
        self._unsealed.clear()

    def end(self, status: str, error: str | None = None, phases: Mapping[str, float] | None = None) -> None:
        """Record how the run ended.

        Args:
            status: ``finished``, ``failed`` or ``interrupted``.
            error: Message of the error that ended the run; ``None`` if there was no error.
            phases: Seconds of each phase since the run was started or resumed; ``None`` if they are not known.
        """
        known = {} if phases is None else {"phases": dict(phases)}
        self.seal(status=status, ended=_now(), error=error, **known)

    def discard(self) -> None:
        """Remove the folder with all its files, if none of them is worth keeping."""
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Release the lock, so that other processes can write to the folder."""
        self._lock.close()


def create(root: Path, name: str, run_dir: str | None) -> Run:
    """Make a new, empty run folder: ``run_dir`` if given, else a unique one under ``root``.

    A folder that a run began and left before it was recorded is used again: it holds nothing else.

    Args:
        root: Folder of all runs.
        name: Start of the unique folder's name; date, time and random characters follow.
        run_dir: The run folder itself; ``None`` for a unique one.

    Raises:
        InUseError: If another process is writing to ``run_dir``.
        ConfigError: If the folder cannot be made, or if ``run_dir`` is not empty.
        ArtifactError: If the disk is full.
    """
    where = f"run_dir={run_dir}" if run_dir else f"runs={root}"
    try:
        if run_dir is not None:
            check_unused(Path(run_dir))
            return _begun(Path(run_dir))
        (root / STATE).mkdir(parents=True, exist_ok=True)
        for path in _left_behind(root, name):
            with contextlib.suppress(ConfigError):  # another process uses it by now
                return _begun(path)
        for attempt in reversed(range(_TRIES)):
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            path = root / f"{name}-{stamp}-{_random()}"
            try:
                path.mkdir()
                return _begun(path)
            except (FileExistsError, InUseError):  # another process has the same name, or took the new folder up
                if not attempt:
                    raise
        raise AssertionError("unreachable")
    except OSError as error:
        raise _no_room(
            f"cannot make a run folder at {where}", root if run_dir is None else Path(run_dir), error
        ) from error


def _random() -> str:
    """Return 64 random bits as 13 lower-case letters and digits."""
    return base64.b32encode(secrets.token_bytes(8)).decode().rstrip("=").lower()


def _begun(path: Path) -> Run:
    """Lock a folder for a new run, and make it if it does not exist. If that fails, no new folder is left."""
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        run = Run(path)
    except (OSError, ArtifactError):
        if is_new:
            with contextlib.suppress(OSError):
                (path / LOCK).unlink(missing_ok=True)
                path.rmdir()
        raise
    try:
        check_unused(path)  # again, because another process may have had the lock in between
    except BaseException:
        run.close()
        raise
    return run


def _left_behind(root: Path, name: str) -> list[Path]:
    """Return the folders of a name that runs began under ``root`` and left before they were recorded.

    Locks tell them from those that a process is just beginning, so without locks, none is returned.
    """
    if not locks_are_on():
        return []
    ours = re.compile(re.escape(name) + r"-\d{8}-\d{6}-[a-z0-9]+")
    named = [path for path in root.iterdir() if ours.fullmatch(path.name) and path.is_dir()]
    return [path for path in named if (is_abandoned(path) or not any(path.iterdir())) and not is_in_use(path)]


def _no_room(what: str, path: Path, error: OSError) -> ConfigError | ArtifactError:
    """Return the error that says why a folder of runs cannot be written to."""
    text = f"{what}: {reason(error, path)}; choose a folder you can write to"
    return (ArtifactError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else ConfigError)(text)


def check_unused(path: Path) -> None:
    """Check that a folder for a new run does not exist, is empty, or was left by a run before it was recorded.

    Raises:
        ConfigError: If it holds files.
    """
    if path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()) and not is_abandoned(path):
        more = f", or {command(f'resume={path}')} to continue the run in it" if (path / RECORD).is_file() else ""
        raise ConfigError(f"run_dir={path} is not empty: choose another folder{more}")


def is_abandoned(folder: Path) -> bool:
    """Return whether a run began a folder and left it before it was recorded, as when its process was killed.

    Such a folder has a lock file that this module wrote, and nothing else except what is written before ``run.json``.
    """
    try:
        entries = {entry.name: entry for entry in folder.iterdir()}
        files = [entry for name, entry in entries.items() if name != CHECKPOINTS]
        return (
            LOCK in entries
            and all(entry.is_file() and not entry.is_symlink() for entry in files)
            and all(name in (LOCK, CONFIG, CHECKPOINTS) or _is_first(name) for name in entries)
            and _OWNER.fullmatch(entries[LOCK].read_text()[:1000]) is not None
            and (CONFIG not in entries or _is_config(entries[CONFIG]))
            and (CHECKPOINTS not in entries or not any(entries[CHECKPOINTS].iterdir()))
        )
    except (OSError, ValueError):
        return False


def _is_first(name: str) -> bool:
    """Return whether a name is that of an unfinished file that is written before a run is recorded."""
    return is_temporary(name, CONFIG) or is_temporary(name, RECORD)


def _is_config(file: Path) -> bool:
    """Return whether a file looks like the settings of a run, not like those of another program."""
    text = file.read_text(encoding="utf-8") if file.stat().st_size < 2**20 else ""
    return all(re.search(rf"^{name}:", text, re.MULTILINE) for name in _OF_CONFIG)


def check_writable(folder: Path) -> None:
    """Check that a run folder can be made at or below ``folder``, without making one.

    This runs before any work begins.

    Raises:
        ConfigError: If no run folder can be made there.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is read-only" if existing.is_dir() else "is not a folder"
        raise ConfigError(f"cannot write runs to {folder}: {existing} {reason}; set runs=<folder> or run_dir=<folder>")


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a run, its ``run.json``.

    Raises:
        ArtifactError: If the folder is not a run folder, or if the record is damaged.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / RECORD):
        if folder.is_dir() and (is_abandoned(folder) or not any(folder.iterdir())):
            raise ArtifactError(
                f"{folder} holds no run yet, only its beginning: run the command that made it again, with "
                f"{command(f'run_dir={folder}')}"
            )
        raise ArtifactError(f"{folder} is not a run folder: it has no {RECORD}")
    record = sealing.read(folder)
    words = [record.get(name) for name in ("status", "started", "fingerprint")]
    if not all(isinstance(word, str) and len(word) <= _WORD_LIMIT for word in words) or not (
        isinstance(record.get("overrides"), list) and all(isinstance(text, str) for text in record["overrides"])
    ):
        raise ArtifactError(f"{folder / RECORD} is not the record of a run")
    return record


def default_root() -> Path:
    """Return the default folder of runs, which is the same as in conf/train.yaml."""
    return Path(os.environ.get("DEEPHASH_OUTPUT_DIR") or "runs")


def given_or_latest(run: str | None, codes: str | None = None) -> Path:
    """Return the run folder that a command works with.

    Args:
        run: A run folder; None for the run that made ``codes``, or without codes for the newest finished run in the
            default folder of runs.
        codes: A codes folder; None if the command works with no other codes than those of the run.

    Raises:
        ConfigError: If no run folder is given and there is no finished run, or not the run that made the codes.
        ArtifactError: If the given folder is not a run folder, or the codes do not say which run made them.
    """
    if run is not None:
        read_record(Path(run))
        return Path(run)
    if codes is not None:
        return _maker(Path(codes))
    root = default_root()
    finished = [(age(record), path) for path, record in scan(root) if record["status"] == "finished"]
    if not finished:
        raise ConfigError(f"there is no finished run under {root} here: give run=<run folder>")
    return max(finished)[1]


def age(record: Mapping[str, Any]) -> tuple[int, str]:
    """Return what orders the runs of one folder from the oldest to the newest: the number of the start, then its time.

    The number does not depend on the clock. Runs of earlier versions have none, and are older than those that have one.
    """
    return _number(record), record["started"]


def _number(record: Any) -> int:
    number = record.get("number") if isinstance(record, Mapping) else None
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else 0


def _next_number(root: Path) -> int:
    """Return the number of a run that is starting: higher than that of every earlier start under ``root``.

    A file counts the starts. If it is missing or damaged, the records of the runs tell how many there were.
    """
    state = root / STATE
    if not state.is_dir():  # of a run folder that is somewhere else than the others
        return 1 + _highest(root)
    try:
        with alone(state / "number.lock"):
            try:
                number = _number(read_sealed(state / "number.json"))
            except ArtifactError:
                number = _highest(root)
            write_sealed(state / "number.json", {"number": number + 1})
            return number + 1
    except ArtifactError:  # a disk that is full or read-only is reported by the file that needs it
        return 1 + _highest(root)


def _highest(root: Path) -> int:
    return max((_number(record) for _, record in scan(root)), default=0)


@contextlib.contextmanager
def starting(root: Path, fingerprint: str) -> Iterator[None]:
    """Let only one process at a time look for the run of some settings and begin it, if it is not there.

    Args:
        root: Folder of all runs.
        fingerprint: Digest of the settings, from `runs.fingerprint`.

    Raises:
        ConfigError: If the folder cannot be made.
        ArtifactError: If the disk is full.
    """
    try:
        (root / STATE).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_room(f"cannot make a run folder at runs={root}", root, error) from error
    with alone(root / STATE / f"starting-{fingerprint[:2]}.lock"):
        yield


def _maker(codes: Path) -> Path:
    """Return the run whose network made codes: at its place when they were made, or else under the default folder.

    Raises:
        ConfigError: If the run is in neither place.
        ArtifactError: If the codes are incomplete, or do not say which run made them.
    """
    real = codes.resolve()
    if real.name == CODES and (real.parent / RECORD).is_file():
        return _nearby(real.parent)
    manifest = read_manifest(codes, ())
    identity, network = _origin(manifest)
    if identity is None and network is None:
        raise ArtifactError(
            f"{codes} does not say which network made its codes: give a folder of codes that deephash encode wrote"
        )
    place, root = manifest.get("run_folder"), default_root()
    recorded = [Path(place)] if _is_line(place) else []
    for folder in [*recorded, *(path for path, _ in scan(root))]:
        with contextlib.suppress(ArtifactError, OSError):  # of a path that is too long for the system
            record = read_record(folder)
            if identity is None:  # a copy of a run's own codes
                is_maker = _origin(read_manifest(folder / CODES, ()))[1] == network
            else:
                is_maker = record.get("id") == identity
            if is_maker:
                return _nearby(folder)
    name = f"run {identity}" if identity else f"a run whose checkpoint has the SHA-256 {network}"
    if recorded:
        raise ConfigError(
            f"the codes in {codes} were made by {name} in {place}, which is neither there nor under {root} now: give "
            "run=<run folder>"
        )
    raise ConfigError(f"the codes in {codes} were made by {name}, which is not under {root}: give run=<run folder>")


def _origin(manifest: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the id of the run and the SHA-256 of the checkpoint that made codes; None for what is not recorded."""
    provenance = manifest.get("provenance")
    known = provenance if isinstance(provenance, Mapping) else {}
    checkpoint = known.get("checkpoint")
    found = known.get("run"), checkpoint.get("sha256") if isinstance(checkpoint, Mapping) else None
    identity, network = (value if _is_line(value) else None for value in found)
    return identity, network


def _is_line(value: Any) -> TypeGuard[str]:
    """Whether a value of a record, which may have been edited, is text that can be printed in a line."""
    return isinstance(value, str) and value.isprintable() and bool(value)


def _nearby(folder: Path) -> Path:
    """Return a path from the current folder, if that contains the folder."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def codes_folder(verb: str, run: str | None, codes: str | None) -> Path:
    """Return the codes folder that a command works on.

    Args:
        verb: Name of the command, for messages.
        run: A run folder, whose codes are meant; ``None`` if ``codes`` is given.
        codes: A codes folder; ``None`` if ``run`` is given.

    Raises:
        ConfigError: If neither or both of ``run`` and ``codes`` are given.
        ArtifactError: If ``run`` is not a run folder.
    """
    if (run is None) == (codes is None):
        got = "neither" if run is None else "both"
        raise ConfigError(f"deephash {verb} needs run=<run folder> or codes=<folder of codes>, got {got}")
    if run is None:
        return Path(str(codes))
    read_record(Path(run))
    sealing.require_intact(Path(run), CODES_MANIFEST)
    return Path(run) / CODES


def status(folder: Path, record: Mapping[str, Any]) -> str:
    """Return the status of a run: ``finished``, ``failed``, ``interrupted`` or ``running``.

    A run that was killed could not record its end, so its record still says ``running``. It counts as ``interrupted``,
    because no process holds the lock of its folder any more.
    """
    if record["status"] != "running":
        return record["status"]
    if not locks_are_on():
        return "running" if _is_alive(record) else "interrupted"
    return "running" if is_in_use(folder) else "interrupted"


def is_in_use(folder: Path) -> bool:
    """Return whether another process holds the lock of a run folder."""
    try:
        with os.fdopen(os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # it may be a pipe
            return not lock(file, shared=True)
    except (OSError, ConfigError):  # no such file, or a file system without locks
        return False


def wait_for(folder: Path) -> None:
    """Wait until no other process holds the lock of a run folder."""
    with contextlib.suppress(OSError), (folder / LOCK).open("rb") as file:
        lock(file, wait=True, shared=True)


def _is_alive(record: Mapping[str, Any]) -> bool:
    """Return whether the process of a record exists, as far as this machine can tell."""
    if record.get("host") != platform.node():
        return True
    try:
        os.kill(int(record["process"]), 0)
    except PermissionError:  # it belongs to somebody else
        return True
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return False
    return True


def seconds(record: Mapping[str, Any]) -> float | None:
    """Return the duration of a run in seconds, or None if its record does not give both start and end."""
    try:
        started, ended = (datetime.datetime.fromisoformat(record[name]) for name in ("started", "ended"))
        return (ended - started).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def find(root: Path, wanted: str) -> Path | None:
    """Find the run under ``root`` whose fingerprint is ``wanted``.

    Of several, return the newest finished one, or the newest one if none is finished. Return None if there is no such
    run.
    """
    found = [(path, record) for path, record in scan(root) if record["fingerprint"] == wanted]
    found.sort(key=lambda run: (run[1]["status"] == "finished", age(run[1])))
    return found[-1][0] if found else None


def scan(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and the record of every readable run under ``root``."""
    for record_file in sorted(root.glob(f"*/{RECORD}")):
        try:
            yield record_file.parent, read_record(record_file.parent)
        except ArtifactError:
            continue


def _lock(folder: Path) -> IO[bytes]:
    """Lock the folder for this process. The system releases the lock when the process ends, even if it is killed."""
    try:
        file = (folder / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise _no_room(f"cannot write to {folder}", folder, error) from error
    try:
        for _ in range(_TRIES):
            if lock(file):
                break
            time.sleep(0.05)  # a command that only lists runs holds the lock for a moment
        else:
            raise InUseError(folder)
    except BaseException:
        file.close()
        raise
    with contextlib.suppress(OSError):  # the disk may be full, and this is only for people
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {_now()}".encode())
    return file


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

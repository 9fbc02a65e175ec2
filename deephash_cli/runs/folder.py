"""Name, create, lock, write and find run folders."""

import contextlib
import datetime
import fcntl
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TypeGuard

from deephash_cli import __version__
from deephash_cli.errors import ArtifactError, ConfigError, command
from deephash_cli.files import read_json, write_json, write_text
from deephash_cli.retrieval.codes_folder import read_manifest
from deephash_cli.runs.settings import CONFIG, hide_in_override

RECORD = "run.json"
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

_RECORD_LIMIT = 2**20  # bytes of run.json: the settings as typed, the versions and an error
_WORD_LIMIT = 200  # characters of a status, a time or a fingerprint
EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}  # reported to W&B for each status


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
        ConfigError: If another process is writing to the folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = _lock(path)

    def start(self, config_yaml: str, fingerprint: str, overrides: Sequence[str]) -> str:
        """Record what is about to run, in ``config.yaml`` and ``run.json``.

        Args:
            config_yaml: The resolved configuration as YAML.
            fingerprint: Digest of the settings that decide the result, from `runs.fingerprint`.
            overrides: Overrides as typed; secrets in them are hidden.

        Returns:
            The run's id. A resumed run keeps its id.
        """
        known = read_record(self.path) if (self.path / RECORD).exists() else {}
        record = {
            "id": known.get("id") or secrets.token_hex(6),
            "status": "running",
            "started": _now(),
            "process": os.getpid(),
            "host": platform.node(),
            "fingerprint": fingerprint,
            "overrides": [hide_in_override(override) for override in overrides],
            "versions": versions(),
        }
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        for folder in (self.path, self.path / CHECKPOINTS, self.path / CODES):
            for leftover in folder.glob(".*.tmp"):  # left by a process that was killed while writing
                leftover.unlink(missing_ok=True)
        write_text(self.path / CONFIG, config_yaml)
        write_json(self.path / RECORD, record)
        return record["id"]

    def end(self, status: str, error: str | None = None) -> None:
        """Record how the run ended.

        Args:
            status: ``finished``, ``failed`` or ``interrupted``.
            error: Message of the error that ended the run; ``None`` if there was no error.
        """
        record = read_record(self.path)
        write_json(self.path / RECORD, {**record, "status": status, "ended": _now(), "error": error})

    def discard(self) -> None:
        """Remove the folder with all its files, if none of them is worth keeping."""
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Release the lock, so that other processes can write to the folder."""
        self._lock.close()


def create(root: Path, name: str, run_dir: str | None) -> Run:
    """Make a new, empty run folder: ``run_dir`` if given, else a unique one under ``root``.

    Args:
        root: Folder of all runs.
        name: Start of the unique folder's name; date, time and random digits follow.
        run_dir: The run folder itself; ``None`` for a unique one.

    Raises:
        ConfigError: If the folder cannot be made, or if ``run_dir`` is not empty.
    """
    try:
        if run_dir is None:
            root.mkdir(parents=True, exist_ok=True)
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            path = root / f"{name}-{stamp}-{secrets.token_hex(4)}"
            path.mkdir()
        else:
            path = Path(run_dir)
            check_unused(path)
            path.mkdir(parents=True, exist_ok=True)
        return Run(path)
    except OSError as error:
        where = f"run_dir={run_dir}" if run_dir else f"runs={root}"
        raise ConfigError(
            f"cannot make a run folder at {where}: {error.strerror or error}; choose a folder you can write to"
        ) from error


def check_unused(path: Path) -> None:
    """Check that a folder for a new run does not exist or is empty.

    Raises:
        ConfigError: If it holds files.
    """
    if path.is_dir() and any(entry.name != ".lock" for entry in path.iterdir()):
        more = f", or {command(f'resume={path}')} to continue the run in it" if (path / RECORD).is_file() else ""
        raise ConfigError(f"run_dir={path} is not empty: choose another folder{more}")


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
        raise ArtifactError(f"{folder} is not a run folder: it has no {RECORD}")
    record = read_json(folder / RECORD, limit=_RECORD_LIMIT)
    texts = record if isinstance(record, dict) else {}
    words = [texts.get(name) for name in ("status", "started", "fingerprint")]
    if not all(isinstance(word, str) and len(word) <= _WORD_LIMIT for word in words) or not (
        isinstance(texts.get("overrides"), list) and all(isinstance(text, str) for text in texts["overrides"])
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
    finished = [(record["started"], path) for path, record in scan(root) if record["status"] == "finished"]
    if not finished:
        raise ConfigError(f"there is no finished run under {root} here: give run=<run folder>")
    return max(finished)[1]


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
    return Path(run) / CODES


def status(folder: Path, record: Mapping[str, Any]) -> str:
    """Return the status of a run: ``finished``, ``failed``, ``interrupted`` or ``running``.

    A run that was killed could not record its end, so its record still says ``running``. It counts as ``interrupted``,
    because no process holds the lock of its folder any more.
    """
    if record["status"] != "running":
        return record["status"]
    try:
        with os.fdopen(os.open(folder / ".lock", os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # it may be a pipe
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:  # no such file, or a file system without locks
        pass
    return "interrupted"


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
    found.sort(key=lambda run: (run[1]["status"] == "finished", run[1]["started"]))
    return found[-1][0] if found else None


def scan(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and the record of every readable run under ``root``."""
    for record_file in sorted(root.glob(f"*/{RECORD}")):
        try:
            yield record_file.parent, read_record(record_file.parent)
        except ArtifactError:
            continue


def _lock(folder: Path) -> IO[str]:
    """Lock the folder for this process. The system releases the lock when the process ends, even if it is killed."""
    file = (folder / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        owner = (folder / ".lock").read_text().strip() or "another process"
        raise ConfigError(f"{folder} is in use by {owner}: wait for it to end, or choose another run_dir") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()} since {_now()}")
    file.flush()
    return file


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

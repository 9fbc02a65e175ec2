"""The run folder: its name, its files, who is writing to it, and how to find it again."""

import datetime
import fcntl
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from deephash_cli import __version__
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.files import read_json, write_json, write_text
from deephash_cli.runs.settings import CONFIG, hide_in_override

RECORD = "run.json"
METRICS = "metrics.json"
STEPS = "metrics.jsonl"
HEAD_STEPS = "head.jsonl"
SPLIT = "split.json"
CODES = "codes"
RETRIEVAL = "retrieval.json"
RETRIEVAL_IMAGE = "retrieval.webp"
CHECKPOINTS = "checkpoints"

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}  # that a dashboard is told


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy", "hydra-core", "wandb")
    return {
        "deephash": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


class Run:
    """A run folder that this process may write to until ``close``.

    Args:
        path: The folder; it exists.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = _lock(path)

    def start(self, config_yaml: str, fingerprint: str, overrides: Sequence[str]) -> str:
        """Write down what is about to run.

        Returns:
            The run's id, which it keeps when it is resumed.
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
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
        write_text(self.path / CONFIG, config_yaml)
        write_json(self.path / RECORD, record)
        return record["id"]

    def end(self, status: str, error: str | None = None) -> None:
        """Write down how it ended: ``finished``, ``failed`` or ``interrupted``."""
        record = read_record(self.path)
        write_json(self.path / RECORD, {**record, "status": status, "ended": _now(), "error": error})

    def discard(self) -> None:
        """Remove the folder: nothing in it is worth keeping."""
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Let other processes write to the folder."""
        self._lock.close()


def create(root: Path, name: str, run_dir: str | None) -> Run:
    """Make a new, empty run folder: ``run_dir`` if given, else a unique one under ``root`` named after ``name``.

    Raises:
        ConfigError: If the folder cannot be made, or ``run_dir`` holds something already.
    """
    try:
        if run_dir is None:
            root.mkdir(parents=True, exist_ok=True)
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            path = root / f"{name}-{stamp}-{secrets.token_hex(2)}"
            path.mkdir()
        else:
            path = Path(run_dir)
            if path.is_dir() and any(entry.name != ".lock" for entry in path.iterdir()):
                raise ConfigError(
                    f"run_dir={path} is not empty: choose another folder, or resume={path} to go on with the run in it"
                )
            path.mkdir(parents=True, exist_ok=True)
        return Run(path)
    except OSError as error:
        where = f"run_dir={run_dir}" if run_dir else f"runs={root}"
        raise ConfigError(
            f"cannot make a run folder at {where}: {error.strerror or error}; choose a folder you can write to"
        ) from error


def check_writable(folder: Path) -> None:
    """Find out before any work whether a run folder can be made there, without making one.

    Raises:
        ConfigError: If not.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is read-only" if existing.is_dir() else "is not a folder"
        raise ConfigError(f"cannot write runs to {folder}: {existing} {reason}; set runs=<folder> or run_dir=<folder>")


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        ArtifactError: If the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise ArtifactError(f"{folder} is not a run folder: it has no {RECORD}")
    record = read_json(folder / RECORD)
    texts = record if isinstance(record, dict) else {}
    if not all(isinstance(texts.get(name), str) for name in ("status", "started", "fingerprint")) or not (
        isinstance(texts.get("overrides"), list) and all(isinstance(text, str) for text in texts["overrides"])
    ):
        raise ArtifactError(f"{folder / RECORD} is not the record of a run")
    return record


def default_root() -> Path:
    """The folder that runs are written to unless the command says otherwise, as conf/train.yaml has it."""
    return Path(os.environ.get("DEEPHASH_OUTPUT_DIR") or "runs")


def given_or_latest(run: str | None) -> Path:
    """A run folder that was given, or the newest finished one of the folder that runs are written to.

    Raises:
        ConfigError: If none was given and there is none.
        ArtifactError: If what was given is no run folder.
    """
    if run is not None:
        read_record(Path(run))
        return Path(run)
    root = default_root()
    finished = [(record["started"], path) for path, record in scan(root) if record["status"] == "finished"]
    if not finished:
        raise ConfigError(f"there is no finished run under {root} here: give run=<run folder>")
    return max(finished)[1]


def codes_folder(verb: str, run: str | None, codes: str | None) -> Path:
    """The codes that a command is about: those of a run folder, or of a folder of codes.

    Raises:
        ConfigError: If neither or both are given.
        ArtifactError: If ``run`` is no run folder.
    """
    if (run is None) == (codes is None):
        got = "neither" if run is None else "both"
        raise ConfigError(f"deephash {verb} needs run=<run folder> or codes=<folder of codes>, got {got}")
    if run is None:
        return Path(str(codes))
    read_record(Path(run))
    return Path(run) / CODES


def status(folder: Path, record: Mapping[str, Any]) -> str:
    """What has become of a run: ``finished``, ``failed``, ``interrupted`` or ``running``.

    One that was killed could not write down its end: nobody holds its folder any more.
    """
    if record["status"] != "running":
        return record["status"]
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:  # no such file, or a file system without locks
        pass
    return "interrupted"


def seconds(record: Mapping[str, Any]) -> float | None:
    """How long a run took, by its record; nothing if that does not say so."""
    try:
        started, ended = (datetime.datetime.fromisoformat(record[name]) for name in ("started", "ended"))
        return (ended - started).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def find(root: Path, wanted: str) -> Path | None:
    """The run under ``root`` whose fingerprint is ``wanted``: a finished one, else the newest."""
    found = [(path, record) for path, record in scan(root) if record["fingerprint"] == wanted]
    found.sort(key=lambda run: (run[1]["status"] == "finished", run[1]["started"]))
    return found[-1][0] if found else None


def scan(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every run under ``root`` that can be read."""
    for record_file in sorted(root.glob(f"*/{RECORD}")):
        try:
            yield record_file.parent, read_record(record_file.parent)
        except ArtifactError:
            continue


def _lock(folder: Path) -> IO[str]:
    """Hold the folder for this process. The system lets go of it when the process ends, however it ends."""
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

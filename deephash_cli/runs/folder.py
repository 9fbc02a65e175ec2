"""The run folder: its name, its files, who is writing to it, and how to find it again."""

import datetime
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml
from yaml.constructor import ConstructorError

from deephash_cli import __version__
from deephash_cli.errors import ArtifactError, ConfigError, first_line
from deephash_cli.files import read_json, write_json, write_text

RECORD = "run.json"
CONFIG = "config.yaml"
METRICS = "metrics.json"
STEPS = "metrics.jsonl"
HEAD_STEPS = "head.jsonl"
SPLIT = "split.json"
CODES = "codes"
RETRIEVAL = "retrieval.json"
RETRIEVAL_IMAGE = "retrieval.webp"
CHECKPOINTS = "checkpoints"

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}  # that a dashboard is told

# Settings that say where and how a run is computed and logged, not what it computes.
INCIDENTAL = (
    "run_dir",
    "runs",
    "resume",
    "allowed_targets",
    "group",
    "logger",
    "gallery",
    "loader.num_workers",
    "loader.pin_memory",
)
# Settings that a resumed run may change besides those: how long and on what it trains.
RESUMABLE = (*INCIDENTAL, "trainer", "checkpoint", "metrics")

_CONFIG_LIMIT = 2**20  # bytes
_CONFIG_DEPTH = 100
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled one takes a tenth of the time

_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


def fingerprint(config: Mapping[str, Any]) -> str:
    """Digest of the settings that decide a run's result, and of the version that computes it."""
    content = {name: value for name, value in flatten(config).items() if not belongs(name, INCIDENTAL)}
    return hashlib.sha256(json.dumps([__version__, content], sort_keys=True).encode()).hexdigest()[:16]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which secrets are hidden: by the name of a setting, or by a secret of the environment in its value."""
    return {
        name: "<hidden>" if value and _SECRET.search(name) and not isinstance(value, Mapping) else _hide(value)
        for name, value in config.items()
    }


def _hide(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact(value)
    if isinstance(value, list):
        return [_hide(item) for item in value]
    if isinstance(value, str) and any(secret in value for secret in _secrets()):
        return "<hidden>"
    return value


def _secrets() -> list[str]:
    """Values of environment variables whose name speaks of a secret; short ones would be found in harmless text."""
    return [value for name, value in os.environ.items() if len(value) >= 8 and _SECRET.search(name)]


def hide_in_override(override: str) -> str:
    """A setting as it was typed, its value hidden if it is a secret."""
    name, _, value = override.partition("=")
    return f"{name}=<hidden>" if value and (_SECRET.search(name) or _hide(value) != value) else override


def forbidden_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Settings that a resumed run must keep and that differ all the same, as ``name: old -> new``."""
    old, new = flatten(before), flatten(after)
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not belongs(name, RESUMABLE)
    ]


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


class _ConfigLoader(_SAFE):
    """Safe YAML in which no key may stand twice: one of the two values would be ignored in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), keys[-1])
            raise ConstructorError(None, None, f"the key {twice!r} occurs twice", node.start_mark)
        return mapping


def read_config(folder: Path) -> dict[str, Any]:
    """Read the settings of a run as plain values. Nothing in the file is resolved, expanded or built.

    Args:
        folder: The run folder. It may come from somebody else.

    Raises:
        ArtifactError: If ``config.yaml`` is missing, too large, not YAML, not a mapping, or has aliases, which can
            turn a few hundred bytes into more settings than fit into memory.
    """
    file = Path(folder) / CONFIG
    try:
        if file.stat().st_size > _CONFIG_LIMIT:
            raise ArtifactError(f"{file} must have at most {_CONFIG_LIMIT} bytes, as any configuration of a run has")
        text = file.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=_SAFE):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ArtifactError(f"{file} has YAML aliases, which deephash does not write: it was edited by hand")
            if depth > _CONFIG_DEPTH:
                raise ArtifactError(f"{file} is nested deeper than {_CONFIG_DEPTH} levels: it was edited by hand")
        content = yaml.load(text, Loader=_ConfigLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ArtifactError(f"{file} cannot be read as YAML: {error.problem}{line}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArtifactError(f"{file} cannot be read as a configuration: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{file} is not the configuration of a run")
    return content


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


def belongs(name: str, keys: Sequence[str]) -> bool:
    """Whether a dotted name is one of some settings, or below one."""
    return any(name == key or name.startswith(f"{key}.") for key in keys)


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

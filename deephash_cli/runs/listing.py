"""Read any run, whatever its status, and choose runs by their settings."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deephash_cli import runs
from deephash_cli.data.changes import in_words
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, command, first_line, hint, short
from deephash_cli.retrieval import scoring, similarity
from deephash_cli.runs import records

COLUMNS = ("status", "method", "dataset", "bits", "seed", "map", "started", "minutes", "run")
_LONGEST = 1000  # characters of a note or a reason


@dataclass(frozen=True)
class Listed:
    """A run in the list.

    Attributes:
        columns: Value for each of ``COLUMNS``; None if it is not known.
        settings: Configuration of the run under dotted names.
        note: Progress of the run, why it failed, or the mAP of queries of seen and of unseen classes.
        age: Value that orders the runs of one folder from the oldest to the newest, see `runs.age`.
    """

    columns: dict[str, Any]
    settings: dict[str, Any]
    note: str
    age: tuple[int, str] = (0, "")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.columns["run"])


@dataclass(frozen=True)
class LeftOut:
    """A run folder that is in no table, and the reason."""

    folder: Path
    reason: str


def paths_and_filters(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Tell the paths among some words from the filters, such as ``method=dpsh,dtsh``.

    A word is a filter if it has an equals sign with a name before it, and no file or folder has the word as its path.

    Returns:
        The paths, or the folder of all runs if there is none, and the wanted values by name of the setting.

    Raises:
        ConfigError: If a setting is given twice, or there are no paths and no folder of all runs.
    """
    filters = [word for word in words if _is_filter(word)]
    paths = [Path(word) for word in words if word not in filters]
    wanted: dict[str, str] = {}
    for word in filters:
        name, values = word.split("=", 1)
        if name in wanted:
            both = command(f"{name}={wanted[name]},{values}")
            raise ConfigError(f"{name} is given twice: write {both} for runs with either value")
        wanted[name] = values
    default = runs.default_root()
    if not paths and not default.is_dir():
        raise ConfigError(f"there is no folder {default} here: give run folders, or folders of runs")
    return paths or [default], wanted


def _is_filter(word: str) -> bool:
    name, equals, _ = word.partition("=")
    exists = os.path.exists(word)  # noqa: PTH110  Path.exists raises an error if a name is too long for a path
    return bool(name and equals) and "/" not in name and not exists


def read(folder: Path) -> Listed:
    """Read a run for the list. A value whose file does not exist yet is None.

    Raises:
        ArtifactError: If its record or its settings cannot be read.
    """
    record = runs.read_record(folder)
    settings = records.settings(folder)
    status = runs.status(folder, record)
    seconds = runs.seconds(record)
    metrics = records.metrics(folder) if records.has_metrics(folder) else {}
    value = metrics.get("map")
    dataset, split = settings.get("dataset.name"), settings.get("dataset.protocol")
    if file := settings.get("dataset.split_file"):
        split = Path(str(file)).name
    elif split == "auto" and isinstance(chosen := metrics.get("split"), dict):
        split = chosen.get("name", split)  # the protocol that was chosen
    for name, text in (("dataset.name", dataset), ("dataset.protocol", split)):
        if text is not None and not records.is_name(text):
            raise ArtifactError(f"{folder} has {name}={short(str(text))}, no name: it was edited by hand")
    place = f"{dataset} {split}" if split else dataset
    special = in_words(record.get("changes"), with_names=False)
    special += similarity.in_words(similarity.of_policies(metrics.get("policies")))
    columns = {
        "status": status,
        "method": settings.get("method"),
        "dataset": place and ", ".join((place, *special)),
        "bits": settings.get("bits"),
        "seed": settings.get("seed"),
        "map": value if isinstance(value, float) and scoring.is_number(value) else None,
        "started": record["started"],
        "minutes": None if seconds is None else round(seconds / 60, 1),
        "run": str(folder),
    }
    note = _clipped(str(record.get("error") or ""))
    if status == "finished":
        maps = {name: part.get("map") for name, part in scoring.by_classes(metrics).items()}
        note = ", ".join(f"{name} {value:.4f}" for name, value in maps.items() if scoring.is_number(value)) or note
    if status in ("running", "interrupted"):
        note = f"epoch {records.epochs(folder)} of {short(str(settings.get('trainer.max_epochs')))}"
    return Listed(columns, settings, note, runs.age(record))


def left_out(folder: Path, error: BaseException) -> LeftOut:
    """Return the entry of a folder that could not be read because of an error."""
    return LeftOut(folder, _clipped(first_line(error)))


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def read_all(folders: Iterable[Path]) -> tuple[list[Listed], list[LeftOut]]:
    """Read some runs, and list the folders that cannot be read, with the reason."""
    found, unreadable = [], []
    for folder in folders:
        try:
            found.append(read(folder))
        except (DeephashError, OSError) as error:
            unreadable.append(left_out(folder, error))
    return found, unreadable


def choose(found: Sequence[Listed], wanted: Mapping[str, str]) -> list[Listed]:
    """Return the runs that have the wanted values.

    Args:
        found: Runs to choose from.
        wanted: Comma-separated values for columns, or for settings under dotted names or under the last part of a
            dotted name. A run is chosen if it has one of the values for each name.

    Raises:
        ConfigError: If no run has a setting of a name, or several settings end in it.
    """
    known = {*COLUMNS}.union(*(run.settings for run in found))
    wanted = {_full(name, known): values for name, values in wanted.items()} if found else {}
    return [run for run in found if all(_has(run, name, values) for name, values in wanted.items())]


def _full(name: str, known: set[str]) -> str:
    """Return the full name of a setting: ``optimizer.lr`` for ``lr``, if no other setting ends in ``.lr``."""
    if name in known:
        return name
    ends = sorted(full for full in known if full.endswith(f".{name}"))
    if len(ends) > 1:
        raise ConfigError(f"{name} may be {' or '.join(ends[:4])}: give the whole name")
    if not ends:
        near = hint(name, known) or hint(name, {full.rpartition(".")[2] for full in known})
        raise ConfigError(f"no run has the setting {short(name)}{near}")
    return ends[0]


def _has(run: Listed, name: str, values: str) -> bool:
    """Return whether a setting or a column of a run has one of the comma-separated values."""
    here = [source[name] for source in (run.settings, run.columns) if name in source]
    if name == "dataset":  # the name without the split is enough
        here.append(run.settings.get("dataset.name"))
    return any(_same(value, text) for value in here for text in (values, *values.split(",")))


def _same(value: Any, text: str) -> bool:
    if str(value) == text:
        return True
    with contextlib.suppress(ValueError):
        return isinstance(value, int | float) and not isinstance(value, bool) and float(text) == value
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(text) == value
    return False

"""``deephash runs``: list every run, one per line, whatever its status."""

import argparse
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from deephash_cli import runs
from deephash_cli.console import console, say, warn
from deephash_cli.errors import ConfigError, DeephashError, first_line, hint
from deephash_cli.files import csv_text, read_json
from deephash_cli.runs import results

COLUMNS = ("status", "method", "dataset", "bits", "seed", "map", "started", "minutes", "run")
_RIGHT = ("bits", "seed", "map", "minutes")
STATUSES = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


@dataclass(frozen=True)
class Listed:
    """A run in the list.

    Attributes:
        columns: Value for each of ``COLUMNS``; None if it is not known.
        settings: Configuration of the run under dotted names.
        note: Progress of the run, or why it failed.
    """

    columns: dict[str, Any]
    settings: dict[str, Any]
    note: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    parser.add_argument("words", nargs="*")
    parser.add_argument("--sort", default="started")
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"))


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash runs``."""
    wanted = [word for word in parsed.words if "=" in word and not Path(word).is_dir()]
    paths = [Path(word) for word in parsed.words if word not in wanted]
    default = runs.default_root()
    if not paths and not default.is_dir():
        raise ConfigError(f"there is no folder {default} here: give run folders, or folders of runs")
    settings = dict(word.split("=", 1) for word in wanted)
    list_runs(paths or [default], settings, parsed.sort, parsed.reverse, parsed.format)


def list_runs(paths: Sequence[Path], wanted: Mapping[str, str], sort: str, reverse: bool, form: str) -> None:
    """Print the runs at or below some paths.

    Args:
        paths: Run folders, or folders of runs.
        wanted: Comma-separated values for settings, under dotted names, or for columns. A run is listed if it has one
            of the values for each.
        sort: Column to sort by.
        reverse: Whether the largest value comes first.
        form: Output format: ``table``, ``csv`` or ``json``.

    Raises:
        ConfigError: If a path is not a folder, there is no run, no run has the setting, or ``sort`` is not a column.
    """
    if sort not in COLUMNS:
        raise ConfigError(f"--sort must be one of {', '.join(COLUMNS)}, got {sort}")
    found, unreadable = [], []
    for folder in results.find(paths):
        try:
            found.append(_read(folder))
        except DeephashError as error:
            unreadable.append(f"left out {folder}: {first_line(error)}")
    if not found and not unreadable:
        raise ConfigError(f"no run in {' '.join(map(str, paths))}: deephash train makes one")
    known = {*COLUMNS}.union(*(run.settings for run in found))
    for name in wanted:
        if name not in known:
            raise ConfigError(f"no run has the setting {name}{hint(name, known)}")
    chosen = [run for run in found if all(_has(run, name, values) for name, values in wanted.items())]
    chosen.sort(key=lambda run: _order(run.columns[sort]), reverse=reverse)
    if form == "table":
        _show(chosen, len(found))
    else:
        records = [{**run.columns, "note": run.note} for run in chosen]
        text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
        console.file.write(text if form == "json" else csv_text((*COLUMNS, "note"), records))
    for line in unreadable:
        warn(line)


def _read(folder: Path) -> Listed:
    """Read a run for the list. A value whose file does not exist yet is None.

    Raises:
        ArtifactError: If its record or its settings cannot be read.
    """
    record = runs.read_record(folder)
    settings = runs.flatten(runs.read_config(folder))
    status = runs.status(folder, record)
    seconds = runs.seconds(record)
    metrics = read_json(folder / runs.METRICS) if (folder / runs.METRICS).exists() else None
    value = metrics.get("map") if isinstance(metrics, dict) else None
    dataset, split = settings.get("dataset.name"), settings.get("dataset.protocol")
    if file := settings.get("dataset.split_file"):
        split = Path(str(file)).name
    elif split == "auto" and isinstance(metrics, dict):  # the protocol that was chosen
        split = metrics.get("split", {}).get("name", split)
    columns = {
        "status": status,
        "method": settings.get("method"),
        "dataset": f"{dataset} {split}" if split else dataset,
        "bits": settings.get("bits"),
        "seed": settings.get("seed"),
        "map": value if isinstance(value, float) else None,
        "started": record["started"],
        "minutes": None if seconds is None else round(seconds / 60, 1),
        "run": str(folder),
    }
    note = str(record.get("error") or "")
    if status in ("running", "interrupted"):
        note = f"epoch {_epochs(folder)} of {settings.get('trainer.max_epochs')}"
    return Listed(columns, settings, note)


def _epochs(folder: Path) -> int:
    """Return the number of epochs that a run has finished, from its log; 0 if there is no log."""
    with contextlib.suppress(OSError, IndexError, ValueError, TypeError, KeyError):
        return 1 + int(json.loads((folder / runs.STEPS).read_text(encoding="utf-8").splitlines()[-1])["epoch"])
    return 0


def _has(run: Listed, name: str, values: str) -> bool:
    """Return whether a setting or a column of a run has one of the comma-separated values."""
    here = [source[name] for source in (run.settings, run.columns) if name in source]
    if name == "dataset":  # the name without the split is enough
        here.append(run.settings.get("dataset.name"))
    return any(_same(value, text) for value in here for text in values.split(","))


def _same(value: Any, text: str) -> bool:
    if str(value) == text:
        return True
    with contextlib.suppress(ValueError):
        return isinstance(value, int | float) and not isinstance(value, bool) and float(text) == value
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(text) == value
    return False


def _order(value: Any) -> tuple[bool, bool, Any]:
    """Return a sort key that puts None first, and numbers before texts."""
    return (value is not None, isinstance(value, str), 0 if value is None else value)


def _show(chosen: Sequence[Listed], of: int) -> None:
    """Print a line for each run. On a terminal that is too narrow, the folder and the note follow on a second line."""
    heads = [name for name in COLUMNS if name != "run"]
    cells = [heads, *([_cell(name, run.columns[name]) for name in heads] for run in chosen)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    places = ["run", *(": ".join(filter(None, (run.columns["run"], run.note))) for run in chosen)]
    fits = sum(widths) + 2 * len(widths) + max(map(len, places)) <= console.width
    for number, (line, place) in enumerate(zip(cells, places, strict=True)):
        padded = [
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for name, cell, width in zip(heads, line, widths, strict=True)
        ]
        text = Text("  ".join(padded), "bold" if number == 0 else "")
        if number and line[0] in STATUSES:
            text.stylize(STATUSES[line[0]], 0, len(line[0]))
        if fits or not console.is_terminal:
            text.append(f"  {place}")
        elif number:
            text.append(f"\n    {place}")
        console.print(text, soft_wrap=True)
    kinds = [(status, sum(run.columns["status"] == status for run in chosen)) for status in STATUSES]
    counts = ", ".join(f"{count} {status}" for status, count in kinds if count)
    say(f"{len(chosen)} of {of} runs{f': {counts}' if counts else ''}; times are UTC")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "started":
        return value[:16].replace("T", " ")
    return f"{value:.4f}" if name == "map" else " ".join(str(value).split())

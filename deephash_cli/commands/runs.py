"""``deephash runs``: list every run, one per line, whatever its status."""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from deephash_cli import runs
from deephash_cli.console import console, say, warn
from deephash_cli.errors import ConfigError, one_line
from deephash_cli.files import csv_text, json_text
from deephash_cli.runs import listing, results
from deephash_cli.runs.listing import COLUMNS, Listed

_RIGHT = ("bits", "seed", "map", "minutes")
_LEAST_NEEDED = ("minutes", "started", "dataset")  # columns that a narrow terminal does without, in this order
_SHORT = 60  # largest number of characters of the settings of a run in the table
STATUSES = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    parser.add_argument("words", nargs="*")
    parser.add_argument("--sort", default="started")
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"))


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash runs``."""
    paths, wanted = listing.paths_and_filters(parsed.words)
    list_runs(paths, wanted, parsed.sort, parsed.reverse, parsed.format)


def list_runs(paths: Sequence[Path], wanted: Mapping[str, str], sort: str, reverse: bool, form: str) -> None:
    """Print the runs at or below some paths.

    Args:
        paths: Run folders, or folders of runs.
        wanted: Values that runs must have, as for `listing.choose`.
        sort: Column to sort by, in ascending order; ``map`` has the best run first. Runs without a value come last.
        reverse: Whether the order is the opposite; runs without a value still come last.
        form: Output format: ``table``, ``csv`` or ``json``.

    Raises:
        ConfigError: If a path is not a folder, there is no run, no run has the setting, or ``sort`` is not a column.
    """
    if sort not in COLUMNS:
        raise ConfigError(f"--sort must be one of {', '.join(COLUMNS)}, got {sort}")
    found, unreadable = listing.read_all(results.find(paths))
    if not found and not unreadable:
        raise ConfigError(f"no run in {' '.join(map(str, paths))}: deephash train makes one")
    chosen = listing.choose(found, wanted)
    with_value = [run for run in chosen if run.columns[sort] is not None]
    by_number = sort == "started" and len({run.folder.absolute().parent for run in with_value}) == 1
    with_value.sort(
        key=lambda run: run.age if by_number else _order(run.columns[sort]), reverse=(sort == "map") != reverse
    )
    chosen = [*with_value, *(run for run in chosen if run.columns[sort] is None)]
    differing = _differing(chosen)
    if form == "table":
        _show(chosen, [_text(settings, _SHORT) for settings in differing], sort, len(found))
    else:
        records: list[dict[str, Any]] = [
            {**run.columns, "settings": settings, "note": run.note}
            for run, settings in zip(chosen, differing, strict=True)
        ]
        if form == "json":
            text = json_text(records)
        else:
            lines = [{**record, "settings": _text(record["settings"])} for record in records]
            text = csv_text((*COLUMNS, "settings", "note"), lines)
        console.file.write(text)
    for entry in unreadable:
        warn(f"left out {entry.folder}: {entry.reason}")


def _differing(chosen: Sequence[Listed]) -> list[dict[str, Any]]:
    """Return for each run the settings in which the runs of its method and data set differ, by dotted name."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, run in enumerate(chosen):
        groups.setdefault((str(run.columns["method"]), str(run.columns["dataset"])), []).append(number)
    differing: list[dict[str, Any]] = [{} for _ in chosen]
    for numbers in groups.values():
        for number, settings in zip(
            numbers, results.differences([_kind(chosen[number]) for number in numbers]), strict=True
        ):
            differing[number] = settings
    return differing


def _kind(run: Listed) -> dict[str, Any]:
    return {
        name: value for name, value in runs.comparable(run.settings).items() if not runs.belongs(name, results.VARIED)
    }


def _text(settings: Mapping[str, Any], length: int | None = None) -> str:
    """Return settings as one line, cut between two of them if it would have more than ``length`` characters."""
    text = one_line(" ".join(f"{name}={' '.join(str(value).split())}" for name, value in settings.items()))
    return text if length is None else textwrap.shorten(text, length, placeholder=" ...", break_on_hyphens=False)


def _order(value: Any) -> tuple[bool, Any]:
    """Return a sort key that puts numbers before texts."""
    return (isinstance(value, str), value)


def _show(chosen: Sequence[Listed], settings: Sequence[str], sort: str, of: int) -> None:
    """Print a line for each run.

    On a terminal that is too narrow, the settings, the folder and the note follow on lines of their own, and if that
    is not enough, the columns in ``_LEAST_NEEDED`` are left out.

    Args:
        chosen: Runs, in the order in which they are printed.
        settings: Settings in which each run differs from others, as text.
        sort: Column that the runs are sorted by; it is never left out.
        of: Number of runs that the list was chosen from.
    """
    columns = {name: [name, *(_cell(name, run.columns[name]) for run in chosen)] for name in COLUMNS if name != "run"}
    last = {"settings": ["settings", *settings]} if any(settings) else {}
    last["run"] = ["run", *(one_line(": ".join(filter(None, (run.columns["run"], run.note)))) for run in chosen)]
    is_one_line = not console.is_terminal or _width({**columns, **last}) <= console.width
    if is_one_line:
        columns |= last
    for name in _LEAST_NEEDED:
        if not is_one_line and name != sort and _width(columns) > console.width:
            del columns[name]
    widths = [max(map(len, cells)) for cells in columns.values()]
    for number, line in enumerate(zip(*columns.values(), strict=True)):
        padded = [
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        ]
        text = Text("  ".join(padded).rstrip(), "bold" if number == 0 else "")
        if number and line[0] in STATUSES:
            text.stylize(STATUSES[line[0]], 0, len(line[0]))
        if number and not is_one_line:
            text.append(f"\n{_below('  '.join(filter(None, (cells[number] for cells in last.values()))))}")
        console.print(text, soft_wrap=True)
    kinds = [(status, sum(run.columns["status"] == status for run in chosen)) for status in STATUSES]
    counts = ", ".join(f"{count} {status}" for status, count in kinds if count)
    say(f"{len(chosen)} of {of} runs{f': {counts}' if counts else ''}; times are UTC")


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Return the width of some columns with two spaces between them, in characters."""
    return sum(max(map(len, cells)) for cells in columns.values()) + 2 * (len(columns) - 1)


def _below(text: str) -> str:
    """Return a text as indented lines that are as wide as the terminal and break no word."""
    space = " " * 4
    return textwrap.fill(
        text,
        console.width,
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "started":
        return one_line(value[:16].replace("T", " "))
    return f"{value:.4f}" if name == "map" else one_line(" ".join(str(value).split()))

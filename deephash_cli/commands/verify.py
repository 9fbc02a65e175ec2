"""``deephash verify``: compare runs, codes, indexes, exports and caches with their digests."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from deephash_cli.console import console, say
from deephash_cli.errors import ArtifactError, ConfigError, one_line
from deephash_cli.files import csv_text
from deephash_cli.runs import verifying
from deephash_cli.runs.verifying import DAMAGED, INTACT, STATES, Checked

_COLUMNS = ("path", "kind", "state", "file", "problem", "remedy", "note")
_COLOURS = {"damaged": "red", "running": "cyan", "unfinished": "yellow", "unverified": "yellow", "intact": "green"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="folder")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"))


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash verify``.

    Raises:
        ConfigError: If a path does not exist, or deephash wrote nothing there.
        ArtifactError: If anything is damaged.
    """
    found = []
    for checked in verifying.verify(parsed.paths):
        found.append(checked)
        if parsed.format == "table" and (parsed.all or checked.state != INTACT):
            _show(checked)
    if not found:
        places = " ".join(map(str, parsed.paths))
        raise ConfigError(f"deephash wrote nothing in {places} that has digests: give run folders or folders of codes")
    if parsed.format == "json":
        console.file.write(json.dumps(_records(found), indent=2, ensure_ascii=False) + "\n")
    elif parsed.format == "csv":
        console.file.write(csv_text(_COLUMNS, _lines(found)))
    else:
        say(_summary(found))
    if damaged := sum(checked.state == DAMAGED for checked in found):
        raise ArtifactError(f"{damaged} of {len(found)} are damaged")


def _show(checked: Checked) -> None:
    """Print a line for what was checked, and below it a line for each damaged file, or for the reason of its state."""
    line = f"{checked.state:<10}  {checked.kind:<10}  {one_line(str(checked.path))}"
    text = Text(line)
    text.stylize(_COLOURS[checked.state], 0, len(checked.state))
    console.print(text, soft_wrap=True)
    below = [f"{problem.what}; {problem.remedy}" for problem in checked.problems] or [checked.note]
    for sentence in filter(None, below):
        console.print(Text(f"    {one_line(sentence)}"), soft_wrap=True)


def _summary(found: Sequence[Checked]) -> str:
    """Return how many things of each kind are in each state."""
    kinds = sorted({checked.kind for checked in found}, key=[checked.kind for checked in found].index)
    parts = []
    for kind in kinds:
        states = [checked.state for checked in found if checked.kind == kind]
        counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
        parts.append(f"{kind}: {counts}")
    return "; ".join(parts)


def _records(found: Sequence[Checked]) -> list[dict[str, Any]]:
    return [
        {
            "path": _plain(checked.path),
            "kind": checked.kind,
            "state": checked.state,
            "problems": [
                {"file": _plain(problem.file), "problem": _plain(problem.what), "remedy": _plain(problem.remedy)}
                for problem in checked.problems
            ],
            "note": checked.note,
        }
        for checked in found
    ]


def _lines(found: Sequence[Checked]) -> list[dict[str, Any]]:
    """Return a record for each damaged file, and one for each thing that has none."""
    return [
        {**{name: record[name] for name in ("path", "kind", "state", "note")}, **problem}
        for record in _records(found)
        for problem in (record["problems"] or [{"file": "", "problem": "", "remedy": ""}])
    ]


def _plain(text: str | Path) -> str:
    """Return a text without the halves of surrogate pairs that stand for bytes of a file name that are not UTF-8."""
    return str(text).encode("utf-8", "replace").decode()

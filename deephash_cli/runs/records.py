"""Checked readers of what a run leaves: its metrics, its settings for tables, and the log of its training steps.

A run folder may come from another person, be damaged or edited. Each file is read within limits that no real run
reaches, and what is returned has the types that tables, charts and dashboards expect, so that a bad folder costs one
sentence and not the tables of all other runs.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deephash_cli.errors import ArtifactError, short
from deephash_cli.files import open_plain, read_json
from deephash_cli.phases import NAMES
from deephash_cli.retrieval import scoring
from deephash_cli.runs.folder import METRICS, STEPS, read_record
from deephash_cli.runs.sealing import require_intact
from deephash_cli.runs.settings import CONFIG, flatten, read_config

_METRICS_LIMIT = 8 * 2**20  # bytes: 4,096 bits and 1,000 classes take one million, five if some classes are unseen
_TABLE_LIMIT = 20_000  # entries of a table, such as precision at each k; also lists and objects of a file
_SETTINGS_LIMIT = 2000  # a run has some hundred
_TEXT_LIMIT = 500  # characters of a name
_PART_LIMIT = 20_000  # characters of the rules of an evaluation, as JSON
_LINE_LIMIT = 2**16  # bytes of a line of metrics.jsonl
_LINES_WITHOUT = 500_000  # lines without a number that are read before the rest of the file is left out
_TAIL = 2**17  # bytes at the end of metrics.jsonl that have its last line


def is_name(value: Any) -> bool:
    """Return whether a value is text of a length that a table has room for."""
    return isinstance(value, str) and len(value) <= _TEXT_LIMIT


def is_small(value: Any) -> bool:
    """Return whether a JSON object is as short as a description of how something was measured."""
    return isinstance(value, dict) and len(json.dumps(value)) <= _PART_LIMIT


def has_metrics(folder: Path) -> bool:
    """Return whether a run folder has a ``metrics.json``, whatever that is."""
    return os.path.lexists(folder / METRICS)


def metrics(folder: Path) -> dict[str, Any]:
    """Read the ``metrics.json`` of a run. Values may be missing or of other types; the whole is small.

    Raises:
        ArtifactError: If the file is missing, is not a plain file, is too large, does not match its digest, is not a
            JSON object, or has a table with more entries than an evaluation makes.
    """
    file = folder / METRICS
    require_intact(folder, METRICS)
    found = read_json(file, limit=_METRICS_LIMIT, containers=_TABLE_LIMIT)
    if not isinstance(found, dict):
        raise ArtifactError(f"{file} must be a JSON object: it was damaged or edited by hand")
    for name, table in {"the file": found, **found}.items():
        if isinstance(table, dict) and len(table) > _TABLE_LIMIT:
            raise ArtifactError(f"{file}: {short(name)} has {len(table)} entries, more than {_TABLE_LIMIT}")
    return found


def phases(folder: Path) -> dict[str, float]:
    """Return the seconds of each phase of a run since it was started or resumed for the last time.

    They are empty for runs of earlier versions, for a run that has not ended, and if the record was edited.

    Raises:
        ArtifactError: If the folder is not a run folder, or if the record is damaged.
    """
    found = read_record(folder).get("phases")
    if not isinstance(found, dict) or not all(scoring.is_number(found.get(name)) for name in NAMES):
        return {}
    return {name: found[name] for name in NAMES}


def settings(folder: Path) -> dict[str, Any]:
    """Read the settings of a run as a flat dictionary with dotted names, and check those that tables show.

    Raises:
        ArtifactError: If ``config.yaml`` cannot be read, has too many settings, or a setting of a table has a value of
            the wrong type.
    """
    found = flatten(read_config(folder))
    if len(found) > _SETTINGS_LIMIT:
        raise ArtifactError(f"{folder / CONFIG} has {len(found)} settings, more than {_SETTINGS_LIMIT}")
    for name, value in found.items():
        if not is_name(name):
            raise ArtifactError(f"{folder / CONFIG} has a setting with a name of {len(name)} characters")
        is_text = name in ("method", "dataset.name", "model.name") or name.endswith(("_target_", ".model.name"))
        if is_text and not is_name(value):
            raise ArtifactError(f"{folder / CONFIG} has {name}={short(str(value))}, no name: it was edited by hand")
        if name in ("bits", "seed") and not scoring.is_number(value):
            raise ArtifactError(f"{folder / CONFIG} has {name}={short(str(value))}, no number: it was edited by hand")
    return found


def steps(file: Path, *names: str) -> Iterator[dict[str, float]]:
    """Yield the numbers of each line of a log of training steps, in the order of the file, a line at a time.

    Lines that are damaged, have no step, or have none of the wanted numbers are skipped.

    Args:
        file: A ``metrics.jsonl``.
        *names: Names of the wanted numbers; without any, all lines are yielded.

    Raises:
        ArtifactError: If the file is missing, is not a plain file, or cannot be read.
    """
    for line in lines(file, *names):
        if numbers := numbers_of(line):
            yield numbers


def lines(file: Path, *names: str) -> Iterator[bytes]:
    """Yield the lines of a log of training steps that may have one of the wanted numbers, or all lines.

    The rest of a file is left out after hundreds of thousands of lines without any of the numbers, or one overlong
    line, as deephash writes neither.

    Raises:
        ArtifactError: If the file is missing, is not a plain file, cannot be read, or does not match its digest.
    """
    require_intact(file.parent, file.name)
    wanted = [json.dumps(name).encode() for name in names] or [b'"step"']
    others = 0
    with open_plain(file) as log:
        while line := log.readline(_LINE_LIMIT):
            is_overlong = len(line) == _LINE_LIMIT
            if not is_overlong and any(name in line for name in wanted):
                yield line
                continue
            others += 1
            if is_overlong or others > _LINES_WITHOUT:
                return


def numbers_of(line: bytes) -> dict[str, float]:
    """Return the finite numbers in a line of a log by their names; empty if the line is damaged or has no step."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(entry, dict) or not scoring.is_number(entry.get("step")):
        return {}
    return {name: value for name, value in entry.items() if scoring.is_number(value)}


def epochs(folder: Path) -> int:
    """Return the number of epochs that a run has finished, from the end of its log; 0 if no line there has it.

    Raises:
        ArtifactError: If the log does not match its digest.
    """
    require_intact(folder, STEPS)
    try:
        with open_plain(folder / STEPS) as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL))
            ends = log.read(_TAIL).splitlines()
    except ArtifactError:
        return 0
    found = (numbers["epoch"] for line in reversed(ends) if "epoch" in (numbers := numbers_of(line)))
    return 1 + int(next(found, -1))

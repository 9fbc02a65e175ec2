"""Data for the charts of a report, from runs of any version; what is missing or has another shape is left out."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.console import warn
from deephash_cli.errors import ArtifactError, first_line
from deephash_cli.retrieval.codes import is_count
from deephash_cli.retrieval.scoring import is_number
from deephash_cli.runs import records, results
from deephash_cli.runs.results import Result, Section

CHARTS = {
    "precision": "precision at k (precision_at_k)",
    "rank": "precision and recall by rank (pr_by_rank)",
    "radius": "precision and recall by radius (pr_by_radius)",
    "classes": "mAP of each class (per_class)",
    "ones": "share of ones of each bit (bit_balance.ones)",
    "distances": "distances of pairs (distances)",
}  # data that older runs may lack
CLASSES = 100  # largest number of classes in a chart or table; a run with more is not in the table of classes
SEEDS = 3  # largest number of training curves drawn for a row and code length
POINTS = 60  # largest number of points of a training curve; longer curves are thinned
KEPT = 20_000  # largest number of points of a training curve that are held while its file is read
_LONG = 4096  # largest number of values in a list; our own curves have less than a tenth of it
_STEPS = {"loss": "train/loss", "validation": "validation/map"}


def groups(section: Section, metric: str) -> list[dict[str, Any]]:
    """Return what is drawn for each row and code length: means over seeds, and training curves of a few seeds.

    Returns:
        A dictionary for each row and code length, with ``row`` (its number), ``bits``, ``seeds`` (number of runs),
        ``value`` (mean and standard deviation of the metric, or None) and, if the runs have them, the data of
        ``CHARTS`` and of the training curves ``loss`` and ``validation``. Numbers have four significant digits.
    """
    return [
        _rounded(_group(number, bits, members, metric))
        for number, row in enumerate(section.rows)
        for bits, members in sorted(row.cells.items())
    ]


def lacking(drawn: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return, for each chart in ``CHARTS``, how many groups lack its data; charts that no group lacks are omitted."""
    return {text: count for name, text in CHARTS.items() if (count := sum(name not in group for group in drawn))}


def classes(members: Sequence[Result]) -> list[float | None] | None:
    """Return the mean AP of each class over seeds.

    A class without queries has None in the list. The result is None instead of a list if no class has a value.
    """
    tables = [result.metrics.get("per_class") for result in members]
    maps = [table["map"] for table in tables if isinstance(table, dict) and isinstance(table.get("map"), list)]
    alike = [values for values in maps if len(values) == len(maps[0])]
    columns = list(zip(*alike, strict=True))
    means = [statistics.fmean(column) if all(map(is_number, column)) else None for column in columns]
    return means if any(mean is not None for mean in means) else None


def class_names(section: Section) -> list[str]:
    """Return the class names of the first run that has them; an empty list if no run has."""
    for result in (result for row in section.rows for result in row.results):
        names = result.metrics.get("class_names")
        if isinstance(names, list) and all(map(records.is_name, names)):
            return names[:CLASSES]
    return []


def class_queries(section: Section, width: int) -> list[int] | None:
    """Return the number of queries of each of ``width`` classes, from the first run that has them; None if none has."""
    for result in (result for row in section.rows for result in row.results):
        table = result.metrics.get("per_class")
        queries = table.get("queries") if isinstance(table, dict) else None
        if isinstance(queries, list) and len(queries) == width and all(map(is_count, queries)):
            return queries
    return None


def numbers(value: Any) -> list[float] | None:
    """Return ``value`` if it is a list of finite numbers that a chart can show, otherwise None."""
    if not isinstance(value, list) or not 0 < len(value) <= _LONG:
        return None
    return value if all(is_number(entry) for entry in value) else None


def _group(number: int, bits: int, members: Sequence[Result], metric: str) -> dict[str, Any]:
    cell = results.cell(members, metric)
    group: dict[str, Any] = {
        "row": number,
        "bits": bits,
        "seeds": len(members),
        "value": [cell.mean, cell.deviation] if cell else None,
        "precision": _by_k([result.metrics.get("precision_at_k") for result in members]),
        "rank": _pair([result.metrics.get("pr_by_rank") for result in members]),
        "radius": _pair([result.metrics.get("pr_by_radius") for result in members]),
        "classes": (classes(members) or [])[:CLASSES],
        "ones": _mean([sorted(ones) for result in members if (ones := _inside(result, "bit_balance", "ones"))]),
        "distances": _distances(members),
    }
    alone = [result for result in members if not result.is_prefix]  # a training has one curve for all its lengths
    curves = [(result.metrics["seed"], _steps(result.folder / runs.STEPS)) for result in alone[:SEEDS]]
    for name in _STEPS:
        group[name] = [[seed, *found[name]] for seed, found in curves if name in found]
    return {name: value for name, value in group.items() if value or name in ("row", "value")}


def _inside(result: Result, *names: str) -> list[float] | None:
    value: Any = result.metrics
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return numbers(value)


def _mean(lists: Sequence[Sequence[float]]) -> list[float] | None:
    """Return the mean at each position, over the lists that are as long as the first; None if there is no list."""
    if not lists:
        return None
    alike = [entry for entry in lists if len(entry) == len(lists[0])]
    return [statistics.fmean(column) for column in zip(*alike, strict=True)]


def _by_k(tables: Sequence[Any]) -> list[list[float]] | None:
    """Return the cut-offs that all runs have, and the mean at each; None if there is no such cut-off."""
    known = [
        {
            int(k): value
            for k, value in table.items()
            if len(k) < 10 and k.isdecimal() and int(k) > 0 and is_number(value)
        }
        for table in tables
        if isinstance(table, dict)
    ]
    shared = sorted(set.intersection(*map(set, known))) if known else []
    return [list(shared), [statistics.fmean(table[k] for table in known) for k in shared]] if shared else None


def _pair(tables: Sequence[Any]) -> list[list[float]] | None:
    """Return the mean recalls and the mean precisions, or None if no run has both."""
    pairs = [
        (recall, precision)
        for table in tables
        if isinstance(table, dict)
        and (recall := numbers(table.get("recall")))
        and (precision := numbers(table.get("precision")))
        and len(recall) == len(precision)
    ]
    recall, precision = (_mean([pair[side] for pair in pairs]) for side in (0, 1))
    return [recall, precision] if recall and precision else None


def _distances(members: Sequence[Result]) -> list[list[float]] | None:
    """Return the share of pairs at each distance, for similar pairs and for the others, or None."""
    shares = []
    for side in ("relevant", "other"):
        counts = [found for result in members if (found := _inside(result, "distances", side)) and sum(found) > 0]
        share = _mean([[count / sum(found) for count in found] for found in counts])
        if share is None:
            return None
        shares.append(share)
    return shares


def _steps(file: Path) -> dict[str, list[list[float]]]:
    """Read training loss and validation mAP: for each, the steps and the values. Damaged lines are skipped.

    A log that cannot be read, or does not match its digest in the run's record, is left out with a warning.
    """
    curves = {name: _Curve(key) for name, key in _STEPS.items()}
    try:
        for line in records.lines(file, *_STEPS.values()):
            for curve in curves.values():
                curve.read(line)
    except ArtifactError as error:
        if os.path.lexists(file):
            warn(f"a training curve is left out: {first_line(error)}")
        return {}
    return {
        name: [list(column) for column in zip(*_thinned(curve.points), strict=True)]
        for name, curve in curves.items()
        if curve.points
    }


class _Curve:
    """The points of a training curve, gathered a line of the log at a time; of a long curve each second, fourth, ...

    Attributes:
        points: Value at each step.
    """

    def __init__(self, key: str):
        self.points: dict[int, float] = {}
        self._key = key
        self._in_line = json.dumps(key).encode()
        self._seen, self._stride = 0, 1

    def read(self, line: bytes) -> None:
        """Take the number from a line, if it has it and the curve has room for it."""
        if self._in_line not in line:
            return
        self._seen += 1
        if self._seen % self._stride:
            return
        numbers = records.numbers_of(line)
        if self._key in numbers:
            self.points[int(numbers["step"])] = numbers[self._key]
        if len(self.points) > KEPT:
            self.points = dict(list(self.points.items())[::2])
            self._stride *= 2


def _thinned(by_step: Mapping[int, float]) -> list[tuple[int, float]]:
    """Return at most ``POINTS`` of the points, including the last."""
    points = sorted(by_step.items())
    stride = -(-len(points) // POINTS)
    return points[::-1][::stride][::-1]


def _rounded(value: Any) -> Any:
    """Round to four significant digits, as a chart cannot show more; non-finite values become None."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value

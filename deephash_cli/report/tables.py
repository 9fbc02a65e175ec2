"""The tables of a report: what stands in their lines and cells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deephash_cli import results, runs
from deephash_cli.report import curves, published
from deephash_cli.results import Cell, Result, Row, Section
from deephash_cli.scoring import is_number

_SHOWN_AT = (1, 10, 100, 1000)  # the cut-offs k
_CLASSES = 20  # more have no table
FEW = 0.01  # of the codes there could be: with fewer, codes may have collapsed
_CODES = {
    "different codes / items": "unique_code_ratio",
    "mean distance of ones from ½": "bit_balance_mean_deviation",
    "largest distance of ones from ½": "bit_balance_max_deviation",
    "mean |correlation|": "bit_correlation_mean_absolute",
    "largest |correlation|": "bit_correlation_max_absolute",
}


@dataclass(frozen=True)
class Table:
    """A line for each row and length of a section; means over seeds.

    Attributes:
        columns: What they are called.
        lines: The row, the length, a cell for each column.
    """

    columns: list[str]
    lines: list[tuple[Row, int, list[Cell | None]]]


def rows(section: Section, metric: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the main table, and the sources of the published numbers that stand below the last of a method."""
    tops = section.best(metric)
    lines: list[dict[str, Any]] = []
    sources: list[str] = []
    for number, (row, cells) in enumerate(zip(section.rows, section.cells(metric), strict=True)):
        line = [cell and {"cell": cell, "best": cell.mean == top} for cell, top in zip(cells, tops, strict=True)]
        lines.append({"label": row.label, "method": row.method, "cells": line, "published": None})
        if metric != "map" or any(later.method == row.method for later in section.rows[number + 1 :]):
            continue
        for entry in published.beside(row.method, section.dataset, section.split["name"], section.lengths):
            source = f"{entry.source} (secondary)" if entry.secondary else entry.source
            if source not in sources:
                sources.append(source)
            values = [entry.map.get(bits) for bits in section.lengths]
            lines.append({
                "method": row.method, "cells": values, "published": entry, "source": sources.index(source) + 1
            })  # fmt: skip
    return lines, sources


def run(row: Row, result: Result, metric: str, paths: Sequence[Path]) -> dict[str, Any]:
    """A line of the list of runs."""
    return {
        "method": row.method,
        "settings": ", ".join(f"{name}={value}" for name, value in row.differs.items()),
        "bits": result.metrics["bits"],
        "seed": result.metrics["seed"],
        "values": [result.value(name) for name in shown_values(metric)],
        "doubt": _doubt(result),
        "started": result.record["started"][:16].replace("T", " "),
        "seconds": runs.seconds(result.record),
        "folder": name_of(result.folder, paths),
    }


def shown_values(metric: str) -> list[str]:
    """What the list of runs shows of each."""
    return list(dict.fromkeys((metric, "map", "precision_at_100")))


def _doubt(result: Result) -> str:
    """Why the codes of a run look as if they had collapsed; nothing if they do not."""
    metrics = result.metrics
    deviation, ratio = result.value("bit_balance_max_deviation"), result.value("unique_code_ratio")
    reasons = []
    if deviation is not None and deviation >= 0.5 - 1e-9:
        reasons.append("a bit is the same in every code")
    if ratio is not None and is_number(metrics["database"]):
        codes = ratio * metrics["database"]
        if codes < FEW * min(metrics["database"], 2 ** min(metrics["bits"], 62)):
            reasons.append(f"only {codes:.0f} different codes")
    return "; ".join(reasons)


def name_of(folder: Path, paths: Sequence[Path]) -> str:
    """A folder as seen from what was asked for, if that was one folder of runs."""
    if len(paths) == 1 and folder != paths[0] and folder.is_relative_to(paths[0]):
        return str(folder.relative_to(paths[0]))
    return str(folder)


def of_precision(section: Section) -> Table:
    """Precision at a few cut-offs, of those the ones that any run has."""
    names = {f"P@{k}": f"precision_at_{k}" for k in _SHOWN_AT}
    return _of_metrics(section, {title: name for title, name in names.items() if any(map(any, section.cells(name)))})


def of_codes(section: Section) -> Table:
    """What is known of the codes themselves."""
    return _of_metrics(section, _CODES)


def _of_metrics(section: Section, names: Mapping[str, str]) -> Table:
    """A column for each title, with the metric of that name; no line where no run has any."""
    lines = [
        (row, bits, cells)
        for row, bits, members in _lines(section)
        if any(cells := [results.cell(members, name) for name in names.values()])
    ]
    return Table(list(names), lines)


def _lines(section: Section) -> Iterator[tuple[Row, int, Sequence[Result]]]:
    """A row and length after the other, with its runs."""
    for row in section.rows:
        for bits, members in sorted(row.cells.items()):
            yield row, bits, members


def of_classes(section: Section) -> Table:
    """Mean AP of each class, of classes that are few."""
    found = [(row, bits, curves.classes(members) or []) for row, bits, members in _lines(section)]
    width = max((len(values) for *_, values in found if len(values) <= _CLASSES), default=0)
    lines = [
        (row, bits, [Cell.of([] if value is None else [value]) for value in [*values, *[None] * (width - len(values))]])
        for row, bits, values in found
        if 0 < len(values) <= width
    ]
    names = curves.class_names(section)
    return Table([*names[:width], *(f"class {number}" for number in range(len(names), width))], lines)

"""The tables of a report: the contents of their lines and cells."""

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.commands.report import curves, published
from deephash_cli.data.protocol import training_size
from deephash_cli.errors import ArtifactError
from deephash_cli.retrieval import similarity
from deephash_cli.retrieval.scoring import is_number
from deephash_cli.retrieval.seen_classes import PROTOCOLS
from deephash_cli.runs import results
from deephash_cli.runs.results import Cell, Result, Row, Section

_SHOWN_AT = (1, 10, 100, 1000)  # cut-offs k with a column of precision
FEW = 0.01  # share of the possible codes; with fewer different ones, codes may have collapsed
_REAL_VALUED = {
    "asymmetric": "map_asymmetric",
    "cosine of outputs": "map_outputs",
    "lost by binarizing": "lost_by_binarizing",
    "cosine of features": "map_features",
}
_CODES = {
    "different codes / items": "unique_code_ratio",
    "share of ones: mean distance from ½": "bit_balance_mean_deviation",
    "share of ones: largest distance from ½": "bit_balance_max_deviation",
    "mean |correlation| of bits": "bit_correlation_mean_absolute",
    "largest |correlation| of bits": "bit_correlation_max_absolute",
}


@dataclass(frozen=True)
class Table:
    """A table with a line for each row and code length of a section; its cells are means over seeds.

    Attributes:
        columns: Headings of the columns.
        lines: Row, code length in bits, and cells of each line; a cell is None if there is no value for its column.
    """

    columns: list[str]
    lines: list[tuple[Row, int, list[Cell | None]]]


def rows(section: Section, metric: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of the main table, with published numbers below the last row of a method, and their sources."""
    lines: list[dict[str, Any]] = []
    sources: list[str] = []
    table = zip(section.rows, section.cells(metric), section.best(metric), strict=True)
    for number, (row, cells, marks) in enumerate(table):
        line = [cell and {"cell": cell, "best": is_best} for cell, is_best in zip(cells, marks, strict=True)]
        lines.append({
            "label": row.title, "full": row.label, "method": row.method, "cells": line, "published": None
        })  # fmt: skip
        is_last = all(later.method != row.method for later in section.rows[number + 1 :])
        # published numbers are of whole training parts, and an item that shares a label is relevant in them
        if metric != "map" or section.changes or section.similar != similarity.ONE or not is_last:
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
    """Return a line of the list of runs, as a dictionary."""
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
    """Return the names of the metrics that the list of runs shows."""
    return list(dict.fromkeys((metric, "map", "precision_at_100")))


def _doubt(result: Result) -> str:
    """Return why the codes of a run look collapsed, or an empty text if they do not."""
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
    """Return the name of a folder: relative to the given path if there is only one and the folder is below it."""
    if len(paths) == 1 and folder != paths[0] and folder.is_relative_to(paths[0]):
        return str(folder.relative_to(paths[0]))
    return str(folder)


def of_precision(section: Section) -> Table:
    """Return the table of precision at a few cut-offs; cut-offs that no run has are omitted."""
    return _of_metrics(section, _in_some_run(section, {f"P@{k}": f"precision_at_{k}" for k in _SHOWN_AT}))


def of_real_values(section: Section) -> Table:
    """Return the table of the mAP with continuous codes or features on one side or both, if some run has them."""
    return _of_metrics(section, _in_some_run(section, _REAL_VALUED))


def of_seen_classes(section: Section) -> Table:
    """Return the table of the mAP of queries of seen and of unseen classes, if some run has unseen classes."""
    return _of_metrics(section, _in_some_run(section, {name: f"{name}.map" for name in PROTOCOLS}))


def of_codes(section: Section) -> Table:
    """Return the table of statistics of the codes themselves."""
    return _of_metrics(section, _CODES)


def of_data(section: Section) -> dict[str, str]:
    """Return what the records of a section's runs say about its division, as far as they say it."""
    split, first = section.split, next(result for row in section.rows for result in row.results)
    bare = split.get("unlabelled_rows")
    bare = bare if isinstance(bare, Mapping) else {}
    sizes: dict[str, Any] = {"query": section.queries, "train": None, "database": section.database}
    with contextlib.suppress(ArtifactError):
        sizes["train"] = training_size(first.folder / runs.SPLIT)
    titles = {"query": "queries", "train": "training images", "database": "database"}
    facts = {}
    for role, title in titles.items():
        parts = [] if sizes[role] is None else [f"{sizes[role]} images"]
        parts += [f"{bare[role]} without a label"] if is_number(bare.get(role)) else []
        facts |= {title: ", ".join(parts)} if parts else {}
    kinds = {"single": "one for each image", "multi": "several for some images", "none": "none"}
    more = {
        "labels": kinds.get(str(split.get("label_kind"))),
        "training images in the database": {"True": "yes", "False": "not all"}.get(
            str(split.get("database_contains_train"))
        ),
        "queries in the database": split.get("query_in_database"),
        "images that repeat another one": split.get("duplicate_images"),
        "SHA-256 of the division": split["sha256"],
    }
    return facts | {name: str(value) for name, value in more.items() if value is not None}


def _in_some_run(section: Section, names: Mapping[str, str]) -> dict[str, str]:
    """Return the titles and metrics without those that no run has."""
    return {title: name for title, name in names.items() if any(map(any, section.cells(name)))}


def _of_metrics(section: Section, names: Mapping[str, str]) -> Table:
    """Return a table with a column for each title and its metric; lines without any value are omitted."""
    lines = [
        (row, bits, cells)
        for row, bits, members in _lines(section)
        if any(cells := [results.cell(members, name) for name in names.values()])
    ]
    return Table(list(names), lines)


def _lines(section: Section) -> Iterator[tuple[Row, int, Sequence[Result]]]:
    """Yield each row and code length, with its runs."""
    for row in section.rows:
        for bits, members in sorted(row.cells.items()):
            yield row, bits, members


def of_classes(section: Section) -> Table:
    """Return the table of the mean AP of each class, the highest first; runs with many classes are omitted."""
    found = [(row, bits, curves.classes(members) or []) for row, bits, members in _lines(section)]
    width = max((len(values) for *_, values in found if len(values) <= curves.CLASSES), default=0)
    lines = [
        (row, bits, [Cell.of([] if value is None else [value]) for value in [*values, *[None] * (width - len(values))]])
        for row, bits, values in found
        if 0 < len(values) <= width
    ]
    names = curves.class_names(section)
    names = [*names[:width], *(f"class {number}" for number in range(len(names), width))]
    queries = curves.class_queries(section, width)
    headings = [f"{name} ({count})" for name, count in zip(names, queries, strict=True)] if queries else names
    columns = [[cell.mean for cell in column if cell] for column in zip(*(cells for *_, cells in lines), strict=True)]
    order = sorted(range(width), key=lambda at: -statistics.fmean(columns[at] or [0.0]))
    ordered = [(row, bits, [cells[at] for at in order]) for row, bits, cells in lines]
    return Table([headings[at] for at in order], ordered)

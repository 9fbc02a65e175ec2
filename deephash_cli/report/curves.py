"""What the charts of a report show, read from runs of any age: what is missing or of another shape is left out."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deephash_cli import results, runs
from deephash_cli.results import Result, Section
from deephash_cli.scoring import is_number

CHARTS = {
    "precision": "precision at k (precision_at_k)",
    "rank": "precision and recall by rank (pr_by_rank)",
    "radius": "precision and recall by radius (pr_by_radius)",
    "classes": "mAP of each class (per_class)",
    "ones": "share of ones of each bit (bit_balance.ones)",
    "distances": "distances of pairs (distances)",
}  # what older runs lack
CLASSES = 100  # more are not drawn
SEEDS = 3  # of a row and length whose training curves are drawn
POINTS = 60  # of a training curve; longer ones are thinned
STEPS_LIMIT = 32 * 2**20  # bytes of a metrics.jsonl; longer ones are not read
_LONG = 4096  # numbers; no curve of ours has a tenth of it
_STEPS = {"loss": "train/loss", "validation": "validation/map"}


def groups(section: Section, metric: str) -> list[dict[str, Any]]:
    """Of each row and length what is drawn: means over seeds, and training curves of a few seeds.

    Returns:
        For each: ``row`` (its number), ``bits``, ``seeds`` (how many), ``value`` (mean and deviation of the metric, or
        nothing), and of ``CHARTS`` and the training curves
        ``loss`` and ``validation`` what the runs have. Numbers have four digits that count.
    """
    return [
        _rounded(_group(number, bits, members, metric))
        for number, row in enumerate(section.rows)
        for bits, members in sorted(row.cells.items())
    ]


def lacking(drawn: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of each chart of ``CHARTS`` how many groups have nothing for it, if any."""
    return {text: count for name, text in CHARTS.items() if (count := sum(name not in group for group in drawn))}


def classes(members: Sequence[Result]) -> list[float | None] | None:
    """Mean AP of each class over seeds; nothing for a class without queries, and nothing at all if no run has it."""
    tables = [result.metrics.get("per_class") for result in members]
    maps = [table["map"] for table in tables if isinstance(table, dict) and isinstance(table.get("map"), list)]
    alike = [values for values in maps if len(values) == len(maps[0])]
    columns = list(zip(*alike, strict=True))
    means = [statistics.fmean(column) if all(map(is_number, column)) else None for column in columns]
    return means if any(mean is not None for mean in means) else None


def class_names(section: Section) -> list[str]:
    """Names of the classes, those of the first run that has them; none if none has."""
    for result in (result for row in section.rows for result in row.results):
        names = result.metrics.get("class_names")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names[:CLASSES]
    return []


def numbers(value: Any) -> list[float] | None:
    """A list of finite numbers that a chart can show, or nothing if it is something else."""
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
    curves = [(result.metrics["seed"], _steps(result.folder / runs.STEPS)) for result in members[:SEEDS]]
    for name in _STEPS:
        group[name] = [[seed, *found[name]] for seed, found in curves if name in found]
    return {name: value for name, value in group.items() if value or name in ("row", "value")}


def _inside(result: Result, *names: str) -> list[float] | None:
    value: Any = result.metrics
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return numbers(value)


def _mean(lists: Sequence[Sequence[float]]) -> list[float] | None:
    """Means at each position, of the lists that are as long as the first."""
    if not lists:
        return None
    alike = [entry for entry in lists if len(entry) == len(lists[0])]
    return [statistics.fmean(column) for column in zip(*alike, strict=True)]


def _by_k(tables: Sequence[Any]) -> list[list[float]] | None:
    """Cut-offs that all runs have, and the mean at each."""
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
    """Mean recalls and mean precisions."""
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
    """Shares of the pairs that share a label, and of the others, at each distance."""
    shares = []
    for side in ("relevant", "other"):
        counts = [found for result in members if (found := _inside(result, "distances", side)) and sum(found) > 0]
        share = _mean([[count / sum(found) for count in found] for found in counts])
        if share is None:
            return None
        shares.append(share)
    return shares


def _steps(file: Path) -> dict[str, list[list[float]]]:
    """Training loss and validation mAP by step: of each the steps and the values. Lines that are torn do not count."""
    found: dict[str, dict[int, float]] = {name: {} for name in _STEPS}
    try:
        if file.stat().st_size > STEPS_LIMIT:
            return {}
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        if not any(key in line for key in _STEPS.values()):
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = entry.get("step") if isinstance(entry, dict) else None
        if is_number(step):
            for name, key in _STEPS.items():
                if is_number(entry.get(key)):
                    found[name][int(step)] = entry[key]
    return {
        name: [list(column) for column in zip(*_thinned(by_step), strict=True)]
        for name, by_step in found.items()
        if by_step
    }


def _thinned(by_step: Mapping[int, float]) -> list[tuple[int, float]]:
    """At most ``POINTS`` of them, the last among them."""
    points = sorted(by_step.items())
    stride = -(-len(points) // POINTS)
    return points[::-1][::stride][::-1]


def _rounded(value: Any) -> Any:
    """The same with four digits that count, which a chart cannot show more of; what is not finite becomes nothing."""
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value

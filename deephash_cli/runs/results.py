"""Finished runs, read from their folders and put into tables: a row for each kind of run, a column for each length."""

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, first_line, hint
from deephash_cli.files import read_json
from deephash_cli.retrieval import scoring

# Settings that do not make runs different in kind: the table has columns for lengths and means over seeds; the section
# tells data set and split; which numbers were written does not change them.
_VARIED = (
    "bits", "seed", "metrics", "dataset.root", "dataset.source", "dataset.download", "dataset.split_file",
    *runs.INCIDENTAL,
)  # fmt: skip
_NEEDED = {
    "method": str, "bits": int, "seed": int, "dataset": str, "split": dict, "policies": dict, "versions": dict,
    "queries": int, "database": int,
}  # fmt: skip

CAPTION = "mean and standard deviation over seeds, the number of seeds in brackets"
_UNRANKED = ("empty_ball_rate", "unique_code_ratio", "bit_balance", "bit_correlation")  # of which more is not better
_TIES = {
    "map_stable": "ties are in database order",
    "map_best": "relevant items come first in ties",
    "map_worst": "relevant items come last in ties",
}


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: Where it is.
        record: Its ``run.json``.
        settings: Its configuration under dotted names.
        metrics: Its ``metrics.json``.
    """

    folder: Path
    record: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def kind(self) -> dict[str, Any]:
        """What runs have in common that differ in length and seed alone."""
        same = {name: value for name, value in self.settings.items() if not runs.belongs(name, _VARIED)}
        return {**same, "version": self.metrics["versions"].get("deephash")}

    def value(self, metric: str) -> float | None:
        """A number of the metrics, such as ``map`` or ``precision_at_100``; nothing where it does not exist."""
        return self.numbers().get(metric)

    def numbers(self) -> dict[str, float]:
        """Every number of the metrics that is not a count, under a name of its own."""
        return {name: value for name, value in scoring.numbers(self.metrics).items() if isinstance(value, float)}


@dataclass(frozen=True)
class LeftOut:
    """A folder that is in no table, and why."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Row:
    """Runs that differ in length and seed alone.

    Attributes:
        method: Theirs.
        differs: Settings that tell this row from the method's others, under dotted names.
        cells: For each length the runs, one a seed.
    """

    method: str
    differs: dict[str, Any]
    cells: dict[int, list[Result]]

    @property
    def results(self) -> list[Result]:
        """The runs of all lengths."""
        return [result for members in self.cells.values() for result in members]

    @property
    def label(self) -> str:
        """The method, and what tells it from others of that name."""
        settings = ", ".join(f"{name}={value}" for name, value in self.differs.items())
        return _line(f"{self.method} ({settings})" if settings else self.method)


@dataclass(frozen=True)
class Section:
    """Runs that can be compared: measured on one split by one rule.

    Attributes:
        dataset: Its name.
        split: Name, version, digest of the split.
        queries: How many.
        database: How many items were searched.
        model: The one that all rows have; nothing if there are several.
        lengths: Of all rows, ascending.
        rows: In the order of their methods' names.
    """

    dataset: str
    split: dict[str, Any]
    queries: int
    database: int
    model: str | None
    lengths: list[int]
    rows: list[Row]

    @property
    def title(self) -> str:
        """Data set, split and its digest, how much was searched for and in, and the model, if all have the same."""
        split = f"split {self.split['name']} {self.split['sha256'][:12]}"
        sizes = f"{self.queries} queries, {self.database} database items"
        return _line(f"{self.dataset}, {split}: {sizes}{f', model {self.model}' if self.model else ''}")

    def cells(self, metric: str) -> "list[list[Cell | None]]":
        """Of each row the cell of each length."""
        return [[cell(row.cells.get(bits, ()), metric) for bits in self.lengths] for row in self.rows]

    def best(self, metric: str) -> list[float | None]:
        """Of each length the best mean; nothing where there is no choice, or more is not better."""
        if len(self.rows) < 2 or metric.startswith(_UNRANKED):
            return [None] * len(self.lengths)
        columns = zip(*self.cells(metric), strict=True)
        return [max((cell.mean for cell in column if cell), default=None) for column in columns]


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds; the deviation is nothing where there is one seed."""

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Cell | None":
        """That of the values of one or more seeds; nothing if there are none."""
        if not values:
            return None
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        """As every table shows it."""
        return f"{self.mean:.4f}" if self.deviation is None else f"{self.mean:.4f} ± {self.deviation:.4f}"


def _line(text: str) -> str:
    return " ".join(text.split())


def find(paths: Iterable[Path]) -> list[Path]:
    """Run folders at or below some paths, each once, sorted.

    Raises:
        ConfigError: If a path is not a folder.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder: give run folders, or folders of runs")
        for folder, below, files in os.walk(path):
            if runs.RECORD in files:
                found.add(Path(folder))
                below.clear()
    return sorted(found)


def read(folder: Path) -> Result:
    """A finished run.

    Raises:
        ArtifactError: If it is not finished, or something in its folder cannot be read.
    """
    record = runs.read_record(folder)
    if not (folder / runs.METRICS).exists():
        raise ArtifactError(": ".join(filter(None, (runs.status(folder, record), record.get("error")))))
    metrics = read_json(folder / runs.METRICS)
    known = metrics if isinstance(metrics, dict) else {}
    missing = [name for name, kind in _NEEDED.items() if not isinstance(known.get(name), kind)]
    if "split" not in missing:
        missing += [f"split.{name}" for name in ("name", "sha256") if not isinstance(known["split"].get(name), str)]
    if missing:
        again = f"deephash eval run={folder} output={folder / runs.METRICS} makes it again"
        raise ArtifactError(f"{runs.METRICS} has no {', '.join(missing)}: {again}")
    return Result(folder, record, runs.flatten(runs.read_config(folder)), metrics)


def collect(paths: Iterable[Path]) -> tuple[list[Result], list[LeftOut]]:
    """The finished runs at or below some paths, and the others. Of runs alike in everything the newest counts.

    Raises:
        ConfigError: If a path is not a folder.
    """
    newest: dict[str, Result] = {}
    left_out: list[LeftOut] = []
    for folder in find(paths):
        try:
            result = read(folder)
        except DeephashError as error:
            left_out.append(LeftOut(folder, first_line(error)))
            continue
        same = f"{result.record['fingerprint']} {result.metrics['split']['sha256']}"
        if same in newest:
            older, result = sorted((newest[same], result), key=lambda run: run.record["started"])
            left_out.append(LeftOut(older.folder, f"done again: {result.folder}"))
        newest[same] = result
    return list(newest.values()), left_out


def gather(paths: Sequence[Path], metric: str) -> tuple[list[Result], list[LeftOut]]:
    """As `collect`, of runs that have a metric to show.

    Raises:
        ConfigError: If a path is not a folder, there is no finished run, or none has the metric.
    """
    found, left_out = collect(paths)
    if not found:
        reasons = "; ".join(f"{entry.folder}: {entry.reason}" for entry in left_out[:3])
        raise ConfigError(f"no finished run in {' '.join(map(str, paths))}{f' ({reasons})' if reasons else ''}")
    if all(result.value(metric) is None for result in found):
        known = set().union(*(result.numbers() for result in found))
        raise ConfigError(f"none of {len(found)} runs has {metric}{hint(metric, known) or _some(found[0].numbers())}")
    return found, left_out


def _some(names: Iterable[str]) -> str:
    """Some of the metrics: those that are a number without a cut-off, and one that has one."""
    plain = [name for name in names if not name.rpartition("_")[2].isdecimal()]
    return f": choose one of {', '.join(plain)}, or with a cut-off, such as precision_at_100"


def sections(results: Iterable[Result]) -> list[Section]:
    """Runs that may be compared, together: those on another split, or measured otherwise, are in another section."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        metrics = result.metrics
        rule = json.dumps([metrics["dataset"], metrics["split"]["sha256"], metrics["policies"]], sort_keys=True)
        groups.setdefault(rule, []).append(result)
    made = [_section(members) for members in groups.values()]
    return sorted(made, key=lambda section: section.title)


def _section(members: Sequence[Result]) -> Section:
    kinds: dict[str, list[Result]] = {}
    models = {_model(result) for result in members}
    for result in members:
        kinds.setdefault(json.dumps([result.metrics["method"], result.kind], sort_keys=True), []).append(result)
    methods: dict[str, list[list[Result]]] = {}
    for alike in kinds.values():
        methods.setdefault(alike[0].metrics["method"], []).append(alike)
    rows = [
        Row(method, _with_model(differs, alike[0], models), _by_length(alike))
        for method, several in methods.items()
        for alike, differs in zip(several, _differences([alike[0].kind for alike in several]), strict=True)
    ]
    metrics = members[0].metrics
    lengths = sorted({result.metrics["bits"] for result in members})
    return Section(
        metrics["dataset"],
        metrics["split"],
        metrics["queries"],
        metrics["database"],
        None if len(models) > 1 else models.pop(),
        lengths,
        sorted(rows, key=lambda row: row.label),
    )


def _model(result: Result) -> str | None:
    return result.settings.get("model.name")


def _with_model(differs: dict[str, Any], result: Result, models: set[str | None]) -> dict[str, Any]:
    """What tells a row from others, and its model, if not all rows of the section have the same."""
    if len(models) == 1:
        return differs
    return {"model": _model(result), **{name: value for name, value in differs.items() if name != "model.name"}}


def _differences(kinds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each kind the settings that tell it from the others, those that it has."""
    shown: dict[str, list[Any]] = {}
    for name in sorted(set().union(*kinds), key=lambda name: (name.count("."), name)):
        values = [kind.get(name) for kind in kinds]
        if all(value == values[0] for value in values) or values in shown.values():  # the second: one refers to another
            continue
        parent = name.rpartition(".")[0]
        is_alone = len({json.dumps(value) for value in values if value is not None}) == 1
        if is_alone and len({kind.get(f"{parent}._target_") for kind in kinds}) > 1:
            continue  # part of a choice that not all have made, which is shown itself
        shown[name] = values
    return [
        {
            name.removesuffix("._target_"): values[row].rpartition(".")[2] if name.endswith("_target_") else values[row]
            for name, values in shown.items()
            if values[row] is not None
        }
        for row in range(len(kinds))
    ]


def _by_length(members: Sequence[Result]) -> dict[int, list[Result]]:
    cells: dict[int, list[Result]] = {}
    for result in sorted(members, key=lambda result: (result.metrics["bits"], result.metrics["seed"])):
        cells.setdefault(result.metrics["bits"], []).append(result)
    return cells


def cell(members: Sequence[Result], metric: str) -> Cell | None:
    """Mean and standard deviation over seeds of a metric; nothing if no run has it."""
    return Cell.of([value for result in members if (value := result.value(metric)) is not None])


def tie_rule(metric: str) -> str:
    """What a metric does with items at the same distance."""
    return _TIES.get(metric, "ties are averaged over all their orders")

"""Read finished runs from their folders and arrange them in tables: one row per kind of run, one column per length."""

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

# Settings that do not make runs different in kind. A table has columns for the lengths and averages over the seeds. The
# title of its section gives the data set and the split. The choice of metrics does not change the codes.
_VARIED = (
    "bits", "seed", "metrics", "dataset.root", "dataset.source", "dataset.download", "dataset.protocol",
    "dataset.split_file",
    *runs.INCIDENTAL,
)  # fmt: skip
_NEEDED = {
    "method": str, "bits": int, "seed": int, "dataset": str, "split": dict, "policies": dict, "versions": dict,
    "queries": int, "database": int,
}  # fmt: skip

CAPTION = "mean and standard deviation over seeds, the number of seeds in brackets"
_UNRANKED = ("empty_ball_rate", "unique_code_ratio", "bit_balance", "bit_correlation")  # higher is not better
_TIES = {
    "map_stable": "ties are in database order",
    "map_best": "relevant items come first in ties",
    "map_worst": "relevant items come last in ties",
}


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: The run folder.
        record: Content of ``run.json``.
        settings: The run's configuration as a flat dictionary with dotted names.
        metrics: Content of ``metrics.json``.
    """

    folder: Path
    record: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def kind(self) -> dict[str, Any]:
        """The settings and the version that runs share if they differ only in code length and seed."""
        same = {name: value for name, value in self.settings.items() if not runs.belongs(name, _VARIED)}
        return {**same, "version": self.metrics["versions"].get("deephash")}

    def value(self, metric: str) -> float | None:
        """Return a metric, such as ``map`` or ``precision_at_100``, or None if the run does not have it."""
        return self.numbers().get(metric)

    def numbers(self) -> dict[str, float]:
        """Return every metric that is a single number and not a count, by name."""
        return {name: value for name, value in scoring.numbers(self.metrics).items() if isinstance(value, float)}


@dataclass(frozen=True)
class LeftOut:
    """A run folder that is in no table, and the reason."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Row:
    """Runs of one method that differ only in code length and seed.

    Attributes:
        method: Name of the method.
        differs: Settings that distinguish this row from other rows of the method, by dotted name.
        cells: Runs for each code length, one run per seed.
    """

    method: str
    differs: dict[str, Any]
    cells: dict[int, list[Result]]

    @property
    def results(self) -> list[Result]:
        """The runs of all code lengths."""
        return [result for members in self.cells.values() for result in members]

    @property
    def label(self) -> str:
        """The method, and the settings that distinguish this row from other rows of the method."""
        settings = ", ".join(f"{name}={value}" for name, value in self.differs.items())
        return _line(f"{self.method} ({settings})" if settings else self.method)


@dataclass(frozen=True)
class Section:
    """Runs that can be compared, because they were measured on the same split by the same rules.

    Attributes:
        dataset: Name of the data set.
        split: Name, version and digest of the split.
        queries: Number of queries.
        database: Number of items in the database.
        model: Name of the model of all rows; ``None`` if the rows have several.
        lengths: Code lengths of all rows, ascending.
        rows: Rows, sorted by their labels, which start with the method.
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
        """Data set, split, its digest, numbers of queries and database items, and the model if all rows have one."""
        split = f"split {self.split['name']} {self.split['sha256'][:12]}"
        sizes = f"{self.queries} queries, {self.database} database items"
        return _line(f"{self.dataset}, {split}: {sizes}{f', model {self.model}' if self.model else ''}")

    def cells(self, metric: str) -> "list[list[Cell | None]]":
        """Return one list per row, with the cell for each code length; None where a row has no value."""
        return [[cell(row.cells.get(bits, ()), metric) for bits in self.lengths] for row in self.rows]

    def best(self, metric: str) -> list[float | None]:
        """Return the best mean for each code length, or None if there is a single row or higher is not better."""
        if len(self.rows) < 2 or metric.startswith(_UNRANKED):
            return [None] * len(self.lengths)
        columns = zip(*self.cells(metric), strict=True)
        return [max((cell.mean for cell in column if cell), default=None) for column in columns]


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds. With a single seed the deviation is None."""

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Cell | None":
        """Return the cell for a list of values, one per seed, or None if the list is empty."""
        if not values:
            return None
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        """Return the text that every table shows for this cell."""
        return f"{self.mean:.4f}" if self.deviation is None else f"{self.mean:.4f} ± {self.deviation:.4f}"


def _line(text: str) -> str:
    return " ".join(text.split())


def find(paths: Iterable[Path]) -> list[Path]:
    """Find the run folders at or below some paths. Each folder is listed once, and the list is sorted.

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
    """Read a finished run from its folder.

    Raises:
        ArtifactError: If the run is not finished, or if a file in its folder cannot be read.
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
        again = f"deephash eval run={folder} output={folder / runs.METRICS} writes it again"
        raise ArtifactError(f"{runs.METRICS} has no {', '.join(missing)}: {again}")
    return Result(folder, record, runs.flatten(runs.read_config(folder)), metrics)


def collect(paths: Iterable[Path]) -> tuple[list[Result], list[LeftOut]]:
    """Read the finished runs at or below some paths, and list the folders that are left out.

    Of several runs with the same fingerprint and split only the newest is used.

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
            left_out.append(LeftOut(older.folder, f"replaced by a newer run of the same settings: {result.folder}"))
        newest[same] = result
    return list(newest.values()), left_out


def gather(paths: Sequence[Path], metric: str) -> tuple[list[Result], list[LeftOut]]:
    """Read runs as `collect` does, and check that at least one of them has the metric.

    Raises:
        ConfigError: If a path is not a folder, if there is no finished run, or if none of them has the metric.
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
    """Advice that names the metrics without a cut-off, and one metric with a cut-off as an example."""
    plain = [name for name in names if not name.rpartition("_")[2].isdecimal()]
    return f": choose one of {', '.join(plain)}, or with a cut-off, such as precision_at_100"


def sections(results: Iterable[Result]) -> list[Section]:
    """Group runs into sections in which they can be compared.

    Runs on different data sets or splits, or measured by different rules, are in different sections.
    """
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
    """The settings that distinguish a row, with its model in front if the section has several models."""
    if len(models) == 1:
        return differs
    return {"model": _model(result), **{name: value for name, value in differs.items() if name != "model.name"}}


def _differences(kinds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind, the settings that distinguish it from the others, without settings that it does not have."""
    shown: dict[str, list[Any]] = {}
    for name in sorted(set().union(*kinds), key=lambda name: (name.count("."), name)):
        values = [kind.get(name) for kind in kinds]
        if all(value == values[0] for value in values) or values in shown.values():  # or: one setting refers to another
            continue
        parent = name.rpartition(".")[0]
        is_alone = len({json.dumps(value) for value in values if value is not None}) == 1
        if is_alone and len({kind.get(f"{parent}._target_") for kind in kinds}) > 1:
            continue  # part of a choice that not all kinds make; the choice itself is shown
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
    """Return mean and standard deviation of a metric over some runs, or None if no run has the metric."""
    return Cell.of([value for result in members if (value := result.value(metric)) is not None])


def tie_rule(metric: str) -> str:
    """Return a phrase that says how a metric treats items at the same distance."""
    return _TIES.get(metric, "ties are averaged over all their orders")

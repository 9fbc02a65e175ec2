"""Read finished runs from their folders and arrange them in tables: one row per kind of run, one column per length."""

import functools
import json
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.data.changes import in_words
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, command, hint, one_line, short
from deephash_cli.retrieval import scoring, similarity
from deephash_cli.retrieval.codes import BITS_LIMIT, is_count
from deephash_cli.retrieval.seen_classes import PROTOCOLS
from deephash_cli.runs import listing, records
from deephash_cli.runs.backbones import LEGEND, MARK, Backbone, backbone_of
from deephash_cli.runs.listing import LeftOut

# Settings that do not make runs different in kind. A table has columns for the lengths and averages over the seeds. The
# title of its section gives the data set and the split. The choice of metrics does not change the codes.
VARIED = (
    "bits", "seed", "metrics", "dataset.root", "dataset.source", "dataset.download", "dataset.protocol",
    "dataset.split_file", "dataset.lists", "dataset.classes", "dataset.incomplete",
    "dataset.unseen", "dataset.imbalance", "dataset.labelled",
    *runs.INCIDENTAL,
)  # fmt: skip
_NEEDED: dict[str, Callable[[Any], bool]] = {
    "method": records.is_name,
    "bits": lambda value: is_count(value) and 1 <= value <= BITS_LIMIT,
    "seed": lambda value: type(value) is int and abs(value) < 2**64,
    "dataset": records.is_name,
    "split": records.is_small,
    "policies": records.is_small,
    "versions": records.is_small,
    "queries": is_count,
    "database": is_count,
}
# Further entries that hold for every length of a run
_FACTS = ("class_names", "backbone", "pretrained_on_classes", "transductive")

LEARNED = "‡"
LEARNED_LEGEND = f"{LEARNED} transductive: trained on the whole database with its labels"
CAPTION = "mean and standard deviation over seeds, the number of seeds in brackets"
MARKED = (
    "the highest mean of its column, and each mean within its standard deviation; beside means over several seeds a "
    "single seed is not marked, and if it comes as close, they are not marked either"
)
DIGITS = 4
_LONG_LABEL = 500  # characters of the settings in the label of a row
# Metrics of which a higher value is not better.
_UNRANKED = ("empty_ball_rate", "unique_code_ratio", "bit_balance", "bit_correlation", "lost_by_binarizing")
_TIES = {
    "map_stable": "ties are in database order",
    "map_best": "relevant items come first in ties",
    "map_worst": "relevant items come last in ties",
}


@dataclass(frozen=True)
class Result:
    """A finished run, at one code length.

    Attributes:
        folder: The run folder.
        record: Content of ``run.json``.
        settings: The run's configuration as a flat dictionary with dotted names.
        metrics: Content of ``metrics.json``; for a nested length, what it has for this length.
        is_prefix: Whether this is a nested length of the run, shorter than its codes.
    """

    folder: Path
    record: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, Any]
    is_prefix: bool = False

    @property
    def lengths(self) -> "list[Result]":
        """The run at each of its code lengths: a run whose lengths are nested has several."""
        facts = {name: self.metrics[name] for name in (*_NEEDED, *_FACTS) if name in self.metrics}
        shorter = [
            replace(self, metrics={**part, **facts, "bits": bits}, is_prefix=True)
            for bits, part in scoring.nested(self.metrics).items()
            if bits < self.metrics["bits"]
        ]
        return [*shorter, self]

    @property
    def kind(self) -> dict[str, Any]:
        """The settings and the version that runs share if they differ only in code length and seed."""
        same = {name: value for name, value in runs.comparable(self.settings).items() if not runs.belongs(name, VARIED)}
        return {**same, "version": self.metrics["versions"].get("deephash")}

    @property
    def rules(self) -> dict[str, Any]:
        """The policies that decide numbers which all runs have; runs can be compared if they are the same."""
        rules = {"similar": similarity.SIMILAR[similarity.ONE], **self.metrics["policies"]}  # early runs do not say it
        return {name: rule for name, rule in rules.items() if name not in scoring.BESIDE}

    @functools.cached_property
    def backbone(self) -> Backbone | None:
        """The backbone of the run; None if it is not known."""
        return backbone_of(self.metrics)

    def value(self, metric: str) -> float | None:
        """Return a metric, such as ``map``, ``precision_at_100`` or ``unseen@all.map``, or None if the run has none."""
        return self.numbers().get(metric)

    def numbers(self) -> dict[str, float]:
        """Return every metric that is a single number and not a count, by name; see `scoring.by_classes`."""
        return self._numbers

    @functools.cached_property
    def _numbers(self) -> dict[str, float]:
        parts = {"": self.metrics, **{f"{name}.": part for name, part in scoring.by_classes(self.metrics).items()}}
        return {
            f"{before}{name}": value
            for before, part in parts.items()
            for name, value in scoring.numbers(part).items()
            if isinstance(value, float)
        }


@dataclass(frozen=True)
class Row:
    """Runs of one method that differ only in code length and seed.

    Attributes:
        method: Name of the method.
        differs: Settings that distinguish this row from other rows of the method, by dotted name.
        words: Short name in plain words of each of these settings, by dotted name: "max epochs".
        cells: Runs for each code length, one run per seed.
    """

    method: str
    differs: dict[str, Any]
    words: dict[str, str]
    cells: dict[int, list[Result]]

    @property
    def results(self) -> list[Result]:
        """The runs of all code lengths."""
        return [result for members in self.cells.values() for result in members]

    @property
    def backbone(self) -> Backbone | None:
        """The backbone of the runs; None if it is not known."""
        return next((result.backbone for result in self.results if result.backbone), None)

    @property
    def is_transductive(self) -> bool:
        """Whether the method has seen the labels of the database that is searched."""
        return any(result.metrics.get("transductive") is True for result in self.results)

    @property
    def label(self) -> str:
        """The method, and the settings that distinguish this row from other rows of the method."""
        return self._labelled(self.method, self.differs)

    @property
    def title(self) -> str:
        """The label with settings in plain words, for documents: ``dpsh (max epochs=30)``."""
        return self._labelled(self.method, self._in_words)

    @property
    def paper_title(self) -> str:
        """The title with the method's name as its class is spelled, which is how papers write it: ``DPSH``."""
        name = str(self.results[0].settings.get("module._target_")).rpartition(".")[2]
        is_same_word = name.casefold() == self.method.replace("_", "").casefold()
        return self._labelled(name if is_same_word else self.method, self._in_words)

    def _labelled(self, method: str, differs: Mapping[str, Any]) -> str:
        """Return a method with settings, and with marks if it or its backbone has seen more labels than others."""
        mark = f" {MARK}" if self.backbone and self.backbone.on_classes else ""
        return f"{_labelled(method, differs)}{mark}{f' {LEARNED}' if self.is_transductive else ''}"

    @property
    def _in_words(self) -> dict[str, Any]:
        return {self.words[name]: value for name, value in self.differs.items()}


@dataclass(frozen=True)
class Section:
    """Runs that can be compared, because they were measured on the same split by the same rules.

    Attributes:
        dataset: Name of the data set.
        split: Name, version and digest of the split, and what was changed of its training part.
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
        """Data set, split, its digest and changes, sizes, what is similar if that is unusual, and the model of all."""
        changes = f" ({'; '.join(self.changes)})" if self.changes else ""
        split = f"split {self.split['name']} {self.split['sha256'][:12]}{changes}"
        sizes = f"{self.queries} queries, {self.database} database items"
        model = [f"model {self.model}"] if self.model else []
        return _line(f"{self.dataset}, {split}: {', '.join((sizes, *similarity.in_words(self.similar), *model))}")

    @property
    def similar(self) -> str:
        """What made an item relevant to a query, a key of ``similarity.SIMILAR``."""
        return similarity.of_policies(self.rows[0].results[0].rules)

    @property
    def changes(self) -> list[str]:
        """What was changed of the training part of the split, in words; empty for most."""
        return in_words(self.split.get("changes"))

    @property
    def backbones(self) -> list[Backbone]:
        """The backbones of all rows, each once, by name."""
        return sorted({row.backbone for row in self.rows if row.backbone}, key=lambda backbone: backbone.name)

    @property
    def legend(self) -> str:
        """The meaning of the marks at labels of rows; "" if no row has one."""
        marks = [LEGEND] if any(backbone.on_classes for backbone in self.backbones) else []
        return "; ".join(marks + [LEARNED_LEGEND] * any(row.is_transductive for row in self.rows))

    def cells(self, metric: str) -> "list[list[Cell | None]]":
        """Return one list per row, with the cell for each code length; None where a row has no value."""
        return [[cell(row.cells.get(bits, ()), metric) for bits in self.lengths] for row in self.rows]

    def has_best(self, metric: str) -> bool:
        """Return whether cells of a metric are marked as best: there are several rows, and higher is better."""
        return len(self.rows) > 1 and not _of_all(metric).startswith(_UNRANKED)

    def best(self, metric: str) -> list[list[bool]]:
        """Return one list per row: whether its cell for each code length is marked as best, by the rule of `best`."""
        cells = self.cells(metric)
        if not self.has_best(metric):
            return [[False] * len(self.lengths) for _ in cells]
        return [list(row) for row in zip(*map(best, zip(*cells, strict=True)), strict=True)]


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
        """Return the text that tables show for this cell unless other digits are asked for."""
        return self.text()

    def text(self, digits: int = DIGITS, percent: bool = False) -> str:
        """Return mean and deviation with some digits after the decimal point, as shares of one or in percent."""
        numbers = [self.mean] if self.deviation is None else [self.mean, self.deviation]
        return " ± ".join(f"{100 * number if percent else number:.{digits}f}" for number in numbers)


def best(column: "Sequence[Cell | None]") -> list[bool]:
    """Return for each cell of a column whether it is marked as best.

    With several seeds anywhere in the column, the highest mean over several seeds is marked, and with it every mean
    over several seeds that lies within its standard deviation. One seed has no deviation, so it is not marked; if it
    lies above that limit, it may be better, and the column has no mark at all. If every cell has one seed, the highest
    value is marked.
    """
    several = [cell for cell in column if cell and cell.deviation is not None]
    if not several:
        highest = max((cell.mean for cell in column if cell), default=None)
        return [cell is not None and cell.mean == highest for cell in column]
    top = max(several, key=lambda cell: (cell.mean, cell.deviation))
    limit = top.mean - (top.deviation or 0)
    if any(cell and cell.deviation is None and cell.mean >= limit for cell in column):
        return [False] * len(column)
    return [cell is not None and cell.deviation is not None and cell.mean >= limit for cell in column]


def _labelled(method: str, differs: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in differs.items())
    if len(settings) > _LONG_LABEL:
        settings = f"{settings[:_LONG_LABEL]}..."
    return _line(f"{method} ({settings})" if settings else method)


def _line(text: str) -> str:
    return one_line(" ".join(text.split()))


def find(paths: Iterable[Path]) -> list[Path]:
    """Find the run folders at or below some paths. Each folder is listed once, and the list is sorted.

    Raises:
        ConfigError: If a path is not a folder.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises an error if a name is too long
            raise ConfigError(f"{short(str(path))} is not a folder: give run folders, or folders of runs")
        for folder, below, files in os.walk(path):
            if runs.RECORD in files:
                found.setdefault(os.path.realpath(folder), Path(folder))
                below.clear()
    return sorted(found.values())


def read(folder: Path) -> Result:
    """Read a finished run from its folder.

    Raises:
        ArtifactError: If the run is not finished, or if a file in its folder cannot be read.
    """
    record = runs.read_record(folder)
    if not records.has_metrics(folder):
        raise ArtifactError(": ".join(filter(None, (runs.status(folder, record), str(record.get("error") or "")))))
    metrics = records.metrics(folder)
    missing = [name for name, is_right in _NEEDED.items() if not is_right(metrics.get(name))]
    if "split" not in missing:
        missing += [f"split.{name}" for name in ("name", "sha256") if not records.is_name(metrics["split"].get(name))]
    if missing:
        again = command("deephash", "eval", f"run={folder}", f"output={folder / runs.METRICS}")
        raise ArtifactError(f"{runs.METRICS} has no {', '.join(missing)}: {again} writes it again")
    return Result(folder, record, records.settings(folder), metrics)


def collect(paths: Iterable[Path], wanted: Mapping[str, str] | None = None) -> tuple[list[Result], list[LeftOut]]:
    """Read the finished runs at or below some paths, and list the folders that are left out.

    Several runs with the same fingerprint and split are represented by the newest of them.

    Args:
        paths: Run folders, or folders of runs.
        wanted: Values that runs must have, as for `listing.choose`; runs without them are not listed as left out.

    Raises:
        ConfigError: If a path is not a folder, or no run has a wanted setting.
    """
    newest: dict[str, Result] = {}
    left_out: list[LeftOut] = []
    folders = find(paths)
    if wanted:
        listed, left_out = listing.read_all(folders)
        folders = [run.folder for run in listing.choose(listed, wanted)]
    for folder in folders:
        try:
            result = read(folder)
        except (DeephashError, OSError) as error:
            left_out.append(listing.left_out(folder, error))
            continue
        same = f"{result.record['fingerprint']} {result.metrics['split']['sha256']}"
        if same in newest:
            older, result = _by_age(newest[same], result)
            left_out.append(LeftOut(older.folder, f"replaced by a newer run of the same settings: {result.folder}"))
        newest[same] = result
    return list(newest.values()), left_out


def _by_age(one: Result, other: Result) -> list[Result]:
    """Return two runs, the older one first. Numbers of starts count the runs of one folder; else the clock decides."""
    same_folder = one.folder.absolute().parent == other.folder.absolute().parent
    return sorted((one, other), key=lambda run: runs.age(run.record) if same_folder else (0, run.record["started"]))


def gather(
    paths: Sequence[Path], metrics: Sequence[str], wanted: Mapping[str, str] | None = None
) -> tuple[list[Result], list[LeftOut]]:
    """Read runs as `collect` does, and check that each metric is in at least one of them.

    Raises:
        ConfigError: If a path is not a folder, if there is no finished run with the wanted values, or if none of them
            has one of the metrics.
    """
    found, left_out = collect(paths, wanted)
    if not found:
        filters = " ".join(f"{name}={values}" for name, values in (wanted or {}).items())
        reasons = "; ".join(f"{entry.folder}: {entry.reason}" for entry in left_out[:3])
        raise ConfigError(
            f"no finished run in {' '.join(map(str, paths))}{f' has {filters}' if filters else ''}"
            f"{f' ({reasons})' if reasons else ''}"
        )
    for metric in metrics:
        if all(result.value(metric) is None for result in found):
            known = set().union(*(result.numbers() for result in found))
            advice = hint(metric, known) or _some(found[0].numbers())
            raise ConfigError(f"none of {len(found)} runs has {metric}{advice}")
    return found, left_out


def _some(names: Iterable[str]) -> str:
    """Advice that names the metrics without a cut-off, and one metric with a cut-off as an example."""
    plain = [name for name in names if name == _of_all(name) and not name.rpartition("_")[2].isdecimal()]
    return f": choose one of {', '.join(plain)}, or with a cut-off, such as precision_at_100"


def sections(results: Iterable[Result]) -> list[Section]:
    """Group runs into sections in which they can be compared. A run with nested lengths is in them with each of these.

    Runs on different data sets or splits, or measured by different rules, are in different sections.
    """
    groups: dict[str, list[Result]] = {}
    for result in (part for run in results for part in run.lengths):
        metrics = result.metrics
        split = metrics["split"]["sha256"], metrics["split"].get("changes")
        rule = json.dumps([metrics["dataset"], *split, result.rules], sort_keys=True)
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
    differing = [
        (method, _with_model(_with_nested(differs, alike[0]), alike[0], models), _by_length(alike))
        for method, several in methods.items()
        for alike, differs in zip(several, differences([alike[0].kind for alike in several]), strict=True)
    ]
    words = plain_words(set().union(*(differs for _, differs, _ in differing)))
    rows = [Row(method, differs, words, cells) for method, differs, cells in differing]
    metrics = members[0].metrics
    lengths = sorted({result.metrics["bits"] for result in members})
    return Section(
        metrics["dataset"],
        metrics["split"],
        metrics["queries"],
        metrics["database"],
        None if len(models) > 1 else models.pop(),
        lengths,
        sorted(rows, key=lambda row: (_by_number(row.label), row.label)),
    )


def _by_number(label: str) -> list[Any]:
    """Return a sort key that puts ``iterations=5`` before ``iterations=20``."""
    parts = re.split(r"(\d+)", label)  # text, digits, text, ...
    return [(len(part.lstrip("0")), part.lstrip("0")) if number % 2 else part for number, part in enumerate(parts)]


def _model(result: Result) -> str | None:
    return result.settings.get("model.name")


def _with_model(differs: dict[str, Any], result: Result, models: set[str | None]) -> dict[str, Any]:
    """The settings that distinguish a row, with its model in front if the section has several models."""
    if len(models) == 1:
        return differs
    return {"model": _model(result), **{name: value for name, value in differs.items() if name != "model.name"}}


def _with_nested(differs: dict[str, Any], result: Result) -> dict[str, Any]:
    """The settings that distinguish a row, with its nested lengths: its shorter codes are no codes of runs alone."""
    nested = result.settings.get("nested")
    return {**differs, "nested": nested} if nested else differs


def differences(kinds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind, the settings that distinguish it from the others, without settings that it does not have."""
    shown: dict[str, list[Any]] = {}
    for name in sorted(set().union(*kinds), key=lambda name: (name.count("."), name)):
        values = [kind.get(name) for kind in kinds]
        if all(value == values[0] for value in values) or values in shown.values():  # or: one setting refers to another
            continue
        parent = name.rpartition(".")[0]
        is_alone = len({json.dumps(value) for value in values if value is not None}) == 1
        if is_alone and len({json.dumps(kind.get(f"{parent}._target_")) for kind in kinds}) > 1:
            continue  # part of a choice that not all kinds make; the choice itself is shown
        shown[name] = values
    return [
        {
            name.removesuffix("._target_"): _shown(name, values[row])
            for name, values in shown.items()
            if values[row] is not None
        }
        for row in range(len(kinds))
    ]


def _shown(name: str, value: Any) -> Any:
    """Return the value of a setting for a table: of a target, only the name of the class or function."""
    return str(value).rpartition(".")[2] if name.endswith("_target_") else value


def plain_words(names: Iterable[str]) -> dict[str, str]:
    """Return for each dotted name its shortest end that no other of the names has, with spaces between its words."""
    names = list(names)
    words = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        end = next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1), name)
        words[name] = end.replace(".", " ").replace("_", " ")
    return words


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
    return _TIES.get(_of_all(metric), "ties are averaged over all their orders")


def protocol_rule(metric: str) -> str | None:
    """Return a phrase that says which classes a metric is about; None for all queries and the whole database."""
    protocol = metric.removesuffix(_of_all(metric)).removesuffix(".")
    return f"{protocol}: {PROTOCOLS[protocol]}" if protocol in PROTOCOLS else None


def _of_all(metric: str) -> str:
    """Return the name of a metric without a protocol for some classes: ``map`` for ``unseen@all.map``."""
    return metric.rpartition(".")[2]

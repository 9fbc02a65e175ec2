"""``deephash compare``: a table of runs, method by code length, on the terminal or as CSV, Markdown, JSON or LaTeX."""

import html
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from deephash_cli import results
from deephash_cli.console import console, say, warn
from deephash_cli.errors import ConfigError, hint
from deephash_cli.files import csv_text, write_text
from deephash_cli.results import Cell, Section

CAPTION = "mean and standard deviation over seeds, the number of seeds in brackets"
_TIES = {
    "map_stable": "ties are in database order",
    "map_best": "relevant items come first in ties",
    "map_worst": "relevant items come last in ties",
}
_UNRANKED = ("empty_ball_rate", "unique_code_ratio")  # of which more is not better
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
})  # fmt: skip


def compare(paths: Sequence[Path], metric: str, form: str, output: Path | None) -> None:
    """Print the tables of the runs at or below some paths, or write them to a file.

    Args:
        paths: Run folders, or folders of runs.
        metric: Such as ``map``, ``map_stable``, ``precision_at_100``.
        form: ``table``, or one of ``FORMATS``.
        output: Nothing prints them.

    Raises:
        ConfigError: If there is no finished run, or none has the metric.
    """
    found, left_out = results.collect(paths)
    if not found:
        reasons = "; ".join(f"{entry.folder}: {entry.reason}" for entry in left_out[:3])
        raise ConfigError(f"no finished run in {' '.join(map(str, paths))}{f' ({reasons})' if reasons else ''}")
    if all(result.value(metric) is None for result in found):
        known = set().union(*(result.numbers() for result in found))
        raise ConfigError(f"none of {len(found)} runs has {metric}{hint(metric, known) or _some(found[0].numbers())}")
    sections = results.sections(found)
    if form != "table":
        text = FORMATS[form](sections, metric)
        if output is None:
            console.file.write(text)
        else:
            write_text(output, text)
            say(f"{len(found)} runs in {output}")
    else:
        for section in sections:
            say(f"{metric}: {section.title}")
            console.print(_table(section, metric))
            say(f"{CAPTION}; {_rule(metric)}\n")
        if len(sections) > 1:
            say(f"{len(sections)} tables: runs on different splits, or measured otherwise, cannot be compared")
    for entry in left_out:
        warn(f"left out {entry.folder}: {entry.reason}")


def _some(names: Iterable[str]) -> str:
    """Some of the metrics: those that are a number without a cut-off, and one that has one."""
    plain = [name for name in names if not name.rpartition("_")[2].isdecimal()]
    return f": choose one of {', '.join(plain)}, or with a cut-off, such as precision_at_100"


def _rows(section: Section, metric: str, best: Callable[[str], str]) -> list[tuple[str, list[str]]]:
    """Of each row what it is called and its cells; the best mean of a column is marked."""
    cells = [[results.cell(row.cells.get(bits, ()), metric) for bits in section.lengths] for row in section.rows]
    tops = [max((cell.mean for cell in column if cell), default=None) for column in zip(*cells, strict=True)]
    marked = len(section.rows) > 1 and metric not in _UNRANKED
    return [
        (
            row.label,
            [
                best(_text(cell)) if cell and marked and cell.mean == top else _text(cell)
                for cell, top in zip(line, tops, strict=True)
            ],
        )
        for row, line in zip(section.rows, cells, strict=True)
    ]


def _text(cell: Cell | None) -> str:
    return f"{cell} ({cell.seeds})" if cell else ""


def _rule(metric: str) -> str:
    return _TIES.get(metric, "ties are averaged over all their orders")


def _table(section: Section, metric: str) -> Table:
    table = Table()
    table.add_column("method", overflow="fold")
    for bits in section.lengths:
        table.add_column(f"{bits} bits", justify="right")
    for label, cells in _rows(section, metric, lambda text: f"[bold]{text}[/bold]"):
        table.add_row(escape(label), *cells)
    return table


def _csv(sections: Sequence[Section], metric: str) -> str:
    """A line for each method and length."""
    records = _records(sections, metric)
    for record in records:
        record["settings"] = " ".join(f"{name}={value}" for name, value in record["settings"].items())
    return csv_text(list(records[0]), records)


def _json(sections: Sequence[Section], metric: str) -> str:
    return json.dumps(_records(sections, metric), indent=2, ensure_ascii=False) + "\n"


def _records(sections: Sequence[Section], metric: str) -> list[dict[str, Any]]:
    return [
        {
            "dataset": section.dataset,
            "split": section.split["name"],
            "split_sha256": section.split["sha256"],
            "method": row.method,
            "settings": row.differs,
            "bits": bits,
            "metric": metric,
            "mean": cell.mean,
            "sd": cell.deviation,
            "seeds": cell.seeds,
        }
        for section in sections
        for row in section.rows
        for bits in section.lengths
        if (cell := results.cell(row.cells.get(bits, ()), metric))
    ]


def _markdown(sections: Sequence[Section], metric: str) -> str:
    def plain(text: str) -> str:
        return html.escape(text, quote=False).replace("|", "\\|")

    blocks = []
    for section in sections:
        lines = [
            f"**{plain(metric)}: {plain(section.title)}**",
            "",
            f"| method |{''.join(f' {bits} bits |' for bits in section.lengths)}",
            f"| --- |{' --- |' * len(section.lengths)}",
            *(
                f"| {plain(label)} |{''.join(f' {cell} |' for cell in cells)}"
                for label, cells in _rows(section, metric, lambda text: f"**{text}**")
            ),
            "",
            f"{CAPTION.capitalize()}; {_rule(metric)}.",
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _latex(sections: Sequence[Section], metric: str) -> str:
    def strong(text: str) -> str:
        return rf"\textbf{{{text}}}"

    blocks = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        lengths = "".join(f" & {bits} bits" for bits in section.lengths)
        blocks += [
            f"% {metric}: {section.title}; {_rule(metric)}",
            f"% {CAPTION}",
            rf"\begin{{tabular}}{{l{'r' * len(section.lengths)}}}",
            r"\toprule",
            rf"Method{lengths} \\",
            r"\midrule",
            *(
                " & ".join((label.translate(_LATEX), *(cell.replace("±", r"$\pm$") for cell in cells))) + r" \\"
                for label, cells in _rows(section, metric, strong)
            ),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    return "\n".join(blocks)


FORMATS: dict[str, Callable[[Sequence[Section], str], str]] = {
    "csv": _csv,
    "json": _json,
    "latex": _latex,
    "markdown": _markdown,
}
ENDINGS = {".csv": "csv", ".json": "json", ".tex": "latex", ".md": "markdown"}  # of files: the formats they are in

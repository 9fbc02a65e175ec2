"""``deephash compare``: print a table of runs, method by code length, or write it as CSV, Markdown, JSON or LaTeX."""

import argparse
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from deephash_cli.console import console, say, warn
from deephash_cli.errors import ConfigError
from deephash_cli.files import csv_text, write_text
from deephash_cli.runs import results
from deephash_cli.runs.outputs import MARKS, settle
from deephash_cli.runs.results import Cell, Section

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
})  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="run folder")
    parser.add_argument("--metric", default="map")
    parser.add_argument("--format")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--overwrite", action="store_true")


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash compare``."""
    form: str = parsed.format or ("table" if parsed.output is None else ENDINGS.get(parsed.output.suffix, "table"))
    if form not in ("table", *FORMATS):
        raise ConfigError(f"--format must be one of table, {', '.join(FORMATS)}, got {form}")
    if parsed.output is not None and form == "table":
        raise ConfigError(f"--output {parsed.output} must end in {', '.join(ENDINGS)}, or add --format")
    compare(parsed.paths, parsed.metric, form, parsed.output, parsed.overwrite)


def compare(paths: Sequence[Path], metric: str, form: str, output: Path | None, overwrite: bool = False) -> None:
    """Print the tables of the runs at or below some paths, or write them to a file.

    Args:
        paths: Run folders, or folders of runs.
        metric: Name of the metric to show, such as ``map``, ``map_stable``, ``precision_at_100``.
        form: Output format: ``table``, or one of ``FORMATS``.
        output: File for the tables; None prints them.
        overwrite: Whether ``output`` may be a file that ``deephash compare`` did not make, and replace it.

    Raises:
        ConfigError: If there is no finished run, if none has the metric, or if ``output`` must not be replaced.
    """
    (file,) = settle("compare", {"--output ": output}, {}, overwrite)
    found, left_out = results.gather(paths, metric)
    sections = results.sections(found)
    if form != "table":
        text = FORMATS[form](sections, metric)
        if file is None:
            console.file.write(text)
        else:
            write_text(file, MARKS.get(form, "") + text)
            say(f"{len(found)} runs in {output}")
    else:
        for section in sections:
            say(f"{metric}: {section.title}")
            console.print(_table(section, metric))
            say(f"{results.CAPTION}; {results.tie_rule(metric)}\n")
        if len(sections) > 1:
            say(f"{len(sections)} tables: runs on different splits, or measured by different rules, cannot be compared")
    for entry in left_out:
        warn(f"left out {entry.folder}: {entry.reason}")


def _rows(section: Section, metric: str, best: Callable[[str], str]) -> list[tuple[str, list[str]]]:
    """Return the label and the cells of each row; ``best`` marks the best mean of each column."""
    tops = section.best(metric)
    return [
        (
            row.label,
            [
                best(_text(cell)) if cell and cell.mean == top else _text(cell)
                for cell, top in zip(line, tops, strict=True)
            ],
        )
        for row, line in zip(section.rows, section.cells(metric), strict=True)
    ]


def _text(cell: Cell | None) -> str:
    return f"{cell} ({cell.seeds})" if cell else ""


def _table(section: Section, metric: str) -> Table:
    table = Table()
    table.add_column("method", overflow="fold")
    for bits in section.lengths:
        table.add_column(f"{bits} bits", justify="right")
    for label, cells in _rows(section, metric, lambda text: f"[bold]{text}[/bold]"):
        table.add_row(escape(label), *cells)
    return table


def _csv(sections: Sequence[Section], metric: str) -> str:
    """Return CSV with a line for each method and code length."""
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
            f"{results.CAPTION.capitalize()}; {results.tie_rule(metric)}.",
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
            f"% {metric}: {section.title}; {results.tie_rule(metric)}",
            f"% {results.CAPTION}",
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
ENDINGS = {".csv": "csv", ".json": "json", ".tex": "latex", ".md": "markdown"}  # the format for each file ending

"""``deephash compare``: print a table of runs, method by code length, or write it as CSV, Markdown, JSON or LaTeX."""

import argparse
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from deephash_cli.console import console, say, say_wrapped, show, warn
from deephash_cli.errors import ConfigError
from deephash_cli.files import csv_text, json_text, write_text
from deephash_cli.runs import backbones, listing, results
from deephash_cli.runs.outputs import MARKS, settle
from deephash_cli.runs.results import Cell, Section

_MOST_DIGITS = 15  # of a number in double precision
_LATEX = str.maketrans({
    backbones.MARK: r"\textdagger{}",
    results.LEARNED: r"\textdaggerdbl{}",
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
})  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How the numbers of a table look, and what stands around a LaTeX table.

    Attributes:
        digits: Number of digits after the decimal point.
        percent: Whether numbers are in percent.
        caption: LaTeX text of the caption; None for no caption.
        label: Name of the table for references; None for no label.
    """

    digits: int = results.DIGITS
    percent: bool = False
    caption: str | None = None
    label: str | None = None

    def text(self, cell: Cell | None) -> str:
        """Return mean, deviation and number of seeds, or an empty text if there is no value."""
        return f"{cell.text(self.digits, self.percent)} ({cell.seeds})" if cell else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    parser.add_argument("words", nargs="+", metavar="run folder")
    parser.add_argument("--metric", action="append")
    parser.add_argument("--format")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--digits", type=int)
    parser.add_argument("--percent", action="store_true")
    parser.add_argument("--caption")
    parser.add_argument("--label")
    parser.add_argument("--overwrite", action="store_true")


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash compare``."""
    form: str = parsed.format or ("table" if parsed.output is None else ENDINGS.get(parsed.output.suffix, "table"))
    if form not in ("table", *FORMATS):
        raise ConfigError(f"--format must be one of table, {', '.join(FORMATS)}, got {form}")
    if parsed.output is not None and form == "table":
        raise ConfigError(f"--output {parsed.output} must end in {', '.join(ENDINGS)}, or add --format")
    if form in ("csv", "json") and (parsed.digits is not None or parsed.percent):
        option = "--percent" if parsed.digits is None else "--digits"
        raise ConfigError(f"{option} is for tables that people read; {form} has shares of one with all digits: omit it")
    if form != "latex" and (parsed.caption is not None or parsed.label is not None):
        raise ConfigError(f"--{'label' if parsed.caption is None else 'caption'} needs --format latex, got {form}")
    if parsed.digits is not None and not 1 <= parsed.digits <= _MOST_DIGITS:
        raise ConfigError(f"--digits must be a whole number from 1 to {_MOST_DIGITS}, got {parsed.digits}")
    digits = parsed.digits or (results.DIGITS - 2 if parsed.percent else results.DIGITS)
    metrics = [name.strip() for names in parsed.metric or ["map"] for name in names.split(",")]
    paths, wanted = listing.paths_and_filters(parsed.words)
    style = Style(digits, parsed.percent, parsed.caption, parsed.label)
    compare(paths, wanted, list(dict.fromkeys(metrics)), form, parsed.output, style, parsed.overwrite)


def compare(
    paths: Sequence[Path],
    wanted: Mapping[str, str],
    metrics: Sequence[str],
    form: str,
    output: Path | None,
    style: Style,
    overwrite: bool = False,
) -> None:
    """Print the tables of the runs at or below some paths, or write them to a file.

    Args:
        paths: Run folders, or folders of runs.
        wanted: Values that runs must have, as for `listing.choose`.
        metrics: Names of the metrics to show, such as ``map``, ``map_stable``, ``precision_at_100``.
        form: Output format: ``table``, or one of ``FORMATS``.
        output: File for the tables; None prints them.
        style: How numbers look, and what stands around a LaTeX table.
        overwrite: Whether ``output`` may be a file that ``deephash compare`` did not make, and replace it.

    Raises:
        ConfigError: If there is no finished run with the wanted values, none has one of the metrics, or ``output`` must
            not be replaced.
    """
    (file,) = settle("compare", {"--output ": output}, {}, overwrite)
    found, left_out = results.gather(paths, metrics, wanted)
    sections = results.sections(found)
    if form != "table":
        text = FORMATS[form](sections, metrics, style)
        if file is None:
            console.file.write(text)
        else:
            write_text(file, MARKS.get(form, "") + text)
            say(f"{len(found)} runs in {output}")
    else:
        for section in sections:
            show(_table(section, metrics, style), _title(section, metrics, style))
            say_wrapped(_caption(section, metrics))
            for backbone in section.backbones:
                say_wrapped(str(backbone))
            say("")
        if len(sections) > 1:
            say(f"{len(sections)} tables: runs on different splits, or measured by different rules, cannot be compared")
    for entry in left_out:
        warn(f"left out {entry.folder}: {entry.reason}")


def _title(section: Section, metrics: Sequence[str], style: Style) -> str:
    return f"{', '.join(metrics)}{' in %' if style.percent else ''}: {section.title}"


def _caption(section: Section, metrics: Sequence[str]) -> str:
    """Return the sentence below a table: what a cell shows, which cells and rows are marked, how ties are treated."""
    marks = any(map(section.has_best, metrics))
    ties = dict.fromkeys(results.tie_rule(metric) for metric in metrics)
    protocols = dict.fromkeys(rule for metric in metrics if (rule := results.protocol_rule(metric)))
    legend = [section.legend] if section.legend else []
    return "; ".join((results.CAPTION, *([f"bold: {results.MARKED}"] if marks else []), *ties, *protocols, *legend))


def _columns(section: Section, metrics: Sequence[str]) -> list[str]:
    """Return the headings of all columns but the first: code lengths, with the metric if there are several."""
    named = [f"{metric}, " for metric in metrics] if len(metrics) > 1 else [""]
    return [f"{name}{bits} bits" for name in named for bits in section.lengths]


def _cells(section: Section, metrics: Sequence[str], style: Style, bold: Callable[[str], str]) -> list[list[str]]:
    """Return the text of the cells of each row, with ``bold`` applied to those that are marked as best."""
    rows: list[list[str]] = [[] for _ in section.rows]
    for metric in metrics:
        for row, cells, marks in zip(rows, section.cells(metric), section.best(metric), strict=True):
            texts = [style.text(cell) for cell in cells]
            row += [bold(text) if is_best else text for text, is_best in zip(texts, marks, strict=True)]
    return rows


def _table(section: Section, metrics: Sequence[str], style: Style) -> Table:
    table = Table("method")
    rows = _cells(section, metrics, style, lambda text: f"[bold]{text}[/bold]")
    for heading, cells in zip(_columns(section, metrics), zip(*rows, strict=True), strict=True):
        half = 6 + style.digits if any("±" in cell for cell in cells) else 1  # "0.0129 (2)" stays together
        table.add_column(heading, justify="right", min_width=half)
    for row, cells in zip(section.rows, rows, strict=True):
        table.add_row(escape(row.label), *cells)
    return table


def _csv(sections: Sequence[Section], metrics: Sequence[str], _: Style) -> str:
    """Return CSV with a line for each method, code length and metric."""
    records = _records(sections, metrics)
    for record in records:
        record["settings"] = " ".join(f"{name}={value}" for name, value in record["settings"].items())
    return csv_text(list(records[0]), records)


def _json(sections: Sequence[Section], metrics: Sequence[str], _: Style) -> str:
    return json_text(_records(sections, metrics))


def _records(sections: Sequence[Section], metrics: Sequence[str]) -> list[dict[str, Any]]:
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
            "backbone": row.backbone and row.backbone.name,
            "parameters": row.backbone and row.backbone.parameters,
            "pretraining": row.backbone and row.backbone.pretraining,
            "licence": row.backbone and row.backbone.licence,
            "pretrained_on_classes": row.backbone and row.backbone.on_classes,
            "transductive": row.is_transductive,
            "similar": section.similar,
            "training": "; ".join(section.changes),
        }
        for section in sections
        for row in section.rows
        for bits in section.lengths
        for metric in metrics
        if (cell := results.cell(row.cells.get(bits, ()), metric))
    ]


def _markdown(sections: Sequence[Section], metrics: Sequence[str], style: Style) -> str:
    def plain(text: str) -> str:
        return html.escape(text, quote=False).replace("|", "\\|")

    blocks = []
    for section in sections:
        headings = _columns(section, metrics)
        rows = _cells(section, metrics, style, lambda text: f"**{text}**")
        caption = _caption(section, metrics)
        lines = [
            f"**{plain(_title(section, metrics, style))}**",
            "",
            f"| method |{''.join(f' {plain(heading)} |' for heading in headings)}",
            f"| --- |{' --- |' * len(headings)}",
            *(
                f"| {plain(row.label)} |{''.join(f' {cell} |' for cell in cells)}"
                for row, cells in zip(section.rows, rows, strict=True)
            ),
            "",
            f"{caption[0].upper()}{caption[1:]}.",
            *(f"{line[0].upper()}{line[1:]}." for line in map(plain, map(str, section.backbones))),
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _latex(sections: Sequence[Section], metrics: Sequence[str], style: Style) -> str:
    blocks = [r"% needs \usepackage{booktabs}"]
    for number, section in enumerate(sections):
        rows = _cells(section, metrics, style, lambda text: rf"\textbf{{{text}}}")
        tabular = [
            rf"\begin{{tabular}}{{l{'r' * len(section.lengths) * len(metrics)}}}",
            r"\toprule",
            *_latex_head(section, metrics, style),
            r"\midrule",
            *(
                " & ".join((_escaped(row.paper_title), *(cell.replace("±", r"$\pm$") for cell in cells))) + r" \\"
                for row, cells in zip(section.rows, rows, strict=True)
            ),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        if style.caption is not None or style.label is not None:
            label = style.label and f"{style.label}{f'-{number + 1}' if number else ''}"  # two labels must differ
            around = [f"\\caption{{{style.caption}}}"] if style.caption is not None else []
            around += [f"\\label{{{label}}}"] if label is not None else []
            tabular = [r"\begin{table}", r"\centering", *around, *tabular, r"\end{table}"]
        comments = [_title(section, metrics, style), _caption(section, metrics), *map(str, section.backbones)]
        blocks += [*(f"% {comment}" for comment in comments), *tabular, ""]
    return "\n".join(blocks)


def _latex_head(section: Section, metrics: Sequence[str], style: Style) -> list[str]:
    """Return the lines of the head: code lengths, and above them the metrics if there are several."""
    count = len(section.lengths)
    lengths = "".join(f" & {bits} bits" for bits in section.lengths) * len(metrics)
    if len(metrics) == 1:
        return [rf"Method{lengths} \\"]
    names = "".join(rf" & \multicolumn{{{count}}}{{c}}{{{_in_papers(name, style)}}}" for name in metrics)
    starts = range(2, 2 + count * len(metrics), count)
    rules = "".join(rf"\cmidrule(lr){{{start}-{start + count - 1}}}" for start in starts)
    return [rf"{names} \\".lstrip(), rules, rf"Method{lengths} \\"]


def _in_papers(metric: str, style: Style) -> str:
    """Return the name of a metric as papers write it, in LaTeX: mAP, mAP@5000, P@100."""
    name, _, k = metric.partition("_at_")
    short = {"map": "mAP", "precision": "P", "recall": "R"}.get(name)
    text = metric if short is None else f"{short}@{k}" if k else short
    return _escaped(f"{text} (%)" if style.percent else text)


def _escaped(text: str) -> str:
    return text.translate(_LATEX)


FORMATS: dict[str, Callable[[Sequence[Section], Sequence[str], Style], str]] = {
    "csv": _csv,
    "json": _json,
    "latex": _latex,
    "markdown": _markdown,
}
ENDINGS = {".csv": "csv", ".json": "json", ".tex": "latex", ".md": "markdown"}  # the format for each file ending

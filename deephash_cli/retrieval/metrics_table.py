"""Print metrics, of a run or of third-party codes, as a table."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from deephash_cli.console import console, say

SHOWN_AT = ("1", "10", "100", "1000")  # the cut-offs k in the table; the file has all of them


def _title(metrics: Mapping[str, Any]) -> str:
    if source := metrics.get("source"):
        sides = [f"{source[side]['file']} ({source[side]['format']})" for side in ("query", "database")]
        return f"{sides[0]} in {sides[1]}, {metrics['bits']} bits"
    choices = " ".join(f"{name}={value}" for name, value in metrics["module"].items() if name != "_target_")
    return (
        f"{metrics['method']} ({choices}), {metrics['bits']} bits, seed {metrics['seed']}\n"
        f"{metrics['dataset']} {metrics['split']['name']}, {metrics['model']}"
    )


def show(metrics: Mapping[str, Any]) -> None:
    """Print the metrics as a table, with all digits."""
    table = Table(title=escape(_title(metrics)), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")

    notes = {
        "map": "mean over all orders of ties",
        "map_stable": "ties in database order",
        "map_best": "relevant items first in ties",
        "map_worst": "relevant items last in ties",
        "empty_ball_rate": "queries with no item within the radius",
        "unique_code_ratio": "different codes per database item",
    }
    for name, value in metrics.items():
        if isinstance(value, float):
            table.add_row(name, repr(value), notes.get(name, ""))
    for name in ("precision_at_k", "recall_at_k"):
        for k in SHOWN_AT:
            if k in metrics.get(name, ()):
                table.add_row(f"{name.removesuffix('_k')}_{k}", repr(metrics[name][k]), "")
    table.add_row("bit balance", repr(metrics["bit_balance"]["mean_deviation"]), "mean |ones - 0.5|, 0 is best")
    console.print(table)
    origin = f", split {metrics['split']['sha256'][:12]}" if "split" in metrics else ""
    say(f"{metrics['queries']} queries, {metrics['database']} database items{origin}")
    if note := metrics["policies"].get("labels"):
        say(note)
    elif metrics["queries_without_relevant"]:
        say(f"{metrics['queries_without_relevant']} queries: {metrics['policies']['zero_hits']}")

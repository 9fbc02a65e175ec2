"""Print metrics, of a run or of third-party codes, as a table."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from deephash_cli import console
from deephash_cli.retrieval import scoring, similarity

SHOWN_AT = ("1", "10", "100", "1000")  # the cut-offs k in the table; the file has all of them
_CEILING = {
    "map_outputs": "cosine of the outputs of both sides",
    "map_features": "cosine of the backbone's features",
    "lost_by_binarizing": "map_outputs less map",
}


def _title(metrics: Mapping[str, Any]) -> str:
    if source := metrics.get("source"):
        sides = [f"{source[side]['file']} ({source[side]['format']})" for side in ("query", "database")]
        return f"{sides[0]} in {sides[1]}, {metrics['bits']} bits"
    first = f"first {metrics['bits']} of {metrics['prefix_of']}" if "prefix_of" in metrics else metrics["bits"]
    choices = " ".join(f"{name}={value}" for name, value in metrics["module"].items() if name != "_target_")
    return (
        f"{metrics['method']} ({choices}), {first} bits, seed {metrics['seed']}\n"
        f"{metrics['dataset']} {metrics['split']['name']}, {metrics['model']}"
    )


def show(metrics: Mapping[str, Any]) -> None:
    """Print the metrics as a table, with four digits; the file has all of them."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")

    notes = {
        "map": "mean over all orders of ties",
        "map_stable": "ties in database order",
        "map_best": "relevant items first in ties",
        "map_worst": "relevant items last in ties",
        "map_asymmetric": "real-valued queries, binary database",
        "wap": "mean ACG at the relevant ranks",
        "empty_ball_rate": "queries with no item within the radius",
        "unique_code_ratio": "different codes per database item",
    }
    for name, value in metrics.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}", notes.get(name, ""))
    for name, note in _CEILING.items():
        if name in (found := metrics.get("ceiling", {})):
            table.add_row(name, "-" if found[name] is None else f"{found[name]:.4f}", note)
    for bits, part in scoring.nested(metrics).items():
        if "map" in part:
            table.add_row(f"map, {bits} bits", f"{part['map']:.4f}", f"the first {bits} bits as a code of their own")
    for name, part in scoring.by_classes(metrics).items():
        value = f"{part['map']:.4f}" if "map" in part else "-"
        table.add_row(f"map, {name}", value, f"{part['queries']} queries, {part['database']} items")
    for name in ("precision_at_k", "recall_at_k"):
        for k in SHOWN_AT:
            if k in metrics.get(name, ()):
                beyond = f"k > {metrics['database']} items" if int(k) > metrics["database"] else ""
                table.add_row(f"{name.removesuffix('_k')}_{k}", f"{metrics[name][k]:.4f}", beyond)
    balance = metrics["bit_balance"]["mean_deviation"]
    table.add_row("bit_balance_mean_deviation", f"{balance:.4f}", "mean |ones - 0.5|, 0 is best")
    console.show(table, _title(metrics))
    origin = f", split {metrics['split']['sha256'][:12]}" if "split" in metrics else ""
    rule = "".join(f", {words}" for words in similarity.in_words(similarity.of_policies(metrics["policies"])))
    console.say(f"{metrics['queries']} queries, {metrics['database']} database items{rule}{origin}")
    if note := metrics["policies"].get("labels"):
        console.say(note)
    elif metrics["queries_without_relevant"]:
        console.say(f"{metrics['queries_without_relevant']} queries: {metrics['policies']['zero_hits']}")


def show_classes(metrics: Mapping[str, Any]) -> None:
    """Print the mAP of the queries that carry each class, highest first. Classes without queries are left out."""
    if not metrics.get("per_class"):
        console.say(f"no table of classes: there are no labels, or more than {scoring.CLASSES} classes")
        return
    maps, queries = metrics["per_class"]["map"], metrics["per_class"]["queries"]
    names = metrics.get("class_names") or metrics.get("source", {}).get("classes") or range(len(maps))
    table = Table("class")
    for heading in ("queries", "mAP"):
        table.add_column(heading, justify="right")
    lines = [line for line in zip(names, queries, maps, strict=True) if line[1]]
    for name, count, value in sorted(lines, key=lambda line: -line[2]):
        table.add_row(escape(str(name)), str(count), f"{value:.4f}")
    several = sum(queries) > metrics["queries"]
    console.show(table, f"mAP of each class{': a query counts for each of its labels' if several else ''}")

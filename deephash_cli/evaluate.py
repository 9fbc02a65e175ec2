"""``deephash eval``: every number again from the codes on disk. Needs neither the network nor torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from deephash_cli import runs, scoring
from deephash_cli.codes import MANIFEST, load_codes
from deephash_cli.console import console, say
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.files import write_json

_FACTS = {"method", "module", "model", "dataset", "split", "seed"}  # of a manifest's provenance
_SETTINGS = {"ks", "map_at", "radius"}  # of its evaluation
SHOWN_AT = ("1", "10", "100", "1000")  # the cut-offs k in the table; the others are in the file


def score(folder: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a codes folder, with what its manifest says of where the codes come from.

    Args:
        folder: A codes folder.
        overrides: ``ks``, ``map_at`` and ``radius`` to use instead of the ones in the manifest; ``None`` keeps them.

    Raises:
        ArtifactError: If the codes are damaged, or of unknown origin.
    """
    query, database, manifest = load_codes(folder)
    for name, needed in (("provenance", _FACTS), ("evaluation", _SETTINGS)):
        missing = needed - set(manifest.get(name) or ())
        if missing:
            raise ArtifactError(f"{folder / MANIFEST} must give {', '.join(sorted(missing))} under {name}, got none")
    settings = {**manifest["evaluation"], **{name: value for name, value in overrides.items() if value is not None}}
    metrics = scoring.evaluate(query, database, ks=settings["ks"], map_at=settings["map_at"], radius=settings["radius"])
    return {**metrics, **manifest["provenance"]}


def evaluate(config: DictConfig) -> dict[str, Any]:
    """The verb."""
    if (config.run is None) == (config.codes is None):
        raise ConfigError("deephash eval needs run=<run folder> or codes=<codes folder>, and only one of the two")
    if config.run is not None:
        runs.read_record(Path(config.run))
    folder = Path(config.codes) if config.run is None else Path(config.run) / runs.CODES
    metrics = score(folder, {name: config[name] for name in ("ks", "map_at", "radius")})
    show(metrics)
    if config.output is not None:
        write_json(Path(config.output), metrics)
        say(f"metrics: {config.output}")
    return metrics


def show(metrics: Mapping[str, Any]) -> None:
    """Print the metrics as a table, to the last digit."""
    split = metrics["split"]
    choices = " ".join(f"{name}={value}" for name, value in metrics["module"].items() if name != "_target_")
    title = (
        f"{metrics['method']} ({choices}), {metrics['bits']} bits, seed {metrics['seed']}\n"
        f"{metrics['dataset']} {split['name']}, {metrics['model']}"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")

    notes = {
        "map": "mean over orders of ties",
        "map_stable": "ties in database order",
        "map_best": "relevant first in ties",
        "map_worst": "relevant last in ties",
        "empty_ball_rate": "nothing within the radius",
        "unique_code_ratio": "codes per database item",
    }
    for name, value in metrics.items():
        if isinstance(value, float):
            table.add_row(name, repr(value), notes.get(name, ""))
    for name in ("precision_at_k", "recall_at_k"):
        for k in SHOWN_AT:
            if k in metrics[name]:
                table.add_row(f"{name.removesuffix('_k')}_{k}", repr(metrics[name][k]), "")
    table.add_row("bit balance", repr(metrics["bit_balance"]["mean_deviation"]), "mean |ones - 0.5|, 0 is best")
    console.print(table)
    say(f"{metrics['queries']} queries, {metrics['database']} database items, split {split['sha256'][:12]}")
    if metrics["queries_without_relevant"]:
        say(f"{metrics['queries_without_relevant']} queries have no relevant item and count as 0")

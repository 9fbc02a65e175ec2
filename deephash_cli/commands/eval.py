"""``deephash eval``: every number again from the codes on disk, or the numbers of anybody's codes. Needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table

from deephash_cli import runs
from deephash_cli.console import console, say
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.files import write_json
from deephash_cli.retrieval import external_codes as foreign
from deephash_cli.retrieval import scoring
from deephash_cli.retrieval.codes import MANIFEST, load_codes

_FACTS = {"method", "module", "model", "dataset", "split", "seed"}  # of a manifest's provenance
_SETTINGS = ("ks", "map_at", "radius", "zero_hits")  # of its evaluation; early ones have no zero_hits
_FILES = ("query", "database", "query_labels", "database_labels")
SHOWN_AT = ("1", "10", "100", "1000")  # the cut-offs k in the table; the others are in the file


def score(folder: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a codes folder, with what its manifest says of where the codes come from.

    Args:
        folder: A codes folder.
        overrides: ``ks``, ``map_at``, ``radius`` and ``zero_hits`` to use instead of the ones in the manifest; ``None``
            keeps them.

    Raises:
        ArtifactError: If the codes are damaged, or of unknown origin.
    """
    query, database, manifest = load_codes(folder)
    for name, needed in (("provenance", _FACTS), ("evaluation", {*_SETTINGS} - {"zero_hits"})):
        missing = needed - set(manifest.get(name) or ())
        if missing:
            raise ArtifactError(f"{folder / MANIFEST} must give {', '.join(sorted(missing))} under {name}, got none")
    settings = {"zero_hits": "zero", **manifest["evaluation"]}
    if not _is_evaluation(settings):
        raise ArtifactError(
            f"{folder / MANIFEST} must give under evaluation lists ks and map_at of whole numbers from 1, a radius "
            "from 0, and zero_hits zero or skip, got something else: it was edited by hand"
        )
    settings = _settle(settings, overrides)
    return {**scoring.evaluate(query, database, **settings), **manifest["provenance"]}


def evaluate(config: DictConfig) -> dict[str, Any]:
    """The verb."""
    kind = _kind(config)
    overrides = {name: config[name] for name in _SETTINGS}
    if kind == "query":
        paths = [Path(config[name]) for name in _FILES]
        query, database, source = foreign.load(*paths, bits=config.bits, bit_order=config.bit_order)
        settings = _settle({**config.metrics, "map_at": []}, overrides)
        metrics = {**scoring.evaluate(query, database, **settings), "source": source}
    elif kind == "run":
        runs.read_record(Path(config.run))
        metrics = score(Path(config.run) / runs.CODES, overrides)
    else:
        metrics = score(Path(config.codes), overrides)
    show(metrics)
    if config.output is not None:
        write_json(Path(config.output), metrics)
        say(f"metrics: {config.output}")
    return metrics


def _kind(config: DictConfig) -> str:
    """What there is to score: ``run``, ``codes`` or, for four files, ``query``."""
    files = [name for name in _FILES if config[name] is not None]
    given = [name for name in ("run", "codes") if config[name] is not None] + files[:1]
    if not given:
        raise ConfigError(
            "deephash eval needs run=<run folder> or codes=<codes folder>, or the four .npy files "
            f"{', '.join(f'{name}=' for name in _FILES)}"
        )
    if len(given) > 1:
        raise ConfigError(
            f"deephash eval takes only one of the {'two' if len(given) == 2 else 'three'}, "
            f"got {' and '.join(f'{name}=' for name in given)}: leave out all but one"
        )
    if files and len(files) < len(_FILES):
        missing = [f"{name}=<file.npy>" for name in _FILES if name not in files]
        raise ConfigError(f"deephash eval with {', '.join(f'{n}=' for n in files)} also needs {', '.join(missing)}")
    if not files and (config.bits is not None or config.bit_order != "little"):
        raise ConfigError(
            f"bits= and bit_order= go with query= and database=; leave them out, as {given[0]}= has them in {MANIFEST}"
        )
    return "query" if files else given[0]


def _is_evaluation(settings: Mapping[str, Any]) -> bool:
    lists = all(
        isinstance(settings[name], list) and all(type(rank) is int and rank >= 1 for rank in settings[name])
        for name in ("ks", "map_at")
    )
    radius = settings["radius"]
    return lists and type(radius) is int and radius >= 0 and settings["zero_hits"] in list(scoring.ZERO_HITS)


def _settle(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {**settings, **{name: value for name, value in overrides.items() if value is not None}}
    return {name: chosen[name] for name in _SETTINGS}


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
    """Print the metrics as a table, to the last digit."""
    table = Table(title=escape(_title(metrics)), title_justify="left", show_header=False)
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

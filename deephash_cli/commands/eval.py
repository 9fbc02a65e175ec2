"""``deephash eval``: recompute every number from the codes on disk, or score third-party codes. It needs no torch."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from deephash_cli import runs
from deephash_cli.console import say, warn
from deephash_cli.errors import ConfigError
from deephash_cli.files import write_json
from deephash_cli.retrieval import external_codes as foreign
from deephash_cli.retrieval import scoring
from deephash_cli.retrieval.caveats import caveats
from deephash_cli.retrieval.codes_folder import MANIFEST
from deephash_cli.retrieval.metrics_table import show, show_classes
from deephash_cli.retrieval.scoring import SETTINGS, score
from deephash_cli.runs.outputs import settle

_FILES = ("query", "database", "query_labels", "database_labels")


def run(config: DictConfig) -> dict[str, Any]:
    """Run ``deephash eval``.

    Returns:
        The metrics, as they are written to ``config.output``.

    Raises:
        ConfigError: If there is nothing to score, or more than one of a run, a codes folder and files; or if the output
            would replace a file that must not be replaced.
        ArtifactError: If the run or its codes are incomplete or damaged.
        DataError: If the files do not hold codes and labels that belong together.
    """
    kind = _kind(config)
    overrides = {name: config[name] for name in SETTINGS}
    kept = _kept_bits(config)
    (output,) = settle(
        "eval",
        {"output=": config.output},
        {f"{name}=": config[name] for name in ("run", "codes", *_FILES)},
        config.overwrite,
        own=_metrics_of(config.run, overrides, kept),
    )
    if kind == "query":
        paths = [Path(config[name]) for name in _FILES]
        query, database, source = foreign.load(
            *paths,
            bits=config.bits,
            bit_order=config.bit_order,
            byte_type=config.byte_type,
            is_prefix=config.prefix,
        )
        settings = scoring.settle({**config.metrics, "map_at": []}, overrides)
        metrics = {**scoring.evaluate(query, database, **settings), "source": source}
    elif kind == "run":
        metrics = score(runs.codes_folder("eval", config.run, None), overrides, kept, with_features=True)
    else:
        metrics = score(Path(config.codes), overrides, kept, with_features=True)
    show(metrics)
    if config.per_class:
        show_classes(metrics)
    if metrics.get("ceiling", {}).get("map_features", 0) is None:
        say("map_features is not known: the features are not in the cache; a run that needs them computes them again")
    for sentence in caveats(metrics):
        warn(sentence)
    if output is not None:
        own = _metrics_of(config.run, overrides, kept)
        if own is not None and output == own.resolve():
            _write_again(Path(config.run), metrics)
        else:
            write_json(output, metrics)
        say(f"metrics: {config.output}")
    return metrics


def _write_again(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the metrics of a run into its folder as the training wrote them, and their digest into its record.

    Raises:
        ConfigError: If another process is writing to the run.
        ArtifactError: If the folder cannot be written to.
    """
    if "ceiling" in metrics:
        kept = {name: value for name, value in metrics["ceiling"].items() if name != "map_features"}
        metrics = {**metrics, "ceiling": kept}
    with contextlib.closing(runs.Run(folder)) as run:
        run.unseal(runs.METRICS)
        write_json(folder / runs.METRICS, metrics)
        run.seal()


def _kept_bits(config: DictConfig) -> int | None:
    """Return the number of first bits to evaluate, or None for all bits.

    Raises:
        ConfigError: If the number is missing.
    """
    if not config.prefix:
        return None
    if config.bits is None:
        raise ConfigError("prefix=true evaluates the first bits of longer codes: add their number, such as bits=32")
    return config.bits


def _metrics_of(run: str | None, overrides: Mapping[str, Any], kept: int | None) -> Path | None:
    """Return the file of a run that holds exactly what is computed here, which may therefore be written again."""
    changed = kept is not None or any(value is not None for value in overrides.values())
    return None if run is None or changed else Path(run) / runs.METRICS


def _kind(config: DictConfig) -> str:
    """Return what is to be scored: ``run``, ``codes``, or ``query`` for the four files."""
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
    given_for_arrays = (config.bits is not None and not config.prefix, config.bit_order != "little")
    if not files and (any(given_for_arrays) or config.byte_type != "uint8"):
        raise ConfigError(
            "bits=, bit_order= and byte_type= are for query= and database=; leave them out, "
            f"{given[0]}= has them in {MANIFEST}; to evaluate the first bits alone add prefix=true"
        )
    return "query" if files else given[0]

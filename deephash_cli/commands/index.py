"""``deephash index``: a faiss index of a run's codes in a file; what it finds and how fast, beside exact search.

What an index finds is compared by distance. Many items can lie equally far, and which of them are the ``k`` nearest is
then a matter of order, not of finding: each result counts that is no farther than the k-th of the exact search.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from deephash_cli.console import console, say
from deephash_cli.errors import ConfigError
from deephash_cli.files import write_json
from deephash_cli.retrieval import indexes, ranking
from deephash_cli.retrieval.codes_folder import Database, open_side
from deephash_cli.runs import codes_folder

ENDING = ".faiss"
_REPEATS = 3  # timed passes, of which the fastest counts
_WARM = 8  # queries before them


def run(config: DictConfig) -> dict[str, Any] | None:
    """Build an index, save it, and measure it if asked to.

    Returns:
        What was measured.
    """
    folder = codes_folder("index", config.run, config.codes)
    output = folder / f"{config.kind}{ENDING}" if config.output is None else Path(config.output)
    report = output.with_name(f"{output.name}.check.json") if config.check_output is None else Path(config.check_output)
    database = open_side(folder)
    _check_paths(output, report, config)
    asked = _queries(folder, database, config.queries, config.seed) if config.check else None
    settings: dict[str, Any] = OmegaConf.to_container(config[config.kind]) if config.kind in config else {}  # type: ignore[assignment]
    say(f"building {config.kind} of {database.n} codes of {database.bits} bits")
    start = time.perf_counter()
    built = indexes.build(config.kind, database.packed, database.bits, settings)
    seconds = time.perf_counter() - start
    record = indexes.save(built, output, database)
    size = record["bytes"]
    say(f"index: {output} ({size / 1e6:.1f} MB, built in {seconds:.1f} s)")
    if asked is None:
        return None
    queries, own = asked
    measured = {
        "kind": config.kind,
        "settings": built.settings,
        "bits": database.bits,
        "database": database.n,
        "queries": len(queries),
        "queries_from": "query side" if own is None else "database, each without itself",
        "threads": ranking.usable_threads(),
        "build_seconds": seconds,
        "bytes": size,
        "sha256": record["sha256"],
        **compare(built, indexes.Exact(database.packed, database.bits), queries, own, config.k, config.radius),
    }
    _show(measured)
    write_json(report, measured)
    say(f"measurements: {report}")
    return measured


def compare(
    index: indexes.Index,
    exact: indexes.Exact,
    queries: UInt8[np.ndarray, "q bytes"],
    own: Int64[np.ndarray, " q"] | None,
    k: int,
    radius: int,
) -> dict[str, Any]:
    """What an index finds and how fast, beside the exact search of the same codes.

    Args:
        index: The one to measure.
        exact: Of the same codes.
        queries: Codes to search for.
        own: For queries that are items of the database where each is, to be left out of what it finds.
        k: How many nearest ones.
        radius: The largest distance of the other search.

    Returns:
        ``nearest``: recall, the mean over queries of the part of the k results that is no farther than the k-th exact
        one, and queries a second. ``within``: the part of all items within the radius that was found, none if there are
        none, their number, and queries a second; nothing if the index has no such search.
    """
    wanted = k if own is None else k + 1

    def nearest(one: indexes.Index) -> tuple[np.ndarray, np.ndarray]:
        distances, positions = one.nearest(queries, wanted)
        return (distances, positions) if own is None else _without(own, distances, positions)

    def within(one: indexes.Index) -> np.ndarray:
        found = enumerate(one.within(queries, radius))
        return np.array([len(at) - (own is not None and own[i] in at) for i, (_, at) in found])

    (distances, positions), (exact_distances, _) = nearest(index), nearest(exact)
    near_enough = (positions != indexes.MISSING) & (distances <= exact_distances[:, -1:])
    result: dict[str, Any] = {
        "nearest": {"k": near_enough.shape[1], "recall": float(near_enough.mean())}
        | _rates(index, exact, len(queries), lambda one, rows: one.nearest(queries[rows], wanted)),
        "within": None,
    }
    if indexes.has_radius(index.kind):
        items = int(within(exact).sum())
        result["within"] = {
            "radius": radius,
            "recall": int(within(index).sum()) / items if items else None,
            "items": items,
        } | _rates(index, exact, len(queries), lambda one, rows: [0 for _ in one.within(queries[rows], radius)])
    return result


def _check_paths(output: Path, report: Path, config: DictConfig) -> None:
    """Find out before any work what could not be written, or would overwrite something else."""
    if output.suffix != ENDING:
        raise ConfigError(f"output must be a file that ends in {ENDING}, got {output}")
    if report.suffix != ".json":
        raise ConfigError(f"check_output must be a file that ends in .json, got {report}")
    if config.check_output is not None and not config.check:
        raise ConfigError("check_output= goes with --check: add that, or leave out check_output=")
    for name, path in (("output", output), ("check_output", report)):
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            problem = "cannot be written to" if path.parent.is_dir() else "does not exist"
            raise ConfigError(f"{name}={path} is in a folder that {problem}: choose another one, output=<file{ENDING}>")


def _queries(
    folder: Path, database: Database, most: int, seed: int
) -> tuple[UInt8[np.ndarray, "q bytes"], Int64[np.ndarray, " q"] | None]:
    """Codes to search for, and where they are if they are of the database: those of a query side if there is one."""
    rng = np.random.default_rng(seed)
    side = open_side(folder, "query") if "query" in database.manifest else None
    source = database if side is None or not side.n else side
    if source is database and database.n < 2:
        raise ConfigError("--check needs queries, or two codes to search for each other, got a database of one code")
    rows = np.sort(rng.choice(source.n, min(most, source.n), replace=False))
    return np.asarray(source.packed[rows]), rows if source is database else None


def _without(
    own: Int64[np.ndarray, " q"], distances: Int64[np.ndarray, "q k"], positions: Int64[np.ndarray, "q k"]
) -> tuple[np.ndarray, np.ndarray]:
    """Results less the query itself; one that did not find itself loses its last."""
    order = np.argsort(positions == own[:, None], axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(positions, order, axis=1)


def _rates(
    index: indexes.Index, exact: indexes.Exact, queries: int, search: Callable[[indexes.Index, slice], object]
) -> dict[str, float]:
    """Queries a second, all of them at once, of both in turn."""
    best: dict[str, float] = {}
    for repeat in range(_REPEATS + 1):
        for name, one in (("queries_per_second", index), ("exact_queries_per_second", exact)):
            start = time.perf_counter()
            search(one, slice(_WARM if repeat == 0 else queries))
            if repeat:
                best[name] = max(best.get(name, 0.0), queries / (time.perf_counter() - start))
    return best


def _show(measured: Mapping[str, Any]) -> None:
    title = (
        f"{measured['kind']}, {measured['database']} codes of {measured['bits']} bits, {measured['queries']} queries"
    )
    table = Table("", measured["kind"], "exact", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    nearest, within = measured["nearest"], measured["within"]
    for name, part in (
        (f"the {nearest['k']} nearest", nearest),
        (f"within {within['radius']}" if within else "", within),
    ):
        if part:
            recall = "nothing is there" if part["recall"] is None else f"{part['recall']:.4f}"
            table.add_row(f"{name}: recall", recall, "1.0000")
            rates = (f"{part[key]:,.0f}" for key in ("queries_per_second", "exact_queries_per_second"))
            table.add_row(f"{name}: queries/s", *rates)
    size = measured["database"] * ((measured["bits"] + 7) // 8)
    table.add_row("MB", f"{measured['bytes'] / 1e6:.1f}", f"{size / 1e6:.1f}")
    table.add_row("seconds to build", f"{measured['build_seconds']:.1f}", "0")
    console.print(table)
    threads = "thread" if measured["threads"] == 1 else "threads"
    say(f"queries: {measured['queries_from']}; {measured['threads']} {threads}")
    say("recall counts what is as near as what the exact search found, whichever of the equally near it is")
    if not within:
        say(f"{measured['kind']} has no search within a radius")

"""``deephash index``: build a faiss index of codes in a file, and compare its recall and speed with exact search.

Results are compared by distance. Many items can be equally far, and then their order alone decides which of them are
among the ``k`` nearest. Therefore each result counts that is no farther than the k-th result of exact search. With
rescoring, scores take the place of distances.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from deephash_cli.console import say, show, warn
from deephash_cli.errors import ConfigError
from deephash_cli.files import is_device, write_json
from deephash_cli.retrieval import indexes, ranking, rescoring, similarity
from deephash_cli.retrieval.codes_folder import Database, open_continuous, open_side, read_manifest
from deephash_cli.retrieval.threads import usable_threads
from deephash_cli.runs import codes_folder
from deephash_cli.runs.outputs import settle, unused

ENDING = ".faiss"
_REPEATS = 3  # number of timed passes; the fastest counts
_WARM = 8  # number of untimed queries before them


@dataclass(frozen=True, eq=False)
class _Queries:
    """Queries of a check.

    Attributes:
        packed: Packed codes, one row per query.
        own: Position of each query in the database, to leave it out of its own results; None if the queries are not
            items of the database.
        labels: Multi-hot labels, with no columns if there are no labels.
        u: Continuous codes; None if nothing is rescored.
    """

    packed: UInt8[np.ndarray, "q bytes"]
    own: Int64[np.ndarray, " q"] | None
    labels: UInt8[np.ndarray, "q classes"]
    u: Float[np.ndarray, "q bits"] | None


def run(config: DictConfig) -> dict[str, Any] | None:
    """Run ``deephash index``: build an index, save it, and measure it if ``config.check`` is set.

    Returns:
        The measurements, as they are written to ``check_output``; None if nothing was measured.

    Raises:
        ConfigError: If a file cannot be written or must not be replaced, or there are no queries for the check.
    """
    if config.rescore is not None and not config.check:
        raise ConfigError("rescore= needs --check, which measures it: add --check, or leave out rescore=")
    shortlist = rescoring.settle(config.rescore, config.shortlist, config.k)
    folder = codes_folder("index", config.run, config.codes)
    output = unused(folder / f"{config.kind}{ENDING}") if config.output is None else Path(config.output)
    report = output.with_name(f"{output.name}.check.json") if config.check_output is None else Path(config.check_output)
    read_manifest(folder, ("database",))
    report_file = _check_paths(output, report, config)
    database = open_side(folder)
    asked = _queries(folder, database, config.queries, config.seed, shortlist is not None) if config.check else None
    if config.check and config.k > database.n:
        warn(f"k={config.k} is more than the {database.n} codes of the database: any index finds all of them")
    settings: dict[str, Any] = OmegaConf.to_container(config[config.kind]) if config.kind in config else {}  # type: ignore[assignment]
    say(f"building {config.kind} from {database.n} codes of {database.bits} bits")
    start = time.perf_counter()
    built = indexes.build(config.kind, database.packed, database.bits, settings)
    seconds = time.perf_counter() - start
    record = indexes.save(built, output, database)
    size = record["bytes"]
    say(f"index: {output} ({size / 1e6:.1f} MB, built in {seconds:.1f} s)")
    if asked is None or report_file is None:
        return None
    exact = indexes.Exact(database.packed, database.bits)
    measured = {
        "kind": config.kind,
        "settings": built.settings,
        "bits": database.bits,
        "database": database.n,
        "queries": len(asked.packed),
        "queries_from": "query side" if asked.own is None else "database, each left out of its own results",
        "threads": usable_threads(),
        "build_seconds": seconds,
        "bytes": size,
        "sha256": record["sha256"],
        **compare(built, exact, asked.packed, asked.own, config.k, config.radius),
        "rescored": None if shortlist is None else _compare_rescored(built, database, asked, config.k, shortlist),
    }
    _show(measured)
    write_json(report_file, measured)
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
    """Measure the recall and speed of an index against exact search in the same codes.

    Args:
        index: The index to measure.
        exact: Exact search in the same codes.
        queries: Packed codes to search for, one row per query.
        own: Position of each query in the database, to leave it out of its own results; None if the queries are not
            items of the database.
        k: Number of nearest items to search for.
        radius: Largest Hamming distance, in bits, of the search within a radius.

    Returns:
        ``nearest``: recall, which is the mean over queries of the share of the k results that are no farther than the
        k-th exact result, and queries per second. ``within``: the share of all items within the radius that was found
        (None if there are no such items), the number of these items, and queries per second; None if the index has no
        search within a radius.
    """
    wanted = k if own is None else k + 1

    def nearest(one: indexes.Index) -> tuple[np.ndarray, np.ndarray]:
        distances, positions = one.nearest(queries, wanted)
        return (distances, positions) if own is None else indexes.without(own, distances, positions)

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


def _compare_rescored(
    index: indexes.Index, database: Database, asked: _Queries, k: int, shortlist: int
) -> dict[str, Any]:
    """Measure what rescoring makes of the results of an index, against exact asymmetric search.

    Args:
        index: The index to measure.
        database: Database that the index was built from.
        asked: Queries with their continuous codes.
        k: Number of items to search for.
        shortlist: Number of items that the index finds, of which the ``k`` with the largest scores are kept.

    Returns:
        ``k`` and ``shortlist``; ``recall``, the mean over queries of the share of the k results whose score is at least
        the k-th score of exact asymmetric search; ``precision_at_<k>`` and ``map_at_<k>_stable`` of the k results in
        their order, or None if there are no labels. These three have the values ``by_distance``, for the k nearest
        items that the index finds, ``rescored``, and ``exact``, for exact asymmetric search. Then queries per second
        with rescoring and with exact asymmetric search.
    """
    packed, u, own = asked.packed, asked.u, asked.own
    assert u is not None
    k = min(k, database.n - int(own is not None))

    def rescored(rows: slice, length: int) -> rescoring.Ranked:
        ours = None if own is None else own[rows]
        return rescoring.nearest(index, database.packed, packed[rows], u[rows], k, length, ours)

    everything = slice(len(packed))
    found = {
        "by_distance": _nearest(index, asked, k),
        "rescored": rescored(everything, shortlist)[2],
        "exact": rescored(everything, database.n)[2],
    }
    scores = {name: ranking.rescore(u, database.packed, np.zeros_like(at), at, k)[0] for name, at in found.items()}
    result: dict[str, Any] = {"k": k, "shortlist": shortlist}
    result["recall"] = {name: float((some >= scores["exact"][:, -1:]).mean()) for name, some in scores.items()}
    similar = similarity.of_manifest(database.manifest)
    relevant = {name: _relevant(at, asked.labels, database.labels, similar) for name, at in found.items()}
    for metric, of in ((f"precision_at_{k}", np.mean), (f"map_at_{k}_stable", _mean_average_precision)):
        has_labels = asked.labels.shape[1] > 0
        result[metric] = {name: float(of(hits)) for name, hits in relevant.items()} if has_labels else None
    exact = indexes.Exact(database.packed, database.bits)
    return result | _rates(
        index, exact, len(packed), lambda one, rows: rescored(rows, database.n if one is exact else shortlist)
    )


def _nearest(index: indexes.Index, asked: _Queries, k: int) -> Int64[np.ndarray, "q k"]:
    """Return the positions of the ``k`` nearest items that an index finds."""
    if asked.own is None:
        return index.nearest(asked.packed, k)[1]
    return indexes.without(asked.own, *index.nearest(asked.packed, k + 1))[1]


def _relevant(
    positions: Int64[np.ndarray, "q k"],
    queries: UInt8[np.ndarray, "q classes"],
    database: UInt8[np.ndarray, "n classes"],
    similar: str,
) -> Bool[np.ndarray, "q k"]:
    """Return whether each result is similar to its query. Missing results are not."""
    pairs = zip(positions, queries, strict=True)
    found = np.stack([similarity.are_similar(database[at], labels, similar) for at, labels in pairs])
    return found & (positions != indexes.MISSING)


def _mean_average_precision(relevant: Bool[np.ndarray, "q k"]) -> float:
    """Return the mean average precision of results in their order, divided by the relevant ones among them."""
    hits = np.cumsum(relevant, axis=1)
    precisions = hits / np.arange(1, relevant.shape[1] + 1)
    return float(((precisions * relevant).sum(axis=1) / np.maximum(hits[:, -1], 1)).mean())


def _check_paths(output: Path, report: Path, config: DictConfig) -> Path | None:
    """Refuse, before any work, files that cannot be written or that must not be replaced.

    Returns:
        The file to write the report to; None if there is no check.
    """
    if output.suffix != ENDING:
        raise ConfigError(f"output must be a file that ends in {ENDING}, got {output}")
    if report.suffix != ".json" and not is_device(report):
        raise ConfigError(f"check_output must be a file that ends in .json, got {report}")
    if config.check_output is not None and not config.check:
        raise ConfigError("check_output= needs --check: add --check, or leave out check_output=")
    written = {
        "output=": output,
        "the description of the index, ": indexes.record_path(output),
        "check_output=": report if config.check else None,
    }
    return settle("index", written, {"run=": config.run, "codes=": config.codes}, config.overwrite)[-1]


def _queries(folder: Path, database: Database, most: int, seed: int, continuous: bool) -> _Queries:
    """Return the queries of the check: those of the query side, or if there is none, items of the database.

    Args:
        folder: Codes folder.
        database: Its database.
        most: Number of queries, at most.
        seed: Random seed for choosing them.
        continuous: Whether their continuous codes are needed.

    Raises:
        ConfigError: If there is no query side, and the database has fewer than two codes; or if continuous codes are
            needed, and the folder has none.
    """
    rng = np.random.default_rng(seed)
    side = open_side(folder, "query") if "query" in database.manifest else None
    source = database if side is None or not side.n else side
    if source is database and database.n < 2:
        raise ConfigError("--check needs queries, or a database of two codes or more, got a database of one code")
    rows = np.sort(rng.choice(source.n, min(most, source.n), replace=False))
    name = "database" if source is database else "query"
    u = open_continuous(folder, name, source.manifest) if continuous else None
    if continuous and u is None:
        raise ConfigError(
            f"rescore= needs the continuous codes of the queries, but {folder} has no {name}_u.npy: give a run that "
            "keeps them, or leave out rescore="
        )
    return _Queries(
        np.asarray(source.packed[rows]),
        rows if source is database else None,
        np.asarray(source.labels[rows]),
        None if u is None else np.asarray(u[rows]),
    )


def _rates(
    index: indexes.Index, exact: indexes.Exact, queries: int, search: Callable[[indexes.Index, slice], object]
) -> dict[str, float]:
    """Return queries per second of the index and of exact search, timed in turn, with all queries in one call."""
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
    table = Table("", measured["kind"], "exact")
    for column in table.columns[1:]:
        column.justify = "right"
    nearest, within = measured["nearest"], measured["within"]
    for name, part in (
        (f"the {nearest['k']} nearest", nearest),
        (f"within {within['radius']}" if within else "", within),
    ):
        if part:
            recall = "no such items" if part["recall"] is None else f"{part['recall']:.4f}"
            table.add_row(f"{name}: recall", recall, "1.0000")
            rates = (f"{part[key]:,.0f}" for key in ("queries_per_second", "exact_queries_per_second"))
            table.add_row(f"{name}: queries/s", *rates)
    size = measured["database"] * ((measured["bits"] + 7) // 8)
    table.add_row("MB", f"{measured['bytes'] / 1e6:.1f}", f"{size / 1e6:.1f}")
    table.add_row("seconds to build", f"{measured['build_seconds']:.1f}", "0")
    show(table, title)
    threads = "thread" if measured["threads"] == 1 else "threads"
    say(f"queries: {measured['queries_from']}; {measured['threads']} {threads}")
    say("recall counts each result as near as the results of exact search; among equally near items, any will do")
    if measured["rescored"]:
        _show_rescored(measured["rescored"], measured["nearest"]["queries_per_second"])
    if not within:
        say(f"{measured['kind']} has no search within a radius")


def _show_rescored(rescored: Mapping[str, Any], rate_by_distance: float) -> None:
    names = ("by_distance", "rescored", "exact")
    table = Table("", "by distance", "rescored", "exact asymmetric")
    for column in table.columns[1:]:
        column.justify = "right"
    k = rescored["k"]
    for metric in ("recall", f"precision_at_{k}", f"map_at_{k}_stable"):
        if rescored[metric] is not None:
            table.add_row(metric, *(f"{rescored[metric][name]:.4f}" for name in names))
    rates = (rate_by_distance, rescored["queries_per_second"], rescored["exact_queries_per_second"])
    table.add_row("queries/s", *(f"{rate:,.0f}" for rate in rates))
    show(table, f"rescore=asymmetric, the {k} best of a shortlist of {rescored['shortlist']}")
    say("this recall counts each result whose score is at least the last score of exact asymmetric search")

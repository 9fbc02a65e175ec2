"""Compute all retrieval metrics of queries and a database, as one dictionary that can be written as JSON."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from deephash_cli.console import warn
from deephash_cli.errors import ArtifactError, ConfigError, DataError
from deephash_cli.retrieval import asymmetric, ceiling, metrics, ranking, scoring, seen_classes, similarity
from deephash_cli.retrieval.codes import RANK_LIMIT, CodeSet, prefix, require_comparable
from deephash_cli.retrieval.codes_folder import MANIFEST, load_codes, require_entries

# Treatments of a query without a relevant item in the database.
ZERO_HITS = {
    "zero": "a query without a relevant item in the database scores 0 and is counted",
    "skip": "a query without a relevant item in the database is left out of every mean",
}
POLICIES = {
    "ties": (
        "every metric is an exact expectation over all orders of equally distant items, except: _stable keeps them in "
        "database order; map_best and map_worst put relevant ones first and last"
    ),
    "map_at": (
        "map_at_R and map_at_R_stable divide by the relevant items among the first R, map_at_R_min by R or, if they "
        "are fewer, all relevant items, map_at_R_relevant by all of them; a database smaller than R is ranked whole"
    ),
    "within": (
        "an empty Hamming ball has precision, recall and average precision 0; map_within_r divides by the relevant "
        "items in the ball"
    ),
    "graded": (
        "ndcg_at_k: gain 2^s - 1 for s shared labels, discount 1/log2(1 + rank), divided by the best order of the "
        "database; acg_at_k: mean s among the first k"
    ),
    "wap": (
        "wap: mean over the ranks of the items that share a label of acg_at_k at this rank; wap_at_R divides by the "
        "number of these items among the first R"
    ),
    "k_beyond_database": "precision_at_k and acg_at_k divide by k even where the database is smaller than k",
    "self_match": "a database item with the id of the query is left out of that query's ranking",
    "confidence": "percentile bootstrap over queries, seed 0",
}
# Policies of numbers that not all runs have; they decide no other number
BESIDE = ("asymmetric", "ceiling", "wap", "by_classes")
WITHOUT_LABELS = "there are no labels, so nothing is known to be relevant: only the codes themselves are described"
FIRST = ("map", "map_stable", "map_best", "map_worst", "map_asymmetric")
BY_K = ("precision_at_k", "recall_at_k", "ndcg_at_k", "acg_at_k", "precision_at_k_asymmetric")
SIDES = ("relevant", "other")  # kinds of pairs of a query and a database item
LEVEL = 0.95
RESAMPLES = 1000
_HUGE = 1e300  # JSON can hold whole numbers that are larger than any float
HARDEST = 10
_NAMES = 2**14  # names that are compared at a time
CLASSES = 1000  # largest number of classes for which there is a table by class

SETTINGS = ("ks", "map_at", "radius", "zero_hits", "similar")  # settings of an evaluation
_DEFAULTS = {"zero_hits": "zero", "similar": similarity.ONE}  # what manifests of earlier versions mean that lack them
_NEEDED = (
    *(f"provenance.{name}" for name in ("method", "module", "model", "dataset", "split.name", "split.sha256", "seed")),
    *(f"evaluation.{name}" for name in SETTINGS if name not in _DEFAULTS),
)  # entries that a manifest must have for an evaluation


def evaluate(
    query: CodeSet,
    database: CodeSet,
    ks: Sequence[int],
    map_at: Sequence[int],
    radius: int,
    zero_hits: str = "zero",
    similar: str = similarity.ONE,
    threads: int | None = None,
    features: ceiling.Vectors | None = None,
) -> dict[str, Any]:
    """Rank the database for every query and average every metric over all queries.

    If the labels have no classes, the images count as not labelled. The result then has only the counts, the
    statistics of the codes alone, and a policy ``labels`` that says so.

    The same codes give the same numbers to the last digit, with any number of threads.

    Args:
        query: Codes of the queries.
        database: Codes of the database.
        ks: Cut-offs for precision, recall, NDCG and ACG. Order and repetitions do not matter.
        map_at: Ranks R for ``map_at_<R>``.
        radius: Radius of the Hamming ball, in bits, for the metrics ``_within_<radius>`` and ``empty_ball_rate``.
        zero_hits: Treatment of queries without a relevant item in the database, a key of ``ZERO_HITS``.
        similar: What makes an item relevant to a query, a key of ``similarity.SIMILAR``. NDCG, ACG and WAP, which are
            graded, count shared labels in any case.
        threads: Number of threads, as for `ranking.count`; ``None`` for its default.
        features: Features that the continuous codes were made from, for ``map_features``; ``None`` to leave it out.

    Raises:
        ArtifactError: If the two sides differ in code length, kind of labels or number of classes.
        ConfigError: If a rank is below 1, if the radius is negative, or if ``zero_hits`` or ``similar`` is unknown.
        DataError: If a side is empty, or if no query has a relevant item with ``zero_hits="skip"``.
    """
    _require_measurable(query, database, ks, map_at, radius, {"zero_hits": zero_hits, "similar": similar})
    if query.labels.shape[1:] == (0,):
        return {**_statistics(database), **_sizes(query, database), "policies": {"labels": WITHOUT_LABELS}}
    ks, map_at = sorted(set(ks)), sorted(set(map_at))
    curve = metrics.curve_ranks(database.n)

    own, labels = self_matches(query, database), (query.labels, database.labels)
    query, database = _related(query, database, similar)
    counts, places = _counts(query, database, labels, own, map_at, threads)
    about_codes = {**_statistics(database), **_sizes(query, database)}  # while threads count
    values = {name: value[places] for name, value in _per_query(counts, ks, map_at, radius, curve).items()}
    if query.u is not None:
        values |= asymmetric.per_query(query, database, own, ks, map_at, threads)
    relevant, distances = values.pop("relevant"), {side: values.pop(f"{side}_by_distance") for side in SIDES}
    counted = relevant > 0 if zero_hits == "skip" else np.ones(query.n, np.bool_)
    if not counted.any():
        raise DataError("no query has a relevant item in the database: zero_hits=skip leaves nothing to average")
    # A metric on its own and the same metric on a curve must be equal to the last digit: both are summed along rows.
    means = {name: np.ascontiguousarray(value[counted].T).mean(axis=-1) for name, value in values.items()}

    def by_k(name: str) -> dict[str, float]:
        return {str(k): float(mean) for k, mean in zip(ks, means[name], strict=True)}

    maps = [name for name in ("map", *(f"map_at_{r}" for r in map_at), "map_asymmetric") if name in means]
    single = [name for name, mean in means.items() if not mean.ndim]
    found, rules = {}, {"asymmetric": asymmetric.POLICY} if query.u is not None else {}
    if query.u is not None and database.u is not None:
        rows = ceiling.sample(np.flatnonzero(counted), database.n)
        rules["ceiling"] = ceiling.POLICY
        found["ceiling"] = ceiling.measure(query, database, rows, own[rows], values["map"][rows], features, threads)
    return {
        **{name: float(means[name]) for name in sorted(single, key=_place)},
        "confidence": _confidence({name: values[name][counted] for name in maps}),
        **{name: by_k(name) for name in BY_K if name in means},
        "pr_by_radius": {"radius": list(range(query.bits + 1)), **_curve(means, "by_radius")},
        "pr_by_rank": {"rank": curve, **_curve(means, "by_rank")},
        "distances": {side: by_distance[counted].sum(axis=0).tolist() for side, by_distance in distances.items()},
        "per_class": _per_class(values["map"][counted], labels[0][counted]),
        "hardest_queries": _hardest(query, values["map"], relevant),
        **about_codes,
        "queries_without_relevant": int((relevant == 0).sum()),
        "k_beyond_database": [int(k) for k in ks if k > database.n],
        **found,
        "policies": {**POLICIES, "zero_hits": ZERO_HITS[zero_hits], "similar": similarity.SIMILAR[similar], **rules},
    }


def _different(
    packed: UInt8[np.ndarray, "q bytes"], labels: ranking.Labels, own: Int64[np.ndarray, " q"]
) -> tuple[Int64[np.ndarray, " d"], Int64[np.ndarray, " q"]]:
    """Find the queries that differ in code, labels or position in the database; others have the values of one of these.

    Learned codes repeat: of a thousand queries a few hundred may differ.

    Returns:
        The row of the first of each group of equal queries, and the place of each query's group among these.
    """
    known = np.packbits(labels, axis=1) if labels.ndim == 2 else labels.astype(np.int64)[:, None].view(np.uint8)
    keys = np.concatenate([packed, known, own.astype(np.int64)[:, None].view(np.uint8)], axis=1)
    _, rows, places = np.unique(keys.view(f"V{keys.shape[1]}").ravel(), return_index=True, return_inverse=True)
    order = np.argsort(rows)  # in the order of the queries, so that none are moved if all differ
    return rows[order], np.argsort(order)[places]


def _related(query: CodeSet, database: CodeSet, similar: str) -> tuple[CodeSet, CodeSet]:
    """Return both sides with labels such that an item shares a label with a query exactly if the two are similar."""
    of_query, of_database = similarity.as_shared(query.labels, database.labels, similar)
    if of_query is query.labels:
        return query, database
    return replace(query, labels=of_query), replace(database, labels=of_database)


def _curve(means: Mapping[str, Any], along: str) -> dict[str, list[float]]:
    """Return precision and recall along the radius or along the rank."""
    return {name: means[f"{name}_{along}"].tolist() for name in ("precision", "recall")}


def _confidence(values: Mapping[str, Float64[np.ndarray, " q"]]) -> dict[str, Any]:
    """Return the interval of the mean of each metric, from its values for the queries."""
    low, high = metrics.bootstrap_interval(np.stack([*values.values()], axis=1), LEVEL, RESAMPLES, seed=0)
    intervals = {name: [float(low[i]), float(high[i])] for i, name in enumerate(values)}
    return {"level": LEVEL, "resamples": RESAMPLES, **intervals}


def _place(name: str) -> int:
    """Return the place of a number among those of ``metrics.json``; those without a place of their own follow."""
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _require_measurable(
    query: CodeSet,
    database: CodeSet,
    ks: Sequence[int],
    map_at: Sequence[int],
    radius: int,
    words: Mapping[str, str],
) -> None:
    """Refuse what `evaluate` cannot measure; it names the errors."""
    require_comparable(query, database)
    for name, side in (("query", query), ("database", database)):
        if not side.n:
            raise DataError(f"evaluation needs at least one image on each side, but the {name} set is empty")
    for name, ranks in (("k", ks), ("the R of map_at", map_at)):
        for rank in ranks:
            if not 1 <= rank < RANK_LIMIT:
                raise ConfigError(f"{name} must be between 1 and the database size {database.n}, got {rank}")
    if radius < 0:
        raise ConfigError(f"radius must be between 0 and the code length {query.bits}, got {radius}")
    for (name, word), known in zip(words.items(), (ZERO_HITS, similarity.SIMILAR), strict=True):
        if word not in known:
            raise ConfigError(f"{name} must be {' or '.join(known)}, got {word}")


def _hardest(query: CodeSet, average_precisions: np.ndarray, relevant: np.ndarray) -> list[dict[str, Any]]:
    """Return the queries of least average precision among those that have a relevant item, hardest first."""
    rows = metrics.hardest(np.where(relevant > 0, average_precisions, np.inf), min(HARDEST, int((relevant > 0).sum())))
    return [
        {
            "query": int(row) if query.ids is None else query.ids[int(row)],
            "average_precision": float(average_precisions[row]),
        }
        for row in rows
    ]


def numbers(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    """Return every single number of a ``metrics.json`` by its own name, such as ``precision_at_100``.

    The file may have been edited, so values that are missing, not finite or of another type are left out.
    """
    found = dict(metrics)
    for name in BY_K:
        found |= {name.replace("_k", f"_{k}", 1): value for k, value in _inside(metrics, name).items()}
    for name in ("bit_balance", "bit_correlation"):
        found |= {f"{name}_{part}": value for part, value in _inside(metrics, name).items()}
    for name, bounds in _inside(metrics, "confidence").items():
        if isinstance(bounds, list) and len(bounds) == 2:
            found |= {f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    found |= {name: value for name, value in _inside(metrics, "ceiling").items() if name != "queries"}
    found["validation_map"] = _inside(metrics, "validation").get("map")
    return {name: value for name, value in found.items() if is_number(value)}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a JSON value is a finite number that a float can hold. Truth values do not count as numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE


def nested(metrics: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Return the metrics of each nested code length in a ``metrics.json``, shortest first.

    The file may have been edited, so what is not the metrics of a shorter code is left out.
    """
    found = {int(k): part for k, part in _inside(metrics, "nested").items() if k.isdecimal() and len(k) < 6}
    return {bits: found[bits] for bits in sorted(found) if bits > 0 and isinstance(found[bits], Mapping)}


def by_classes(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of queries of seen and of unseen classes in a ``metrics.json``, by protocol, if it has them.

    The file may have been edited, so what is not metrics of a protocol is left out.
    """
    parts = _inside(metrics, "by_classes")
    return {name: parts[name] for name in seen_classes.PROTOCOLS if isinstance(parts.get(name), Mapping)}


def named_parts(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return all metrics in a ``metrics.json``, each part under the form of the names that dashboards give its numbers.

    >>> list(named_parts({"nested": {"16": {}}, "by_classes": {"seen@all": {}}}))
    ['{}', 'seen@all/{}', '{}_16_bits']
    """
    found = {}
    for ending, whole in {"": metrics, **{f"_{bits}_bits": part for bits, part in nested(metrics).items()}}.items():
        found[f"{{}}{ending}"] = whole
        found |= {f"{name}/{{}}{ending}": part for name, part in by_classes(whole).items()}
    return found


def _inside(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = metrics.get(name)
    return value if isinstance(value, Mapping) else {}


def _statistics(database: CodeSet) -> dict[str, Any]:
    """Statistics of the codes alone, without labels."""
    ones = metrics.bit_balance(database.packed, database.bits)
    balance = np.abs(ones - 0.5)
    correlation = np.abs(metrics.bit_correlation(database.packed, database.bits))
    pairs = correlation[np.triu_indices(database.bits, k=1)]
    return {
        "bit_balance": {
            "mean_deviation": float(balance.mean()),
            "max_deviation": float(balance.max()),
            "ones": ones.tolist(),
        },
        "bit_correlation": {
            "mean_absolute": float(pairs.mean()) if pairs.size else 0.0,
            "max_absolute": float(pairs.max(initial=0)),
        },
        "unique_code_ratio": metrics.unique_ratio(database.packed),
    }


def _sizes(query: CodeSet, database: CodeSet) -> dict[str, int]:
    return {"queries": query.n, "database": database.n, "bits": query.bits}


def self_matches(query: CodeSet, database: CodeSet) -> Int64[np.ndarray, " q"]:
    """Return the position of each query's own id in the database, or -1 if the database does not have it."""
    found = np.full(query.n, -1)
    if query.ids is not None and database.ids is not None:
        rows = {name: row for row, name in enumerate(query.ids)}
        for start in range(0, len(database.ids), _NAMES):
            names = database.ids[start : start + _NAMES]
            if rows.keys().isdisjoint(names):  # several times faster than the loop, and usual
                continue
            for position, name in enumerate(names, start):
                if (row := rows.get(name)) is not None:
                    found[row] = position
    return found


def _per_class(average_precisions: np.ndarray, labels: np.ndarray) -> dict[str, list[Any]] | None:
    """Mean average precision and number of the queries of each class, in the order of class numbers.

    The mean is None for a class without queries. With more than ``CLASSES`` classes the result is None.
    """
    classes = labels.shape[1] if labels.ndim == 2 else 1 + int(labels.max(initial=-1))
    if classes > CLASSES:
        return None
    means, queries = metrics.mean_by_class(average_precisions, labels, classes)
    return {
        "map": [mean if n else None for mean, n in zip(means.tolist(), queries, strict=True)],
        "queries": queries.tolist(),
    }


def _counts(
    query: CodeSet,
    database: CodeSet,
    labels: tuple[ranking.Labels, ranking.Labels],
    own: Int64[np.ndarray, " q"],
    map_at: Sequence[int],
    threads: int | None,
) -> tuple[Iterator[ranking.Counts], Int64[np.ndarray, " q"]]:
    """Count the relevant items, and all items by shared labels, for the queries that differ, some of them at a time.

    Args:
        query: Queries, with labels that an item shares exactly if it is relevant.
        database: Database, with such labels.
        labels: The labels of the images of both sides; the same arrays if an item that shares one is relevant.
        own: Position in the database of the item that is the query itself, or -1, for each query.
        map_at: Cut-offs R.
        threads: Number of threads, as for `ranking.count`.

    Returns:
        The counts, and the place of each query's counts among them.
    """
    rows, places = _different(query.packed, labels[0], own)
    counts = ranking.count(
        query.packed[rows],
        database.packed,
        query.bits,
        query.labels[rows],
        database.labels,
        exclude=own[rows],
        cuts=map_at,
        threads=threads,
        graded=None if labels[0] is query.labels else (labels[0][rows], labels[1]),
    )
    return counts, places


def _per_query(
    counts: Iterable[ranking.Counts], ks: Sequence[int], map_at: Sequence[int], radius: int, curve: Sequence[int]
) -> dict[str, np.ndarray]:
    """Every metric for every query, as arrays (q,), (q, cut-offs) or (q, distances)."""
    parts = [_of_counts(part, ks, map_at, radius, curve) for part in ranking.joined(counts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_counts(
    counts: ranking.Counts, ks: Sequence[int], map_at: Sequence[int], radius: int, curve: Sequence[int]
) -> dict[str, np.ndarray]:
    """Every metric of some queries, as `_per_query` returns them."""
    ranks = [*ks, *curve]
    h = metrics.Histograms.of_shared(counts.shared)
    graded = h if counts.graded is counts.shared else metrics.Histograms.of_shared(counts.graded)
    precision, recall = metrics.precision_at(h, ranks), metrics.recall_at(h, ranks)
    stable = counts.precision_sums / np.maximum(counts.hits, 1)
    values = {
        "relevant": h.relevant.sum(axis=1),
        "relevant_by_distance": h.relevant,
        "other_by_distance": h.total - h.relevant,
        "map": metrics.average_precision(h),
        "map_stable": stable[:, -1],
        "map_best": metrics.average_precision_best(h),
        "map_worst": metrics.average_precision_worst(h),
    }
    for i, r in enumerate(map_at):
        values[f"map_at_{r}"] = metrics.average_precision_at(h, r)
        values[f"map_at_{r}_stable"] = stable[:, i]
        values[f"map_at_{r}_min"] = metrics.average_precision_at(h, r, "min")
        values[f"map_at_{r}_relevant"] = metrics.average_precision_at(h, r, "relevant")
    values["wap"] = metrics.wap(graded)
    values |= {f"wap_at_{r}": metrics.wap_at(graded, r) for r in map_at}
    return {
        **values,
        f"map_within_{radius}": metrics.average_precision_within(h, radius),
        f"precision_within_{radius}": metrics.precision_within(h, radius),
        f"recall_within_{radius}": metrics.recall_within(h, radius),
        "empty_ball_rate": metrics.empty_ball(h, radius),
        "precision_at_k": precision[:, : len(ks)],
        "recall_at_k": recall[:, : len(ks)],
        "ndcg_at_k": metrics.ndcg_at(graded, ks),
        "acg_at_k": metrics.acg_at(graded, ks),
        "precision_by_radius": metrics.precision_by_radius(h),
        "recall_by_radius": metrics.recall_by_radius(h),
        "precision_by_rank": precision[:, len(ks) :],
        "recall_by_rank": recall[:, len(ks) :],
    }


def score(
    folder: Path, overrides: Mapping[str, Any], bits: int | None = None, with_features: bool = False
) -> dict[str, Any]:
    """Compute the metrics of a codes folder, and add the provenance from its manifest.

    Args:
        folder: A codes folder.
        overrides: Values of ``ks``, ``map_at``, ``radius``, ``zero_hits`` and ``similar`` that replace those in the
            manifest. A value of ``None`` keeps that of the manifest.
        bits: Number of first bits to evaluate, as codes of this length; None evaluates all bits, and beside them each
            length that was trained to be a code by itself, under ``nested``. If classes were not trained on, each
            length has the metrics of seen and unseen classes under ``by_classes``.
        with_features: Whether to compute ``map_features``, which takes seconds, for codes that were made from features
            of a frozen backbone. It is None if these are no longer in the cache.

    Raises:
        ArtifactError: If the codes are damaged, or if the manifest lacks their provenance or evaluation settings.
        ConfigError: If an override is not valid, or if the codes are shorter than ``bits``.
        DataError: If a side is empty, or if no query has a relevant item with ``zero_hits="skip"``.
    """
    query, database, manifest = load_codes(folder)
    require_entries(folder, manifest, _NEEDED)
    settings = settle(manifest["evaluation"], overrides)
    lengths = manifest["evaluation"].get("nested", [])
    unseen = manifest["evaluation"].get("unseen", [])
    if unseen and max(unseen) >= query.labels.shape[1]:
        raise ArtifactError(
            f"{folder / MANIFEST} has the unseen class {max(unseen)}, but the labels have only {query.labels.shape[1]} "
            "classes: it was edited by hand"
        )

    def of_part(query: CodeSet, database: CodeSet) -> dict[str, Any]:
        try:
            return scoring.evaluate(query, database, **settings)
        except DataError:  # no query or item is of these classes, or nothing is relevant and zero_hits=skip
            return _sizes(query, database)

    def of(query: CodeSet, database: CodeSet, features: ceiling.Vectors | None = None) -> dict[str, Any]:
        found = scoring.evaluate(query, database, **settings, features=features)
        if not unseen:
            return found
        parts = seen_classes.by_classes(query, database, unseen, of_part)
        return {**found, "by_classes": parts, "policies": {**found["policies"], "by_classes": seen_classes.POLICY}}

    def of_first(kept: int) -> dict[str, Any]:
        return of(prefix(query, kept), prefix(database, kept))

    if bits is not None:
        metrics = {**of_first(bits), "prefix_of": query.bits}
        if bits not in (*lengths, query.bits):
            warn(
                f"the first {bits} of the {query.bits} bits were not trained to be a code by themselves: only nested "
                "lengths are"
            )
    else:
        features = ceiling.cached_features(folder, manifest) if with_features else None
        metrics = of(query, database, features)
        if with_features and "ceiling" in metrics and "features" in manifest["provenance"]:
            metrics["ceiling"].setdefault("map_features", None)
        if lengths:
            metrics["nested"] = {str(length): of_first(length) for length in lengths}
    if taken := metrics.keys() & manifest["provenance"].keys():
        raise ArtifactError(
            f"{folder / MANIFEST} must give only the origin of the codes under provenance, got metrics: "
            f"{', '.join(sorted(taken))}; it was edited by hand"
        )
    return {**metrics, **manifest["provenance"]}


def settle(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an evaluation, replaced by the overrides that are not None."""
    chosen = {**_DEFAULTS, **settings, **{name: value for name, value in overrides.items() if value is not None}}
    return {name: chosen[name] for name in SETTINGS}

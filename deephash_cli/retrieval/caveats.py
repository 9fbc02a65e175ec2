"""Find out what a reader of the metrics must know before believing them, and say each in one sentence."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deephash_cli.retrieval import scoring, similarity

# A mean of n values between 0 and 1 has a standard error of at most 0.5 / sqrt(n). With fewer than 100 queries the
# first decimal of a mAP is uncertain: 1.96 standard errors can be more than 0.1.
FEW_QUERIES = 100


def caveats(metrics: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each reason why some of the metrics mean less than they seem to.

    Args:
        metrics: Metrics as `scoring.evaluate` returns them.

    >>> caveats({"queries": 50, "database": 8, "bits": 1, "unique_code_ratio": 1 / 8, "bit_balance": {"ones": [1.0]}})
    ['all 8 database items have the same code: the codes have collapsed, and no search can tell the items apart']
    """
    # A bit that tells nothing apart is named once, among all bits
    parts = {bits: {**part, "bit_balance": {"ones": []}} for bits, part in scoring.nested(metrics).items()}
    shorter = [f"{bits} bits: {said}" for bits, part in parts.items() for said in _of_codes(part)]
    parts = scoring.by_classes(metrics)
    by_classes = [f"{name}: {said}" for name, part in parts.items() for said in _of_labels(part)]
    return [*_of_codes(metrics), *shorter, *_of_labels(metrics), *by_classes, *_of_sizes(metrics)]


def _of_codes(metrics: Mapping[str, Any]) -> list[str]:
    database, bits = metrics["database"], metrics["bits"]
    different = round(metrics["unique_code_ratio"] * database)
    if different == 1 and database > 1:
        return [
            f"all {database} database items have the same code: the codes have collapsed, and no search can tell the "
            "items apart"
        ]
    found = []
    classes = sum(queries > 0 for queries in (metrics.get("per_class") or {}).get("queries", ()))
    if different < classes:
        # With a class for each code there would be one code too few: at least two classes share all of their codes.
        cause = f"{bits} bits allow no more than {2**bits}: use more bits" if 2**bits < classes else "they may collapse"
        found.append(
            f"the {database} database items have only {different} different codes for {classes} classes, too few to "
            f"tell the classes apart ({cause})"
        )
    elif not classes and different <= min(bits, database - 1):
        # The differences of m codes span at most m - 1 dimensions, so m codes of m bits or more repeat themselves.
        found.append(
            f"the {database} database items have only {different} different codes of {bits} bits, so the bits repeat "
            "one another: the codes may have collapsed"
        )
    ones = metrics["bit_balance"]["ones"]
    constant = [bit for bit, share in enumerate(ones) if share in (0, 1)]
    if constant and database > 1:
        found.append(
            f"{len(constant)} of {bits} bits are the same in all database items and tell nothing apart: bit "
            f"{_some(constant)}"
        )
    return found


def _of_labels(metrics: Mapping[str, Any]) -> list[str]:
    pairs = {side: sum(counts) for side, counts in metrics.get("distances", {}).items()}
    if not pairs:
        return []
    agree = similarity.of_policies(metrics["policies"]) == similarity.ALL
    shares = "has the same labels as" if agree else "shares a label with"
    if not pairs["other"]:
        return [
            f"every database item {shares} every query, as in data of a single class: precision and mAP are 1 for any "
            "codes"
        ]
    if not pairs["relevant"]:
        return [f"no database item {shares} any query: every score is 0 for any codes"]
    return []


def _of_sizes(metrics: Mapping[str, Any]) -> list[str]:
    if "map" not in metrics:
        return []
    found = []
    queries, database = metrics["queries"], metrics["database"]
    if queries < FEW_QUERIES:
        low, high = metrics["confidence"]["map"]
        found.append(
            f"every metric is an estimate from only {queries} {'query' if queries == 1 else 'queries'}"
            + (f": the 95% interval of the mAP is {high - low:.2f} wide" if queries > 1 else "")
        )
    if beyond := metrics["k_beyond_database"]:
        found.append(
            f"the database has only {database} items: at k = {_some(beyond)} precision and ACG divide by k and cannot "
            f"reach 1, and recall covers the whole ranking"
        )
    ranks = sorted(int(match[1]) for name in metrics if (match := re.fullmatch(r"map_at_(\d+)", name)))
    if beyond := [rank for rank in ranks if rank > database]:
        found.append(
            f"the database has only {database} items: map_at_{_some(beyond)} {'are' if len(beyond) > 1 else 'is'} the "
            "mAP of the whole ranking"
        )
    return found


def _some(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers[:5]]
    return ", ".join(shown) + (f", ... ({len(numbers)} in all)" if len(numbers) > 5 else "")

"""Evaluate queries of classes that were trained on, and of classes that were not, each on two databases."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deephash_cli.retrieval.codes import CodeSet, some

PROTOCOLS = {
    "seen@seen": "queries of seen classes search the items of seen classes",
    "seen@all": "queries of seen classes search the whole database",
    "unseen@unseen": "queries of unseen classes search the items of unseen classes",
    "unseen@all": "queries of unseen classes search the whole database",
}
POLICY = (
    "a query or item is unseen if any of its labels is, and seen if it has labels and none of them is; one without a "
    "label is in no part but the whole database"
)


def by_classes(
    query: CodeSet,
    database: CodeSet,
    unseen: Sequence[int],
    measure: Callable[[CodeSet, CodeSet], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Evaluate each of ``PROTOCOLS``.

    Args:
        query: Codes of the queries.
        database: Codes of the database.
        unseen: Numbers of the classes that were not trained on: columns of multi-hot labels, or the labels themselves.
        measure: Evaluation of some queries and some items.

    Returns:
        The metrics of each protocol.
    """
    queries, items = _parts(query, unseen), _parts(database, unseen)
    pairs = {name: name.split("@") for name in PROTOCOLS}
    return {name: measure(queries[asked], items[searched]) for name, (asked, searched) in pairs.items()}


def _parts(codes: CodeSet, unseen: Sequence[int]) -> dict[str, CodeSet]:
    """Return the codes of seen classes, of unseen classes, and all."""
    if codes.labels.ndim == 1:
        is_unseen, is_labelled = np.isin(codes.labels, unseen), codes.labels >= 0
    else:
        is_unseen, is_labelled = codes.labels[:, list(unseen)].any(axis=1), codes.labels.any(axis=1)
    seen = some(codes, np.flatnonzero(is_labelled & ~is_unseen))
    return {"seen": seen, "unseen": some(codes, np.flatnonzero(is_unseen)), "all": codes}

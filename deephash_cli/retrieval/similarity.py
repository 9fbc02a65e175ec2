"""What makes two images similar, if images have several labels: it decides which items are relevant to a query."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from deephash_cli.retrieval.ranking import Labels

ONE, ALL = "one", "all"
SIMILAR = {
    ONE: "two images are similar if they share at least one label",
    ALL: "two images are similar if they have exactly the same labels, and at least one",
}


def setting(settings: Mapping[str, Any]) -> str:
    """Return the key of ``SIMILAR`` in the settings of an evaluation; earlier versions wrote none and meant ``one``."""
    return settings.get("similar") or ONE


def of_manifest(manifest: Mapping[str, Any]) -> str:
    """Return the key of ``SIMILAR`` that a codes folder is evaluated with."""
    return setting(manifest.get("evaluation") or {})


def of_policies(policies: Any) -> str:
    """Return the key of ``SIMILAR`` that some metrics were measured with, from their policies, which may be edited."""
    return ALL if isinstance(policies, Mapping) and policies.get("similar") == SIMILAR[ALL] else ONE


def in_words(similar: str) -> list[str]:
    """Return a phrase about a key of ``SIMILAR`` for titles of tables; an empty list for the usual one."""
    return ["all labels must agree"] if similar == ALL else []


def as_shared(query: Labels, database: Labels, similar: str) -> tuple[Labels, Labels]:
    """Return labels for both sides such that an image shares a label with a query exactly if the two are similar.

    Args:
        query: Labels of the queries: multi-hot (q, classes), or class numbers (q,) with -1 for no label.
        database: Labels of the database, in the same form.
        similar: Key of ``SIMILAR``. With ``all``, each set of labels becomes a class of its own.

    >>> query, database = np.array([[1, 0], [1, 1], [0, 0]], np.uint8), np.array([[1, 1], [0, 1], [0, 0]], np.uint8)
    >>> as_shared(query, database, "all")
    (array([ 2,  3, -1]), array([ 3,  1, -1]))
    """
    if similar == ONE or query.ndim == 1 or not query.shape[1]:
        return query, database
    rows = np.concatenate([np.packbits(side, axis=1) for side in (query, database)])
    numbers = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    numbers[~rows.any(axis=1)] = -1
    return numbers[: len(query)], numbers[len(query) :]


def are_similar(
    labels: UInt8[np.ndarray, "n classes"], of_query: UInt8[np.ndarray, " classes"], similar: str
) -> Bool[np.ndarray, " n"]:
    """Return for each image whether it is similar to a query.

    Args:
        labels: Multi-hot labels of the images.
        of_query: Multi-hot labels of the query.
        similar: Key of ``SIMILAR``.
    """
    shared = np.any(labels & of_query, axis=1)
    return np.asarray(shared if similar == ONE else shared & np.all(labels == of_query, axis=1))

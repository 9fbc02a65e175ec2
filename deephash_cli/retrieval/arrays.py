"""Score codes that are in memory: `evaluate` takes NumPy arrays, as a notebook has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from deephash_cli.choices import CONF_DIR
from deephash_cli.retrieval import scoring
from deephash_cli.retrieval.external_codes import from_arrays
from deephash_cli.retrieval.packing import BitOrder, ByteType


def evaluate(
    query: np.ndarray,
    database: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    bits: int | None = None,
    bit_order: BitOrder = "little",
    byte_type: ByteType = "uint8",
    ks: Sequence[int] | None = None,
    map_at: Sequence[int] = (),
    radius: int | None = None,
    zero_hits: str | None = None,
    similar: str | None = None,
) -> dict[str, Any]:
    """Return every metric of ``metrics.json`` for codes and labels in memory.

    The numbers are those of ``deephash eval`` on the same arrays in files, to the last digit. The arrays have no ids:
    a query that is in the database as well is ranked like any other item.

    Args:
        query: Codes of the queries: (n, bits) of -1 and 1, of 0 and 1, or of truth values; or packed (n, bytes).
        database: Codes of the database, in one of these forms.
        query_labels: Class ids (n,), or multi-hot labels (n, classes).
        database_labels: Labels of the database, in one of these forms.
        bits: Code length, needed for arrays of uint8 and for packed codes; None for all others.
        bit_order: Bit order of packed codes: ``little`` as in Faiss, ``big`` as ``np.packbits`` makes them.
        byte_type: Type of the bytes of packed codes: ``uint8``; or int8, as ``int8_minus_128`` (``binary`` of
            sentence-transformers and Cohere, with ``bit_order="big"``) or ``int8_same_bits`` (``view(np.int8)``).
        ks: Cut-offs k of precision and recall; None for those of ``conf/metrics/default.yaml``.
        map_at: Ranks R for ``map_at_<R>``.
        radius: Radius of the Hamming ball, in bits; None for that of ``conf/metrics/default.yaml``.
        zero_hits: ``zero`` or ``skip`` for queries without a relevant item; None for the default there.
        similar: ``one`` if an item is relevant that shares a label with the query, ``all`` if only an item with exactly
            the same labels is; None for the default there.

    Raises:
        ArtifactError: If an array holds something else, or the arrays do not fit each other.
        ConfigError: If ``bits`` is needed, or a setting is out of its range.
        DataError: If no query can be scored.

    >>> codes = np.array([[1, 1, -1], [1, -1, -1], [-1, -1, 1]])
    >>> evaluate(codes, codes, np.array([0, 0, 1]), np.array([0, 0, 1]), ks=[1], radius=1)["map"]
    1.0
    """
    sides = from_arrays(query, database, query_labels, database_labels, bits, bit_order, byte_type)
    defaults = yaml.safe_load((CONF_DIR / "metrics" / "default.yaml").read_text(encoding="utf-8"))
    return scoring.evaluate(
        *sides,
        ks=defaults["ks"] if ks is None else ks,
        map_at=map_at,
        radius=defaults["radius"] if radius is None else radius,
        zero_hits=zero_hits or defaults["zero_hits"],
        similar=similar or defaults["similar"],
    )

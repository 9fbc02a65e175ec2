"""A flat index compares a query with every code, as deephash itself does, for programs that want a faiss index."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

FAISS_CLASS = "IndexBinaryFlat"
HAS_RADIUS = True
RANGES: dict[str, tuple[float, float | None]] = {}


def build(faiss: ModuleType, codes: np.ndarray, bits: int, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build an index; see ``kind_of`` for what comes in and what is returned."""
    inner = faiss.IndexBinaryFlat(8 * codes.shape[1])
    inner.add(codes)
    return inner, {}

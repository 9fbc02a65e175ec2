"""A flat index compares a query with every code, as exact search does, for programs that need a faiss index."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

FAISS_CLASS = "IndexBinaryFlat"
HAS_RADIUS = True
RANGES: dict[str, tuple[float, float | None]] = {}


def build(faiss: ModuleType, codes: np.ndarray, bits: int, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build an index of this kind; see `indexes.kind_of` for the arguments and the result."""
    inner = faiss.IndexBinaryFlat(8 * codes.shape[1])
    inner.add(codes)
    return inner, {}

"""A graph that links each code to near codes; a search follows the links. faiss offers no radius search in it."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

FAISS_CLASS = "IndexBinaryHNSW"
HAS_RADIUS = False
RANGES: dict[str, tuple[float, float | None]] = {"m": (2, 256), "ef_construction": (1, None), "ef_search": (1, None)}


def build(faiss: ModuleType, codes: np.ndarray, bits: int, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build an index of this kind; see `indexes.kind_of` for the arguments and the result."""
    inner = faiss.IndexBinaryHNSW(8 * codes.shape[1], settings["m"])
    inner.hnsw.efConstruction = settings["ef_construction"]
    inner.hnsw.efSearch = settings["ef_search"]
    inner.add(codes)
    return inner, dict(settings)

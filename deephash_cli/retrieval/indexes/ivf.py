"""An inverted file: each list holds the codes near one center, and a search looks into the nearest lists only."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from deephash_cli.errors import ConfigError

FAISS_CLASS = "IndexBinaryIVF"
HAS_RADIUS = True
RANGES: dict[str, tuple[float, float | None]] = {
    "lists": (1, None),
    "probes": (1, None),
    "train_per_list": (1, None),
    "seed": (0, 2**31 - 1),
}


def build(faiss: ModuleType, codes: np.ndarray, bits: int, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build an index of this kind; see `indexes.kind_of` for the arguments and the result."""
    n, width = len(codes), 8 * codes.shape[1]
    lists = settings["lists"] if settings["lists"] is not None else min(n, round(4 * n**0.5))
    if lists > n:
        raise ConfigError(f"ivf.lists must be at most the number of codes, {n}, got {lists}: leave it out")
    inner = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(width), width, lists)
    inner.nprobe = min(settings["probes"], lists)
    inner.cp.seed = settings["seed"]
    inner.cp.min_points_per_centroid = 1  # faiss warns below 39 by default, which is a matter of taste
    inner.cp.max_points_per_centroid = settings["train_per_list"]
    inner.train(codes)
    inner.add(codes)
    return inner, {**settings, "lists": lists, "probes": inner.nprobe}

"""Several hash tables, each keyed by a part of the code.

A search finds all items within a radius below hashes * (flips + 1).
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from deephash_cli.errors import ConfigError

_LONGEST = 32  # bits of a hash
FAISS_CLASS = "IndexBinaryMultiHash"
HAS_RADIUS = True
RANGES: dict[str, tuple[float, float | None]] = {"hashes": (1, None), "hash_bits": (1, _LONGEST), "flips": (0, 4)}


def build(faiss: ModuleType, codes: np.ndarray, bits: int, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build an index of this kind; see `indexes.kind_of` for the arguments and the result."""
    hash_bits, hashes = settings["hash_bits"], settings["hashes"]
    if hash_bits is None:  # about as many buckets as items
        hash_bits = max(1, min(round(np.log2(len(codes))), bits // (hashes or 1), _LONGEST))
    hashes = hashes or max(1, bits // hash_bits)
    if hashes * hash_bits > bits:  # padding bits are equal in all codes and cannot distinguish them
        raise ConfigError(
            f"multihash.hashes times multihash.hash_bits must be at most the {bits} bits of a code, "
            f"got {hashes} times {hash_bits}"
        )
    inner = faiss.IndexBinaryMultiHash(8 * codes.shape[1], hashes, hash_bits)
    inner.nflip = min(settings["flips"], hash_bits)
    inner.add(codes)
    return inner, {"hashes": hashes, "hash_bits": hash_bits, "flips": inner.nflip}

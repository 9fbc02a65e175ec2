"""Codes to search, and a search with loops, for the tests of indexes."""

import numpy as np

from deephash_cli.retrieval.codes import pack

SETTINGS = {
    "ivf": {"lists": 6, "probes": 6, "train_per_list": 32, "seed": 0},
    "hnsw": {"m": 8, "ef_construction": 60, "ef_search": 60},
    "multihash": {"hashes": None, "hash_bits": 4, "flips": 1},
}


def codes(n, bits, seed=0, centres=9):
    """Packed codes around a few centres: many are equal, and many distances are equal."""
    rng = np.random.default_rng(seed)
    middle = np.random.default_rng(9).random((centres, bits)) < 0.5
    return pack(middle[rng.integers(0, centres, n)] ^ (rng.random((n, bits)) < 0.08))


def twin(queries, packed, bits):
    """(distance, position) of all items for each query, nearest first, by loops."""
    sides = [np.unpackbits(side, axis=1, count=bits, bitorder="little").tolist() for side in (queries, packed)]
    return [
        sorted((sum(a != b for a, b in zip(query, item, strict=True)), j) for j, item in enumerate(sides[1]))
        for query in sides[0]
    ]

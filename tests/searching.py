"""Codes to search, and a search with loops, for the tests of indexes."""

from dataclasses import replace

import numpy as np

from deephash_cli.retrieval.codes import pack, unpack

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


def with_continuous(side, seed=0):
    """The same codes with continuous codes of their signs, in steps of 1/4, so that many scores are equal."""
    sizes = np.random.default_rng(seed).integers(1, 9, (side.n, side.bits)) / 4
    return replace(side, u=np.where(unpack(side.packed, side.bits), sizes, -sizes).astype(np.float16))


def ranked(u, packed, k, among=None):
    """(score, distance, position) of the ``k`` best items for one query, by loops; ``among``: positions to rank."""
    signs = np.where(unpack(packed, len(u)), 1, -1).tolist()
    (items,) = twin(pack(u[None] >= 0), packed, len(u))
    scored = [(-sum(a * b for a, b in zip(u.tolist(), signs[j], strict=True)), d, j) for d, j in items]
    return [(-score, d, j) for score, d, j in sorted(scored) if among is None or j in among][:k]


def twin(queries, packed, bits):
    """(distance, position) of all items for each query, nearest first, by loops."""
    sides = [np.unpackbits(side, axis=1, count=bits, bitorder="little").tolist() for side in (queries, packed)]
    return [
        sorted((sum(a != b for a, b in zip(query, item, strict=True)), j) for j, item in enumerate(sides[1]))
        for query in sides[0]
    ]

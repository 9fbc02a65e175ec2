"""Search in two steps: the first bits of the codes choose a shortlist, and all bits order it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from deephash_cli.errors import ConfigError
from deephash_cli.retrieval import indexes
from deephash_cli.retrieval.codes import packed_prefix
from deephash_cli.retrieval.codes_folder import Database


class ByPrefix:
    """An index of the first bits of codes, whose nearest items are ordered by all bits.

    Args:
        database: Database side of a codes folder.
        bits: Number of first bits that choose the shortlist, fewer than the codes have.
        shortlist: Number of items in the shortlist of a query; if the database has fewer, all of them.
        kind: Kind of the index of the first bits, which is built here: one of ``indexes.KINDS``.
        settings: Settings of each kind of index; see ``indexes.open_or_build``.

    Raises:
        ConfigError: If the codes have no more bits than ``bits``, if ``kind`` is a file, or if the index cannot be
            built.
    """

    def __init__(
        self, database: Database, bits: int, shortlist: int, kind: str, settings: Mapping[str, Mapping[str, Any]]
    ):
        if bits >= database.bits:
            raise ConfigError(f"prefix_bits must be below the {database.bits} bits of the codes, got {bits}")
        if kind not in indexes.KINDS:
            raise ConfigError(
                f"prefix_bits={bits} builds an index of the first bits, but {kind} has all bits: choose "
                f"index= from {', '.join(indexes.KINDS)}"
            )
        first = replace(database, packed=packed_prefix(database.packed, database.bits, bits), bits=bits)
        self.bits = database.bits
        self.shortlist = shortlist
        self._first = indexes.open_or_build(kind, first, settings)
        self._prefix_bits = bits
        self._packed = database.packed

    def nearest(
        self, queries: UInt8[np.ndarray, "q bytes"], k: int
    ) -> tuple[Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
        """Find the ``k`` items of each query's shortlist that are nearest by all bits, ties by position.

        An item at the edge of the shortlist is in it or not by its position among those at the same distance.

        Raises:
            ConfigError: If the shortlist has fewer than ``k`` items.
        """
        if k > self.shortlist:
            raise ConfigError(f"shortlist={self.shortlist} has fewer items than the {k} that are needed: raise it")
        _, positions = self._first.nearest(packed_prefix(queries, self.bits, self._prefix_bits), self.shortlist)
        found = np.bitwise_count(self._packed[positions] ^ queries[:, None]).sum(axis=2, dtype=np.int64)
        found[positions == indexes.MISSING] = self.bits + 1  # last in order
        order = np.lexsort((positions, found))[:, :k]
        found, positions = (np.take_along_axis(side, order, axis=1) for side in (found, positions))
        found[positions == indexes.MISSING] = indexes.MISSING
        return found, positions

    def within(self, queries: UInt8[np.ndarray, "q bytes"], radius: int) -> Iterator[indexes.Found]:
        """Refuse a radius search, which a shortlist cannot do.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"radius={radius} finds all items within a distance, and a shortlist by prefix_bits only the nearest: "
            "leave out one of the two"
        )

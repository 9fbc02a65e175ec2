"""The source of every export: one side of a codes folder, read in blocks of rows, and its description."""

import importlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deephash_cli.console import progress
from deephash_cli.errors import ArtifactError, ConfigError, first_line
from deephash_cli.files import write_json, write_text
from deephash_cli.retrieval import packing
from deephash_cli.retrieval.codes import packed_width
from deephash_cli.retrieval.codes_folder import Database
from deephash_cli.retrieval.packing import BitOrder, ByteType

ROWS = 2**16  # rows in memory at a time, fewer if codes are long: some megabytes, whatever the size of the database
_BYTES = 2**22
# Entries of a manifest that describe the codes folder itself.
_OF_THE_FOLDER = ("format", "query", "database", "files", "run_folder")

# For each type of bytes a line that says what it is, and how packed uint8 becomes it.
_SIGNED: dict[ByteType, tuple[str, str]] = {
    "uint8": ("", "{}"),
    "int8_minus_128": ("An int8 holds a byte less 128: byte_type=int8_minus_128.\n", "({} - 128).astype(numpy.int8)"),
    "int8_same_bits": ("An int8 holds the eight bits of a byte: byte_type=int8_same_bits.\n", "{}.view(numpy.int8)"),
}


class Block(NamedTuple):
    """Consecutive items: their positions in the database, their packed codes as they are written, and their ids."""

    rows: slice
    packed: np.ndarray
    ids: list[str]


@dataclass(frozen=True, eq=False)
class Source:
    """Codes to export to an engine.

    Attributes:
        database: The codes, read from disk when they are used.
        side: Side of a retrieval that they belong to: ``database`` or ``query``.
        table: Name for them in the engine: lower-case letters, digits and underscores.
        bit_order: Order of the bits in the bytes that are written.
        byte_type: Type of these bytes; see `packing`.
    """

    database: Database
    side: str
    table: str
    bit_order: BitOrder = "little"
    byte_type: ByteType = "uint8"

    @property
    def bits(self) -> int:
        """Code length."""
        return self.database.bits

    @property
    def width(self) -> int:
        """Bytes per packed code. Engines that need whole bytes get 8 times as many bits, of which the padding is 0."""
        return packed_width(self.bits)

    @property
    def dtype(self) -> np.dtype:
        """Type of the bytes that are written."""
        return packing.dtype_of(self.byte_type)

    @property
    def rows(self) -> int:
        """Number of items to have in memory at a time."""
        return max(1, min(ROWS, _BYTES // self.width))

    @property
    def facts(self) -> dict[str, Any]:
        """Code length and origin of the codes, from the manifest, and how their bytes are written."""
        kept = {name: value for name, value in self.database.manifest.items() if name not in _OF_THE_FOLDER}
        classes = self.database.labels.shape[1]
        written = {"bit_order": self.bit_order, "byte_type": self.byte_type}
        return {"side": self.side, "count": self.database.n, "classes": classes, **kept, **written}

    @property
    def metadata(self) -> dict[str, str]:
        """Facts to store beside the columns of a file: text as it is, every other value as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in {"format": "deephash codes", **self.facts}.items()
        }

    def blocks(self, task: str) -> Iterator[Block]:
        """Yield all items in order; ``task`` is the label of the progress bar."""
        with progress(f"{task}, codes", self.database.n) as update:
            for start in range(0, self.database.n, self.rows):
                rows = slice(start, min(start + self.rows, self.database.n))
                yield Block(rows, self._stored(rows), self.database.ids[rows])
                update(rows.stop)

    def _stored(self, rows: slice) -> np.ndarray:
        return packing.store(np.asarray(self.database.packed[rows]), self.bit_order, self.byte_type)

    def first(self) -> np.ndarray:
        """Return the packed code of the first item, which example queries search for."""
        return np.asarray(self.database.packed[0]) if self.database.n else np.zeros(self.width, np.uint8)

    def compare(self, read: Iterable[tuple[Iterable[str], np.ndarray]], path: Path) -> str:
        """Compare ids and codes that were read back from a file with the source.

        Args:
            read: Ids and packed codes as they are in the file, in order, some at a time.
            path: Path of the file, for the message.

        Returns:
            What was checked, for the user.

        Raises:
            ArtifactError: If an id or a code differs, or if some are missing.
        """
        position = 0
        try:
            for ids, packed in read:
                rows = slice(position, position + len(packed))
                if self.database.ids[rows] != list(ids) or not np.array_equal(self._stored(rows), packed):
                    raise ValueError(f"a difference at position {position} or after")
                position += len(packed)
        except (ValueError, KeyError, OverflowError) as error:
            raise ArtifactError(
                f"{path.name} was read back and differs from what was written: {first_line(error)}"
            ) from error
        if position != self.database.n:
            raise ArtifactError(f"{path.name} was read back with {position} of {self.database.n} codes")
        return f"read {path.name} back; every code and id is the same"

    def describe(self, folder: Path, loader: str) -> None:
        """Write ``source.json``, and ``README.txt``: how to load the files, then the bit order.

        Args:
            folder: Folder to write into.
            loader: How to load the exported files, the first part of ``README.txt``.
        """
        spare = 8 * self.width - self.bits
        padding = (
            f"The last {spare} bits of the last byte are padding: the same in every code, so they add no distance."
        )
        place = {"little": "i % 8", "big": "7 - i % 8"}[self.bit_order]
        signed, made = _SIGNED[self.byte_type]
        made = made.format(f'numpy.packbits(u >= 0, bitorder="{self.bit_order}")')
        tail = f"""
What this folder contains

{self.database.n} codes of {self.bits} bits ({self.side} side), written by deephash export.
Packed codes have {self.width} bytes: bit i is worth 2 ** ({place}) in byte i // 8, "{self.bit_order}" in NumPy.
{signed}{padding if spare else "There is no padding."}
To make a query from the network's outputs u, one value per bit: {made}
Results of deephash are ordered by distance, ties by position. source.json says where the codes come from.
"""
        write_text(folder / "README.txt", f"{loader.strip()}\n{tail}")
        write_json(folder / "source.json", self.facts)


def write_ids(source: Source, folder: Path) -> None:
    """Write ``ids.txt``: line i is the id of the code at position i, both counted from 0."""
    with (folder / "ids.txt").open("w", encoding="utf-8", newline="") as file:
        for block in source.blocks("writing"):
            file.writelines(f"{name}\n" for name in block.ids)


def optional(module: str, extra: str) -> Any:
    """Import a package that only some targets need.

    Args:
        module: Name of the module to import.
        extra: Extra of deephash that installs it.

    Raises:
        ConfigError: If it is not installed; the message gives the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"this export needs {module.split('.')[0]}: pip install 'deephash[{extra}]'") from error

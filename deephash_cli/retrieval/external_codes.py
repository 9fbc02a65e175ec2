"""Read third-party codes and labels: .npy files in the common formats, whose format is never guessed.

Nothing in a file is executed, and no array is loaded as a whole: arrays stay on disk and are read a block of rows at a
time.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deephash_cli import npy
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.files import sha256_file
from deephash_cli.npy import (
    NUMBERS,
    Labels,
    blocks,
    labels_of,
    open_array,
    read_labels,
    require_kind,
    without_truth_values,
)
from deephash_cli.retrieval.codes import BITS_LIMIT, CodeSet, pack, packed_width, prefix
from deephash_cli.retrieval.packing import BitOrder, ByteType, dtype_of, restore

_SCALAR = "embeddings with one such number per dimension are not binary codes"


class _Codes(NamedTuple):
    packed: np.ndarray
    bits: int
    format: str


def load(
    query: Path,
    database: Path,
    query_labels: Path,
    database_labels: Path,
    bits: int | None = None,
    bit_order: BitOrder = "little",
    byte_type: ByteType = "uint8",
    is_prefix: bool = False,
) -> tuple[CodeSet, CodeSet, dict[str, Any]]:
    """Read both sides of a retrieval from third-party arrays.

    Codes have one row per image. They are packed bytes (n, ceil(bits/8)), or have one column per bit: truth values, or
    numbers that are all -1 or 1, or all 0 or 1. Labels are class ids (n,) or (n, 1), or multi-hot
    (n, classes). The images have no names here, so a query that is also in the database is not recognized there.

    Args:
        query: File with the codes of the queries.
        database: File with the codes of the database.
        query_labels: File with the labels of the queries.
        database_labels: File with the labels of the database.
        bits: Code length; ``None`` to take it from the number of columns. Arrays of uint8 need it: without it, packed
            codes cannot be distinguished from one column per bit.
        bit_order: Order of the bits in packed codes. ``little`` has bit 0 in the lowest place of its byte, as in Faiss;
            ``big`` has it in the highest place, which is the default of ``np.packbits``.
        byte_type: Type of the bytes of packed codes; see `packing`. With one of the signed types, both sides must be
            packed as int8.
        is_prefix: Whether to return the first ``bits`` bits of longer codes. The length of the codes themselves need
            not be known then: arrays of uint8 are packed codes, with padding or without.

    Returns:
        The query side, the database side and the source: for each of the four files its name, SHA-256 and format.
        Labels are multi-hot, unless both sides have class ids. Class ids may be far apart, so the labels are then class
        numbers, and ``classes`` in the source has the class id of each number.

    Raises:
        ArtifactError: If a file is damaged, has the wrong content, or does not match the others.
        ConfigError: If ``bits`` is missing but needed, or if ``bits``, ``bit_order`` or ``byte_type`` contradicts a
            file.
    """
    files = {"query": query, "database": database, "query_labels": query_labels, "database_labels": database_labels}
    codes = [
        _read_codes(path, _all_bits(path, byte_type) if is_prefix else bits, bit_order, byte_type)
        for path in (query, database)
    ]
    labels = [read_labels(path) for path in (query_labels, database_labels)]
    query_set, database_set, classes = _sides(files, codes, labels)
    formats = [part.format for part in (*codes, *labels)]
    source: dict[str, Any] = {
        name: {"file": str(path), "sha256": sha256_file(path), "format": format_}
        for (name, path), format_ in zip(files.items(), formats, strict=True)
    }
    if classes is not None:
        source["classes"] = classes.tolist()
    if is_prefix and bits is not None:
        source["prefix_of"] = query_set.bits
        query_set, database_set = prefix(query_set, bits), prefix(database_set, bits)
    return query_set, database_set, source


def from_arrays(
    query: np.ndarray,
    database: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    bits: int | None = None,
    bit_order: BitOrder = "little",
    byte_type: ByteType = "uint8",
) -> tuple[CodeSet, CodeSet]:
    """Return both sides of a retrieval from arrays in memory, in the formats that `load` reads from files.

    Args:
        query: Codes of the queries.
        database: Codes of the database.
        query_labels: Labels of the queries.
        database_labels: Labels of the database.
        bits: Code length, needed for arrays of uint8; None for all others.
        bit_order: Bit order of packed codes.
        byte_type: Type of the bytes of packed codes.

    Raises:
        ArtifactError: If an array holds something else, or does not fit the others.
        ConfigError: If ``bits`` is needed, or contradicts an array.
    """
    places = {name: name for name in ("query", "database", "query_labels", "database_labels")}
    given = [np.asarray(array) for array in (query, database, query_labels, database_labels)]
    for name, array, dimensions in zip(places, given, ((2,), (2,), (1, 2), (1, 2)), strict=True):
        what = "labels" if name.endswith("labels") else "codes"
        require_kind(name, array.dtype, array.shape, what, dimensions, NUMBERS)
    codes = [
        _codes_of(name, array, lambda array=array: array, bits, bit_order, byte_type)
        for name, array in zip(places, given[:2], strict=False)
    ]
    labels = [labels_of(name, array) for name, array in zip(list(places)[2:], given[2:], strict=True)]
    query_set, database_set, _ = _sides(places, codes, labels)
    return query_set, database_set


def _sides(
    places: Mapping[str, Path | str], codes: Sequence[_Codes], labels: Sequence[Labels]
) -> tuple[CodeSet, CodeSet, np.ndarray | None]:
    """Put codes and labels of both sides together, and return the class id of each class number, if there are any."""
    query, database = codes
    if query.bits != database.bits:
        raise ArtifactError(
            f"{places['query']} has codes of {query.bits} bits but {places['database']} has codes of {database.bits} "
            "bits: both must come from the same model"
        )
    for side, packed, side_labels in (("query", query.packed, labels[0]), ("database", database.packed, labels[1])):
        if len(packed) != len(side_labels.array):
            raise ArtifactError(
                f"{places[side]} has {len(packed)} codes but {places[f'{side}_labels']} has labels of "
                f"{len(side_labels.array)} images: each code needs the labels of its image, in the same order"
            )
    *united, classes = _unite(labels[0], labels[1], places["query_labels"], places["database_labels"])
    query_set, database_set = (
        CodeSet(side.packed, side.bits, of_side, ids=None) for side, of_side in zip(codes, united, strict=True)
    )
    return query_set, database_set, classes


def _all_bits(path: Path, byte_type: ByteType) -> int | None:
    """Return the number of bits in packed codes, padding included; None if codes have one bit in each column.

    Raises:
        ConfigError: If all values are 0 or 1, because then the file may have either form.
    """
    array = open_array(path, "codes", (2,))
    if byte_type != "uint8":
        return 8 * array.shape[1]
    if array.dtype != np.uint8:
        return None
    if not any((npy.load(path)[rows] > 1).any() for rows in blocks(array)):
        raise ConfigError(
            f"{path} has columns of uint8 that are all 0 or 1, which may be packed codes or have one bit per column: "
            "to evaluate the first bits of the latter, give truth values or int8 instead of uint8"
        )
    return 8 * array.shape[1]


def _read_codes(path: Path, bits: int | None, bit_order: BitOrder, byte_type: ByteType) -> _Codes:
    # Mapped again for each block: pages that were read leave the process's memory only together with their mapping.
    return _codes_of(path, open_array(path, "codes", (2,)), lambda: npy.load(path), bits, bit_order, byte_type)


def _codes_of(
    place: Path | str,
    array: np.ndarray,
    again: Callable[[], np.ndarray],
    bits: int | None,
    bit_order: BitOrder,
    byte_type: ByteType,
) -> _Codes:
    """Pack the codes that an array holds; ``again`` gives the same array for each block of it."""
    columns, name = array.shape[1], array.dtype.name
    if byte_type != "uint8":
        _require_packed_int8(place, array, bits, byte_type)
    if array.dtype == np.uint8 and bits is None:
        raise ConfigError(
            f"{place} has {columns} columns of uint8, which may be packed codes or have one bit per column: "
            f"give the code length, such as bits={8 * columns} if it is packed or bits={columns} if not"
        )
    if array.dtype == dtype_of(byte_type) and bits is not None and columns == packed_width(bits):
        packed = _read_packed(place, array, bits, bit_order, byte_type)
        signed = "" if byte_type == "uint8" else f", {byte_type}"
        return _Codes(packed, bits, f"{name} packed, {bit_order}{signed}")
    if array.dtype == np.uint8 and columns != bits:
        raise ConfigError(
            f"bits={bits} does not fit {place}, which has {columns} columns of uint8: codes of {bits} bits have "
            f"{packed_width(bits or 0)} if packed and {bits} if not"
        )
    if bits not in (None, columns):
        signed = " or, with byte_type=, as int8" if array.dtype == np.int8 else ""
        raise ConfigError(
            f"bits={bits} does not fit {place}, which has {columns} columns of {name}, one per bit: leave bits out, "
            f"or give packed codes as uint8{signed}"
        )
    if columns > BITS_LIMIT:
        raise ArtifactError(f"{place} must hold codes of at most {BITS_LIMIT} bits, got {columns} columns, one per bit")
    packed, values = _read_columns(place, array, again)
    return _Codes(packed, columns, f"{name}{values}")


def _require_packed_int8(place: Path | str, array: np.ndarray, bits: int | None, byte_type: ByteType) -> None:
    columns = array.shape[1]
    if array.dtype != np.int8:
        raise ConfigError(
            f"byte_type={byte_type} is for packed codes as int8 on both sides, but {place} holds {array.dtype.name}: "
            "store both sides in the same way"
        )
    if bits is None:
        raise ConfigError(
            f"byte_type={byte_type} needs the code length: {place} has {columns} columns, so give bits={8 * columns}, "
            "or less if the last byte has padding bits"
        )
    if columns != packed_width(bits):
        raise ConfigError(
            f"bits={bits} with byte_type={byte_type} does not fit {place}, which has {columns} columns of int8: "
            f"packed codes of {bits} bits have {packed_width(bits)}"
        )


def _read_packed(
    place: Path | str, array: np.ndarray, bits: int, bit_order: BitOrder, byte_type: ByteType
) -> np.ndarray:
    """Packed codes as deephash stores them, without a copy if the file has that form."""
    if spare := -bits % 8:
        last = restore(np.ascontiguousarray(array[:, -1:]), "little", byte_type)[:, 0]
        padding = {"little": last >> (8 - spare), "big": last & (2**spare - 1)}
        if padding[bit_order].any():
            row = int(padding[bit_order].astype(bool).argmax())
            found = (
                f"{place} must have zeros in the {spare} padding bits of codes of {bits} bits, "
                f"got ones in row {row} with bit_order={bit_order}"
            )
            other = "big" if bit_order == "little" else "little"
            if padding[other].any():
                raise ArtifactError(f"{found}: the codes have another length, or are not packed codes")
            raise ConfigError(f"{found}; with bit_order={other} they are zeros: set bit_order={other}")
    if bit_order == "little" and byte_type != "int8_minus_128":
        return restore(array if array.flags.c_contiguous else np.ascontiguousarray(array), bit_order, byte_type)
    packed = np.empty(array.shape, np.uint8)
    for rows in blocks(array):
        packed[rows] = restore(np.ascontiguousarray(array[rows]), bit_order, byte_type)
    return packed


def _read_columns(place: Path | str, array: np.ndarray, again: Callable[[], np.ndarray]) -> tuple[np.ndarray, str]:
    """Pack codes that have one column per bit, and return a text that says which values stand for the bits."""
    packed = np.empty((len(array), packed_width(array.shape[1])), np.uint8)
    zero_at = None  # position of the first 0, which is not a valid bit if others are -1
    negative = False
    for rows in blocks(array):
        block = without_truth_values(again()[rows])
        ones, zeros, negatives = block == 1, block == 0, block == -1
        strange = ~(ones | zeros | negatives)
        if strange.any():
            raise _no_bit(place, without_truth_values(array), rows.start * array.shape[1] + int(strange.argmax()))
        if zero_at is None and zeros.any():
            zero_at = rows.start * array.shape[1] + int(zeros.argmax())
        negative = negative or bool(negatives.any())
        if negative and zero_at is not None:
            raise _no_bit(place, array, zero_at)
        packed[rows] = pack(ones)
    if array.dtype == np.bool_:
        return packed, ""
    return packed, " -1/1" if negative else " 0/1" if zero_at is not None else " all 1"


def _no_bit(place: Path | str, array: np.ndarray, position: int) -> ArtifactError:
    row, column = divmod(position, array.shape[1])
    value = array[row, column]
    columns = array.shape[1]
    if np.isnan(value):
        remedy = "NaN has no sign, so find out where it comes from"
    elif array.dtype.kind == "f" or value == 0:
        remedy = "threshold at 0 first: np.where(u >= 0, 1, -1)"
    elif array.dtype == np.uint8:
        remedy = f"if they are packed, bits must be between {8 * columns - 7} and {8 * columns}; {_SCALAR}"
    elif array.dtype == np.int8:
        remedy = (
            f"if they are packed, give bits={8 * columns} and byte_type=int8_minus_128 (binary of "
            f"sentence-transformers and Cohere) or byte_type=int8_same_bits; {_SCALAR}"
        )
    else:
        remedy = "packed codes must be of uint8 or int8"
    beside = " beside -1, as torch.sign gives" if value == 0 else ""
    return ArtifactError(
        f"{place} must hold codes that are all -1 or 1, or all 0 or 1, got {value}{beside} in row {row}, "
        f"column {column}: {remedy}"
    )


def _unite(
    query: Labels, database: Labels, query_path: Path | str, database_path: Path | str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Labels of both sides in the same format, and the class id of each class number.

    If both sides have class ids, the labels are class numbers. If at least one side is multi-hot, both are, and the
    class ids are None.
    """
    if query.array.ndim == database.array.ndim == 1:
        classes = np.zeros(0, np.int64)
        for labels in (query.array, database.array):
            for rows in blocks(labels):
                classes = np.union1d(classes, labels[rows].astype(np.int64))
        return _numbers(query.array, classes), _numbers(database.array, classes), classes
    if query.array.ndim == 1:
        return _multi_hot(query, database, query_path, database_path), database.array, None
    if database.array.ndim == 1:
        return query.array, _multi_hot(database, query, database_path, query_path), None
    if query.highest != database.highest:
        raise ArtifactError(
            f"{query_path} has labels of {query.highest + 1} classes but {database_path} has {database.highest + 1}: "
            "both must have the same columns"
        )
    return query.array, database.array, None


def _numbers(ids: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The class number of each class id: its place among the sorted ids ``classes``. Ids may be far apart."""
    numbers = np.empty(len(ids), np.int32 if len(classes) < 2**31 else np.int64)
    for rows in blocks(ids):
        numbers[rows] = np.searchsorted(classes, ids[rows].astype(np.int64))
    return numbers


def _multi_hot(ids: Labels, other: Labels, path: Path | str, other_path: Path | str) -> np.ndarray:
    """Class ids as multi-hot rows with a single 1, with the columns of the other side."""
    if ids.highest > other.highest:
        raise ArtifactError(
            f"{path} has class ids up to {ids.highest} but {other_path} is multi-hot with {other.highest + 1} classes: "
            "give both as class ids, or both multi-hot with the same columns"
        )
    labels = np.zeros((len(ids.array), other.highest + 1), np.uint8)
    for rows in blocks(ids.array):
        labels[np.arange(rows.start, rows.stop), ids.array[rows].astype(np.int64)] = 1
    return labels

"""Turn continuous codes into bits and bits into bytes, and check sets of binary codes with labels and ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Int64, UInt8

from deephash_cli.errors import ArtifactError, ConfigError, short
from deephash_cli.npy import RowNumbers, ids_at

BITS_LIMIT = 2**16
_NAMES = 2**16  # ids that are checked at a time
_SIGN, _EXPONENT = (
    np.uint16(0x8000),
    np.uint16(0x7C00),
)  # bits of a float16: its sign, and its exponent, which is all ones if it is not finite
_ROWS = 2**14  # continuous codes that are checked at a time
RANK_LIMIT = 2**53  # cut-offs k and R are below this, as whole numbers that a float64 can hold


def binarize(u: Float[np.ndarray, "n bits"]) -> Bool[np.ndarray, "n bits"]:
    """Threshold continuous codes at zero: 0 and -0.0 become True, infinities keep their sign.

    Args:
        u: Continuous codes, one row per image.

    Raises:
        ValueError: If a value is NaN; the message names the first such row.
    """
    broken = np.isnan(u).any(axis=1)
    if broken.any():
        raise ValueError(
            f"continuous codes must be numbers, got NaN first in row {int(broken.argmax())} "
            f"({int(broken.sum())} of {len(u)} rows): the model has diverged"
        )
    return u >= 0


def rounded(u: Float[np.ndarray, "n bits"]) -> Float16[np.ndarray, "n bits"]:
    """Round continuous codes to float16 without changing a bit of `binarize`.

    Values beyond the range of float16 become its largest values, with their sign. A negative value that would become
    -0.0, which counts as 1, becomes the smallest negative number. NaN stays NaN.

    Args:
        u: Continuous codes, one row per image.

    >>> rounded(np.array([[0.1, -1e-30, -np.inf]])).tolist()
    [[0.0999755859375, -5.960464477539063e-08, -65504.0]]
    """
    largest, smallest = np.finfo(np.float16).max, np.finfo(np.float16).smallest_subnormal
    half = np.clip(u, -largest, largest).astype(np.float16)
    half[((half.view(np.uint16) & ~_SIGN) == 0) & (u < 0)] = -smallest
    return half


def pack(codes: Bool[np.ndarray, "n bits"]) -> UInt8[np.ndarray, "n bytes"]:
    """Pack bit i of each code into byte i//8 at position i%8 (little bit order). Padding bits are zero."""
    return np.packbits(codes, axis=1, bitorder="little")


def unpack(packed: UInt8[np.ndarray, "n bytes"], bits: int) -> Bool[np.ndarray, "n {bits}"]:
    """Undo `pack`, and drop the padding bits.

    Raises:
        ValueError: If the rows do not have the width of codes of ``bits`` bits.
    """
    if bits < 1 or packed.shape[1] != packed_width(bits):
        raise ValueError(
            f"codes of {bits} bits take {packed_width(bits)} bytes a row, got rows of {packed.shape[1]} bytes"
        )
    return np.unpackbits(packed, axis=1, count=bits, bitorder="little").view(np.bool_)


def packed_width(bits: int) -> int:
    """Return the number of bytes of a packed code."""
    return -(-bits // 8)


@dataclass(frozen=True, eq=False)
class CodeSet:
    """One side of a retrieval, queries or database: packed codes, with the labels and ids of their images.

    Attributes:
        packed: Codes (n, bytes) uint8, eight bits per byte, as `pack` returns them.
        bits: Code length.
        labels: Multi-hot labels (n, classes) uint8, where a row of zeros is an image without a label. Or class numbers
            (n,) of any integer type, where -1 is an image without a label. Class numbers need less memory: ten million
            rows with a thousand classes take 10 GB multi-hot and 40 MB as numbers. In a codes folder labels are always
            multi-hot.
        ids: A unique name for each image. ``None`` if images have no names; then no image can be recognized on the
            other side.
        u: Continuous codes (n, bits) float16: the output of the network, of which ``packed`` has the signs. ``None`` if
            they were not kept.

    Raises:
        ArtifactError: If the parts do not fit together.
    """

    # No shape annotations here: a wrong array comes from a user's file, and the checks below explain what is wrong.
    packed: np.ndarray
    bits: int
    labels: np.ndarray
    ids: Sequence[str] | None
    u: np.ndarray | None = None

    def __post_init__(self) -> None:
        require_valid(self.packed, self.bits, self.labels, self.ids)
        if self.u is not None:
            _check_continuous(self.u, self.packed, self.bits)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.packed)


def some(codes: CodeSet, rows: Int64[np.ndarray, " m"]) -> CodeSet:
    """Return the codes of some rows, in that order, with their labels and ids."""
    ids = None if codes.ids is None else ids_at(codes.ids, rows)
    u = None if codes.u is None else codes.u[rows]
    return replace(codes, packed=codes.packed[rows], labels=codes.labels[rows], ids=ids, u=u)


def prefix(codes: CodeSet, bits: int) -> CodeSet:
    """Return the codes of the first ``bits`` bits, with the same labels and ids.

    Raises:
        ConfigError: If ``bits`` is below 1 or more than the codes have.
    """
    u = None if codes.u is None else codes.u[:, :bits]
    return replace(codes, packed=packed_prefix(codes.packed, codes.bits, bits), bits=bits, u=u)


def packed_prefix(packed: UInt8[np.ndarray, "n bytes"], bits: int, kept: int) -> UInt8[np.ndarray, "n kept_bytes"]:
    """Return the first bits of packed codes, packed. Padding bits are zero.

    Args:
        packed: Codes as `pack` returns them.
        bits: Code length.
        kept: Number of bits to keep.

    Raises:
        ConfigError: If ``kept`` is below 1 or above ``bits``.
    """
    if not 1 <= kept <= bits:
        raise ConfigError(f"a prefix must have 1 to {bits} bits, as many as the codes have, got {kept}")
    first = np.array(packed[:, : packed_width(kept)])
    if kept % 8:
        first[:, -1] &= 2 ** (kept % 8) - 1
    return first


def require_comparable(query: CodeSet, database: CodeSet) -> None:
    """Check that distances and shared labels between the two sides are meaningful.

    Raises:
        ArtifactError: If the sides differ in code length, kind of labels or number of classes.
    """
    if query.bits != database.bits:
        raise ArtifactError(
            f"query codes have {query.bits} bits but the database has {database.bits}: they come from different runs"
        )
    if query.labels.ndim != database.labels.ndim:
        kinds = {1: "class numbers", 2: "multi-hot"}
        raise ArtifactError(
            f"query labels are {kinds[query.labels.ndim]} but those of the database are {kinds[database.labels.ndim]}: "
            "both sides need the same kind"
        )
    if query.labels.ndim == 2 and query.labels.shape[1] != database.labels.shape[1]:
        raise ArtifactError(
            f"query labels have {query.labels.shape[1]} classes but the database has {database.labels.shape[1]}: "
            "they come from different runs"
        )


def require_valid(packed: np.ndarray, bits: int, labels: np.ndarray, ids: Sequence[Any] | None) -> None:
    """Check codes, labels and ids as `CodeSet` describes them. Ids are read in blocks, so they may stay on disk.

    Args:
        packed: Codes (n, bytes) uint8.
        bits: Code length.
        labels: Multi-hot labels (n, classes) uint8, or class numbers (n,).
        ids: A unique name for each image; None if images have no names.

    Raises:
        ArtifactError: If the parts do not fit together, or one of them holds a value that it must not hold.
    """
    if not _is_matrix_of_bytes(packed):
        raise ArtifactError(f"codes must be a two-dimensional array of uint8, got {_describe(packed)}")
    if not _is_matrix_of_bytes(labels) and not _is_class_numbers(labels):
        raise ArtifactError(
            "labels must be a two-dimensional array of uint8 or a one-dimensional one of whole numbers, "
            f"got {_describe(labels)}"
        )
    if not is_count(bits) or not 1 <= bits <= BITS_LIMIT:
        raise ArtifactError(f"bits must be a whole number between 1 and {BITS_LIMIT}, got {bits!r}")
    if packed.shape[1] != packed_width(bits):
        raise ArtifactError(
            f"codes of {bits} bits take {packed_width(bits)} bytes a row, got rows of {packed.shape[1]} bytes"
        )
    if ids is None and len(packed) != len(labels):
        raise ArtifactError(f"codes and labels must have equal lengths, got {len(packed)} and {len(labels)}")
    if ids is not None and not len(packed) == len(labels) == len(ids):
        raise ArtifactError(
            f"codes, labels and ids must have equal lengths, got {len(packed)}, {len(labels)} and {len(ids)}"
        )
    # Ids first: their check needs memory for a while, and mapped labels count as memory once they have been read.
    if ids is not None:
        _check_ids(ids)
    if labels.size and labels.ndim == 1 and labels.min() < -1:
        raise ArtifactError(f"class numbers must be at least 0, or -1 for none, got {int(labels.min())}")
    if labels.size and labels.ndim == 2 and labels.max() > 1:
        raise ArtifactError(f"labels must be 0 or 1 (multi-hot), got {int(labels.max())}")
    # Padding that is not zero would silently add distance between codes.
    if bits % 8 and (packed[:, -1] >> (bits % 8)).any():
        raise ArtifactError(
            f"codes of {bits} bits must have zeros in the {-bits % 8} padding bits "
            "of their last byte, got ones: they have another length or another bit order"
        )


def _check_continuous(u: np.ndarray, packed: np.ndarray, bits: int) -> None:
    """Check that continuous codes are finite and that their signs are the bits of the packed codes."""
    if u.dtype != np.float16 or u.ndim != 2:
        raise ArtifactError(f"continuous codes must be a two-dimensional array of float16, got {_describe(u)}")
    if u.shape != (len(packed), bits):
        raise ArtifactError(
            f"continuous codes of {len(packed)} images with {bits} bits must have shape {(len(packed), bits)}, "
            f"got {u.shape}"
        )
    for start in range(0, len(u), _ROWS):
        block = u[start : start + _ROWS].view(np.uint16)  # NumPy has no fast operations on float16
        wrong = ((block & _EXPONENT) == _EXPONENT).any(axis=1)
        if wrong.any():
            raise ArtifactError(f"continuous codes must be finite, got another value in row {start + wrong.argmax()}")
        wrong = (pack(block <= _SIGN) != packed[start : start + _ROWS]).any(axis=1)
        if wrong.any():
            raise ArtifactError(
                f"continuous codes must have the signs of the binary codes, got another sign in row "
                f"{start + wrong.argmax()}: they come from different runs"
            )


def _check_ids(ids: Sequence[Any]) -> None:
    if isinstance(ids, RowNumbers):
        return  # made of numbers that are all different
    # A set of ten million names takes half a gigabyte, their hashes 80 MB. Only names with equal hashes can be equal.
    hashes = np.empty(len(ids), np.int64)
    for start in range(0, len(ids), _NAMES):
        names = ids[start : start + _NAMES]
        _check_names(names, start)
        hashes[start : start + len(names)] = np.fromiter(map(hash, names), np.int64, count=len(names))
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    for name in ids if repeated else ():
        if name in seen:
            raise ArtifactError(f"ids must be unique, got {short(repr(name))} twice")
        if hash(name) in repeated:
            seen.add(name)


def _check_names(names: Sequence[Any], start: int) -> None:
    """Check some ids, of which the first is at position ``start``."""
    if set(map(type, names)) <= {str} and all(names):
        text = "".join(names)  # looked through as one text: that takes a twentieth of the time
        if text.isascii() and "\n" not in text and "\r" not in text:
            return
    for position, name in enumerate(names, start):
        if not isinstance(name, str) or not name or "\n" in name or "\r" in name:
            raise ArtifactError(
                f"an id must be text without a line break and not empty, got {short(repr(name))} at position {position}"
            )
        if not name.isascii():
            try:
                name.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ArtifactError(
                    f"ids must be valid Unicode, got {short(repr(error.object[error.start : error.end]))}"
                ) from error


def _is_matrix_of_bytes(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 2


def _is_class_numbers(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "iu" and array.ndim == 1


def _describe(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.ndim} dimensions of {array.dtype}"
    return type(array).__name__


def is_count(value: object) -> bool:
    """Return whether a value is a whole number from 0 that fits into 64 bits. Truth values do not count as numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63

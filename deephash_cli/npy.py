"""Read .npy files of any origin. Formats are never guessed; arrays are mapped, and nothing is executed or unpacked."""

import contextlib
import io
import math
import mmap
import operator
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Int

from deephash_cli.errors import ArtifactError, short
from deephash_cli.names import Names

_BLOCK = 2**22  # elements that are read at a time
_HELD = 2**28  # bytes of a mapped file that are brought into memory before its pages are released
_AROUND = 2**16  # bytes that the system brings into memory around one that is read
_NAMES = 2**16  # row numbers that are text at the same time
_HEADER_LIMIT = 10_000  # bytes; NumPy refuses longer headers, but only after it has read them


class Header(NamedTuple):
    """The header of a .npy file. It cannot be trusted until `map_array` has compared it with the file."""

    version: tuple[int, int]
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    start: int


def read_header(path: Path) -> Header:
    """Read only the header of a .npy file.

    Raises:
        ArtifactError: If the file is missing, not a plain file, or not a .npy array of version 1.0, 2.0 or 3.0.
    """
    with _npy_errors(path):
        # Opening a pipe could block forever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArtifactError(f"{path} is not a plain file")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error")
            if file.read(4) == b"PK\x03\x04":
                raise ArtifactError(
                    f"{path} must be one .npy array, got an archive (.npz): save the array with np.save"
                )
            file.seek(0)
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            elif version in ((2, 0), (3, 0)):  # 3.0 differs only in field names outside Latin-1
                length = int.from_bytes(file.read(4), "little")
                if length > _HEADER_LIMIT:
                    raise ArtifactError(
                        f"{path} has a header of {length} bytes, expected at most {_HEADER_LIMIT}: it was damaged"
                    )
                file.seek(-4, io.SEEK_CUR)
                shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise ArtifactError(
                    f"{path} has .npy version {version[0]}.{version[1]}, expected 1.0, 2.0 or 3.0: it was damaged"
                )
            return Header(version, shape, fortran_order, dtype, file.tell())


def map_array(path: Path, header: Header) -> np.ndarray:
    """Memory-map an array, read-only, after checking that its file has exactly the size that the header gives.

    Args:
        path: A .npy file.
        header: Header of the file, from `read_header`.

    Raises:
        ArtifactError: If the file has another size, or if the array holds Python objects.
    """
    with _npy_errors(path):
        size = path.stat().st_size
        # Python's integers do not overflow, so a forged shape cannot wrap around to the true size.
        expected = header.start + math.prod(header.shape) * header.dtype.itemsize
        if size != expected or min(header.shape, default=0) < 0:
            raise ArtifactError(
                f"{path} has {size} bytes, expected {expected} for shape {short(repr(header.shape))} "
                f"of {short(repr(header.dtype.str))}: it was truncated, padded or edited"
            )
        if 0 in header.shape:
            return np.zeros(header.shape, header.dtype)  # nothing to map
        return np.load(path, mmap_mode="r", allow_pickle=False)


def load(path: Path) -> np.ndarray:
    """Memory-map an array of any shape and type, read-only, after comparing its header with its file.

    Raises:
        ArtifactError: If the file is missing, damaged or not a .npy file, or if it holds Python objects.
    """
    return map_array(path, read_header(path))


@contextlib.contextmanager
def _npy_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except OSError as error:
        raise ArtifactError(f"could not read {path}: {error.strerror or error}") from error
    except Exception as error:
        # NumPy's header parser evaluates text and does not catch the exceptions that this raises.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArtifactError(f"{path} is not a .npy array as np.save writes it: {reason}") from error


class RowNumbers(Sequence[str]):
    """Row numbers as text: the ids of items that have no names. A text is made only when it is asked for.

    Args:
        rows: Row numbers (n,), all different and at least 0.

    >>> list(RowNumbers(np.array([7, 10])))
    ['7', '10']
    """

    def __init__(self, rows: Int[np.ndarray, " n"]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one row number, or a list of them, as text."""
        if isinstance(index, slice):
            return [str(row) for row in self.rows[index].tolist()]
        return str(self.rows[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _NAMES):
            yield from self[start : start + _NAMES]


def ids_at(ids: Sequence[str], rows: Int[np.ndarray, " n"]) -> Sequence[str]:
    """Return the ids of some rows, in the order of ``rows``: as row numbers if the ids are such, otherwise as names."""
    if isinstance(ids, RowNumbers):
        return RowNumbers(ids.rows[rows])
    return ids.take(rows) if isinstance(ids, Names) else Names(ids[int(row)] for row in rows)


class Labels(NamedTuple):
    """Labels from a file, and their format in the file."""

    array: np.ndarray  # class ids (n,) unchanged from the file, or multi-hot (n, classes) uint8
    highest: int  # highest class id; for multi-hot labels, the number of classes minus one
    format: str


class Kind(NamedTuple):
    """Types of values that an array may hold, and the words for them in messages."""

    kinds: str  # the allowed kinds of NumPy's dtypes, one letter each
    words: str
    example: str  # a dtype to convert to, for messages
    row: str  # the thing that a row stands for


NUMBERS = Kind("biuf", "numbers or truth values", "np.int8", "image")
FLOATS = Kind("f", "floating-point numbers", "np.float32", "item")


def open_array(path: Path, what: str, dimensions: tuple[int, ...], kind: Kind = NUMBERS) -> np.ndarray:
    """Memory-map an array, read-only, after checking its type and shape.

    Args:
        path: A .npy file.
        what: Name of the content that the file should hold, for messages, such as "labels".
        dimensions: Allowed numbers of dimensions.
        kind: Allowed types of values.

    Raises:
        ArtifactError: If the file is damaged, or if the array is empty or has other dimensions or types.
    """
    header = read_header(path)
    require_kind(path, header.dtype, header.shape, what, dimensions, kind)
    return map_array(path, header)


def require_kind(
    place: Path | str, dtype: np.dtype, shape: tuple[int, ...], what: str, dimensions: tuple[int, ...], kind: Kind
) -> None:
    """Check the type and the shape of an array.

    Args:
        place: Where the array is, for messages: a file, or the name of an argument.
        dtype: Type of its values.
        shape: Its shape.
        what: Name of the content that it should hold, for messages, such as "labels".
        dimensions: Allowed numbers of dimensions.
        kind: Allowed types of values.

    Raises:
        ArtifactError: If the array is empty or has other dimensions or types.
    """
    if dtype.hasobject:
        raise ArtifactError(
            f"{place} must hold {what} as {kind.words}, got pickled Python objects, which are never opened: "
            "save an array of numbers, such as np.stack(list(array))"
        )
    if dtype.kind not in kind.kinds or dtype.itemsize > 8:
        convert = f"convert it, such as with array.astype({kind.example})"
        if what == "labels" and dtype.kind in "US":
            convert = "number the classes, such as with np.unique(array, return_inverse=True)[1]"
        elif kind is FLOATS and dtype.itemsize == 1:
            convert = f"packed bits are codes, not {what}; if each number is one dimension, {convert}"
        raise ArtifactError(f"{place} must hold {what} as {kind.words}, got {dtype.str}: {convert}, and save it again")
    if len(shape) not in dimensions:
        expected = " or ".join(str(n) for n in dimensions)
        raise ArtifactError(
            f"{place} must hold {what} in an array of {expected} dimensions, one row per {kind.row}, got {len(shape)}"
        )
    if 0 in shape:
        raise ArtifactError(f"{place} must hold {what} of at least one {kind.row}, got an array of shape {shape}")


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Yield slices of consecutive rows, each small enough to be read at a time."""
    rows = max(1, _BLOCK * len(array) // array.size)
    for start in range(0, len(array), rows):
        yield slice(start, min(start + rows, len(array)))


class Pages:
    """The pages of a mapped array that were read, which count as memory of this process until they are released.

    After that they stay in the system's cache of files as long as there is room.

    Args:
        array: The array. Nothing is done for one that is not mapped.
    """

    def __init__(self, array: np.ndarray) -> None:
        base: object = array
        while isinstance(base, np.ndarray):
            base = base.base
        self._mapped = base if isinstance(base, mmap.mmap) and hasattr(base, "madvise") else None
        self._row_bytes = array.nbytes // max(1, len(array))
        self._brought = 0

    def count(self, rows: Int[np.ndarray, " n"] | slice) -> None:
        """Count the pages of rows that were read, and release all pages from time to time."""
        if self._mapped is None:
            return
        if isinstance(rows, slice):
            self._brought += self._row_bytes * (rows.stop - rows.start)
        elif len(rows):
            span = self._row_bytes * (int(rows.max()) - int(rows.min()) + 1)
            self._brought += min(span, len(rows) * (self._row_bytes + _AROUND))
        if self._brought > _HELD:
            self._brought = 0
            self._mapped.madvise(mmap.MADV_DONTNEED)


def without_truth_values(array: np.ndarray) -> np.ndarray:
    """Return truth values as their bytes in the file, which may differ from 0 and 1. Return other arrays unchanged."""
    return array.view(np.uint8) if array.dtype == np.bool_ else array


def read_labels(path: Path, lowest: int = 0) -> Labels:
    """Read class ids (n,) or (n, 1), or multi-hot labels (n, classes).

    Args:
        path: A .npy file.
        lowest: Lowest allowed class id: 0, or -1 if -1 stands for an image without a class.

    Raises:
        ArtifactError: If the file is damaged, or if it holds neither class ids nor multi-hot labels.
    """
    return labels_of(path, open_array(path, "labels", (1, 2)), lowest)


def labels_of(place: Path | str, array: np.ndarray, lowest: int = 0) -> Labels:
    """Return the labels that an array holds, checked like those of a file by `read_labels`.

    Args:
        place: Where the array is, for messages: a file, or the name of an argument.
        array: Class ids (n,) or (n, 1), or multi-hot labels (n, classes), of 0 and 1 or of -1 and 1, of a kind that
            `require_kind` allows.
        lowest: Lowest allowed class id.

    Raises:
        ArtifactError: If it holds neither class ids nor multi-hot labels.
    """
    name = array.dtype.name
    array = without_truth_values(array)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1:
        return Labels(array, _highest_class(place, array, lowest), f"{name} class ids")
    return Labels(_read_multi_hot(place, array), array.shape[1] - 1, f"{name} multi-hot")


def _highest_class(place: Path | str, array: np.ndarray, lowest: int) -> int:
    """Check that all values are class ids, and return the highest."""
    real = array.dtype.kind == "f"
    limit = 2 ** (np.finfo(array.dtype).nmant + 1) - 1 if real else 2**63 - 1
    highest = lowest
    for rows in blocks(array):
        block = np.asarray(array[rows])
        broken = ~((block >= lowest) & (block <= limit))
        if real:
            broken |= block != np.floor(block)
        if broken.any():
            row = int(broken.argmax())
            remedy = "save them as int64"
            if block[row] < lowest:
                multi_hot = "for images without a class give multi-hot labels, with rows of zeros"
                remedy = "only -1 stands for no class" if lowest == -1 else multi_hot
            elif not block[row] > limit:
                remedy = "number the classes 0, 1, 2, ..."
            raise ArtifactError(
                f"{place} must hold class ids, whole numbers from {lowest} to {limit} in {array.dtype.name}, "
                f"got {block[row]} in row {rows.start + row}: {remedy}"
            )
        highest = max(highest, int(block.max()))
    return highest


def _read_multi_hot(place: Path | str, array: np.ndarray) -> np.ndarray:
    """Check multi-hot labels and return them as uint8, without a copy if the file has bytes of 0 and 1."""
    absent = -1 if array.dtype.kind in "if" and any((array[rows] == -1).any() for rows in blocks(array)) else 0
    copied = None if array.dtype.itemsize == 1 and absent == 0 else np.empty(array.shape, np.uint8)
    for rows in blocks(array):
        block = np.asarray(array[rows])
        ones = block == 1
        strange = ~(ones | (block == absent))
        if strange.any():
            row, column = divmod(int(strange.argmax()), array.shape[1])
            remedy = "class ids go into an array of one dimension"
            if absent and block[row, column] == 0:
                remedy = "it has -1 elsewhere, so give all entries as 0 or 1"
            raise ArtifactError(
                f"{place} must hold multi-hot labels, {absent} or 1 with one column per class, got "
                f"{block[row, column]} in row {rows.start + row}, column {column}: {remedy}"
            )
        if copied is not None:
            copied[rows] = ones
    return array.view(np.uint8) if copied is None else copied

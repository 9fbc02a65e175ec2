"""Arrays in .npy files of any origin: read without a guess, mapped without running or unpacking anything."""

import contextlib
import math
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deephash_cli.errors import ArtifactError, short

_BLOCK = 2**22  # elements looked at at once


class Header(NamedTuple):
    """What a .npy file says of itself. Nothing of it is true before `map_array` has compared it with the file."""

    version: tuple[int, int]
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    start: int


def read_header(path: Path) -> Header:
    """Read the header of a .npy file, and nothing else.

    Raises:
        ArtifactError: If the file is missing, no plain file, or no .npy array of version 1.0, 2.0 or 3.0.
    """
    with _npy_errors(path):
        # Opening a pipe could wait for ever.
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
            elif version in ((2, 0), (3, 0)):  # 3.0 differs only where a structured array has names outside Latin-1
                shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise ArtifactError(
                    f"{path} has .npy version {version[0]}.{version[1]}, expected 1.0, 2.0 or 3.0: it was damaged"
                )
            return Header(version, shape, fortran_order, dtype, file.tell())


def map_array(path: Path, header: Header) -> np.ndarray:
    """Map an array, read-only, after its file was found to have exactly the size that its header gives.

    Raises:
        ArtifactError: If the size is another, or the array holds Python objects.
    """
    with _npy_errors(path):
        size = path.stat().st_size
        # Python's integers: a product of lies cannot wrap around to the true size.
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
    """Map an array of any shape and type, read-only, after its header was compared with its file.

    Raises:
        ArtifactError: If the file is missing, damaged, no .npy file, or holds Python objects.
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
        # NumPy's header parser evaluates text and lets whatever that raises through.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArtifactError(f"{path} is not a .npy array as np.save writes it: {reason}") from error


class Labels(NamedTuple):
    """Labels of a file, and how it has them."""

    array: np.ndarray  # class ids (n,) as they are in the file, or multi-hot (n, classes) uint8
    highest: int  # class id; of multi-hot labels the number of classes less one
    format: str


class Kind(NamedTuple):
    """What an array may hold, and how a message tells of it."""

    kinds: str  # of NumPy's dtypes
    words: str
    example: str  # of a dtype to convert to
    row: str  # what a row stands for


NUMBERS = Kind("biuf", "numbers or truth values", "np.int8", "image")
FLOATS = Kind("f", "floating-point numbers", "np.float32", "item")


def open_array(path: Path, what: str, dimensions: tuple[int, ...], kind: Kind = NUMBERS) -> np.ndarray:
    """Map an array that is not empty, read-only.

    Args:
        path: A .npy file.
        what: It should hold, for messages.
        dimensions: How many it may have.
        kind: Of its values.

    Raises:
        ArtifactError: If it is something else.
    """
    header = read_header(path)
    if header.dtype.hasobject:
        raise ArtifactError(
            f"{path} must hold {what} as {kind.words}, got pickled Python objects, which are never opened: "
            "save an array of numbers, such as np.stack(list(array))"
        )
    if header.dtype.kind not in kind.kinds or header.dtype.itemsize > 8:
        raise ArtifactError(
            f"{path} must hold {what} as {kind.words}, got {header.dtype.str}: "
            f"convert it, such as with array.astype({kind.example}), and save it again"
        )
    if len(header.shape) not in dimensions:
        expected = " or ".join(str(n) for n in dimensions)
        raise ArtifactError(
            f"{path} must hold {what} in an array of {expected} dimensions, a row an {kind.row}, "
            f"got {len(header.shape)}"
        )
    array = map_array(path, header)
    if not array.size:
        raise ArtifactError(f"{path} must hold {what} of at least one {kind.row}, got an array of shape {header.shape}")
    return array


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Rows to look at at once."""
    rows = max(1, _BLOCK * len(array) // array.size)
    for start in range(0, len(array), rows):
        yield slice(start, min(start + rows, len(array)))


def without_truth_values(array: np.ndarray) -> np.ndarray:
    """Truth values as the bytes that they are in the file, which may be others than 0 and 1."""
    return array.view(np.uint8) if array.dtype == np.bool_ else array


def read_labels(path: Path, lowest: int = 0) -> Labels:
    """Class ids, or multi-hot labels.

    Args:
        path: A .npy file.
        lowest: Class id that may occur: -1 where it stands for no class.

    Raises:
        ArtifactError: If it holds something else.
    """
    array = open_array(path, "labels", (1, 2))
    name = array.dtype.name
    array = without_truth_values(array)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1:
        return Labels(array, _highest_class(path, array, lowest), f"{name} class ids")
    return Labels(_read_multi_hot(path, array), array.shape[1] - 1, f"{name} multi-hot")


def _highest_class(path: Path, array: np.ndarray, lowest: int) -> int:
    """The highest class id, after all were found to be ids."""
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
                f"{path} must hold class ids, whole numbers from {lowest} to {limit} in {array.dtype.name}, "
                f"got {block[row]} in row {rows.start + row}: {remedy}"
            )
        highest = max(highest, int(block.max()))
    return highest


def _read_multi_hot(path: Path, array: np.ndarray) -> np.ndarray:
    """Multi-hot labels as uint8; not copied if they are bytes already."""
    copied = None if array.dtype.itemsize == 1 else np.empty(array.shape, np.uint8)
    for rows in blocks(array):
        block = np.asarray(array[rows])
        ones = block == 1
        strange = ~(ones | (block == 0))
        if strange.any():
            row, column = divmod(int(strange.argmax()), array.shape[1])
            raise ArtifactError(
                f"{path} must hold multi-hot labels, 0 or 1 with a column a class, got {block[row, column]} in row "
                f"{rows.start + row}, column {column}: class ids go into an array of one dimension"
            )
        if copied is not None:
            copied[rows] = ones
    return array.view(np.uint8) if copied is None else copied

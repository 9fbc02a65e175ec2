"""Read pickles that contain only arrays, lists and strings, and refuse all others.

A pickle is a program. CIFAR-10 is published as pickles, so they have to be read. This reader knows only the few names
that an array needs, and replaces each by a function that can do nothing else, so an untrusted file can call nothing.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from deephash_cli.errors import DataError


def read_pickle(path: Path, max_bytes: int) -> Any:
    """Read a pickle of plain containers, numbers, strings and NumPy arrays. Python 2 strings are read as Latin-1.

    Args:
        path: Path of the pickle.
        max_bytes: Largest size of the file accepted, in bytes.

    Raises:
        DataError: If the file is missing, larger than ``max_bytes`` or damaged, or asks for anything else.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise DataError(f"{path} has more than the {max_bytes} bytes expected; get the file from its authors")
        with path.open("rb") as file:
            return _Reader(file, encoding="latin1").load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as pickled arrays: {reason}; get the file from its authors") from error


_NDARRAY = object()  # replaces the class, so that a pickle can name it but not call it


def _reconstruct(kind: object, shape: tuple[int, ...], code: object) -> np.ndarray:  # noqa: ARG001
    """Return an empty array, which the pickle then fills."""
    if kind is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError("an array of an unusual kind")
    return np.empty(0, dtype=np.uint8)


def _frombuffer(content: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if order not in ("C", "F"):
        raise pickle.UnpicklingError("an array of an unusual order")
    return np.frombuffer(bytearray(content), dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _dtype(kind: str, align: object = False, copy: object = False) -> np.dtype:  # noqa: ARG001
    # Old pickles give the two flags as integers, which NumPy deprecates; plain numbers need neither.
    if not isinstance(kind, str) or kind.lstrip("<>|=")[:1] not in ("b", "i", "u", "f"):
        raise pickle.UnpicklingError(f"it holds an array of {kind!r}, not of numbers")
    return np.dtype(kind)


def _encode(text: str, encoding: str) -> bytes:
    """Encode text as bytes; pickle protocol 2 stores bytes in this way."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the unusual encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no array needs") from None

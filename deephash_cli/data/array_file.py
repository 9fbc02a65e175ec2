"""Read an array of numbers from a file of NumPy, MATLAB or HDF5. Nothing in a file is executed.

A .npy file has one array, which stays on disk. A .mat or .h5 file may have several, of which ``file.mat::name`` chooses
one, and the one that is chosen is read into memory. Version 7.3 of MATLAB's files is HDF5 with transposed arrays.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deephash_cli.errors import ArtifactError, ConfigError, short
from deephash_cli.npy import Kind, open_array, require_kind

MATLAB = ".mat"
_HDF5 = (".h5", ".hdf5")
_CHOICE = "::"  # between the name of a file and that of an array in it
_SIGNATURE, _SIGNATURE_AT = b"\x89HDF\r\n\x1a\n", (0, 512, 1024, 2048)
_MOST_COMPRESSED = 1100  # bytes that one byte of a compressed file can stand for
_CLASSES = {"double": "f8", "single": "f4", "logical": "?"} | {
    f"{sign}int{bits}": f"{sign or 'i'}{bits // 8}" for sign in ("u", "") for bits in (8, 16, 32, 64)
}  # types of MATLAB, and those of NumPy


class _Array(NamedTuple):
    """An array in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def load(file: str, what: str, dimensions: tuple[int, ...], kind: Kind) -> np.ndarray:
    """Return an array of numbers from a file, read-only if it is a .npy file.

    Args:
        file: Path of a .npy, .mat, .h5 or .hdf5 file, and ``::`` and the name of an array if a file has several.
        what: Name of the content that the array should hold, for messages: "vectors" or "labels".
        dimensions: Allowed numbers of dimensions. MATLAB has only matrices; a row of labels becomes a column.
        kind: Allowed types of values.

    Raises:
        ArtifactError: If the file is missing or damaged, has several arrays and none is chosen, or the array is empty
            or has other dimensions or types.
        ConfigError: If the file is HDF5 and h5py is not installed.
    """
    path, name = split(file)
    if not _has_names(path):
        return open_array(path, what, dimensions, kind)
    found = _chosen(path, name, what, dimensions, kind)
    with _read_errors(path):
        array = np.ascontiguousarray(found.read())
    return array.reshape(-1) if path.suffix.lower() == MATLAB and what == "labels" and len(array) == 1 else array


def shape(file: str, what: str, dimensions: tuple[int, ...], kind: Kind) -> tuple[int, ...]:
    """Return the shape of the array that ``load`` returns for the same arguments, without reading the array.

    Raises:
        ArtifactError: As ``load`` does.
        ConfigError: As ``load`` does.
    """
    path, name = split(file)
    if not _has_names(path):
        return open_array(path, what, dimensions, kind).shape
    return _chosen(path, name, what, dimensions, kind).shape


def split(file: str) -> tuple[Path, str]:
    """Return the path of a file and the name of the array in it, which is empty if none is chosen."""
    path, _, name = file.rpartition(_CHOICE)
    if path and _has_names(Path(path)):
        return Path(path).expanduser(), name
    return Path(file).expanduser(), ""


def _has_names(path: Path) -> bool:
    return path.suffix.lower() in (MATLAB, *_HDF5)


def _chosen(path: Path, name: str, what: str, dimensions: tuple[int, ...], kind: Kind) -> _Array:
    arrays = _arrays(path)
    if name and name not in arrays:
        raise ArtifactError(f"{path} has no array of numbers called {short(name)}; it has {_listed(arrays)}")
    if not name and len(arrays) != 1:
        example = f": choose one, such as {path}{_CHOICE}{next(iter(arrays))}" if arrays else "; give a file with one"
        raise ArtifactError(f"{path} must hold {what} in one array of numbers, but it has {_listed(arrays)}{example}")
    name = name or next(iter(arrays))
    found = arrays[name]
    require_kind(f"{path}{_CHOICE}{name}", found.dtype, found.shape, what, dimensions, kind)
    return found


def _listed(arrays: Mapping[str, _Array]) -> str:
    some = ", ".join(short(name) for name in list(arrays)[:10]) + (", ..." if len(arrays) > 10 else "")
    return some or "none"


def _arrays(path: Path) -> dict[str, _Array]:
    """Return the arrays of numbers in a file by their names."""
    try:
        with path.open("rb") as file:
            start = file.read(max(_SIGNATURE_AT) + len(_SIGNATURE))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except OSError as error:
        raise ArtifactError(f"could not read {path}: {error.strerror or error}") from error
    is_hdf5 = any(start[place:].startswith(_SIGNATURE) for place in _SIGNATURE_AT)
    if not is_hdf5 and path.suffix.lower() in _HDF5:
        raise ArtifactError(f"{path} is not an HDF5 file, or it was damaged; write it again")
    with _read_errors(path):
        return dict(_of_hdf5(path) if is_hdf5 else _of_matlab(path))


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ArtifactError, ConfigError):
        raise
    except Exception as error:  # both libraries raise errors of many kinds for files that are damaged
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArtifactError(f"{path} cannot be read, so it was damaged or has another format: {reason}") from error


def _of_matlab(path: Path) -> Iterator[tuple[str, _Array]]:
    from scipy.io import loadmat, whosmat  # takes a third of a second

    for name, its_shape, its_class in whosmat(path):
        if its_class in _CLASSES:
            dtype = np.dtype(_CLASSES[its_class])
            yield name, _Array(its_shape, dtype, lambda name=name: loadmat(path, variable_names=[name])[name])


def _of_hdf5(path: Path) -> Iterator[tuple[str, _Array]]:
    try:
        import h5py
    except ImportError as error:
        version = " of version 7.3" if path.suffix.lower() == MATLAB else ""
        raise ConfigError(f"{path} is an HDF5 file{version}, which needs h5py: pip install 'deephash[hdf5]'") from error
    turned = path.suffix.lower() == MATLAB
    found: list[tuple[str, _Array]] = []

    def look_at(name: str, item: Any) -> None:
        its_class = item.attrs.get("MATLAB_class", b"double")
        if name.startswith("#") or (isinstance(its_class, bytes) and its_class.decode("latin-1") not in _CLASSES):
            return  # text, and cells and what is in them
        # What lies in other files is not read, because these could be any files of the user.
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "biuf" or item.external or item.is_virtual:
            return
        if item.nbytes > _MOST_COMPRESSED * path.stat().st_size:
            return  # not written, or forged to exhaust the memory

        def read() -> np.ndarray:
            with h5py.File(path, "r") as again:
                dataset: Any = again[name]
                values = np.asarray(dataset[()])
            return values.T if turned else values

        found.append((name, _Array(item.shape[::-1] if turned else item.shape, item.dtype, read)))

    with h5py.File(path, "r") as file:
        file.visititems(look_at)  # which follows no link to another file
    return iter(found)

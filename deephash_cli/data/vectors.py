"""Load feature vectors made by another program, such as CLIP or a text model, from files of NumPy, MATLAB or HDF5."""

from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Float, UInt8

from deephash_cli.data import array_file
from deephash_cli.data.dataset import RetrievalDataset, Vectors
from deephash_cli.data.identity import composed
from deephash_cli.data.labels import LIMIT
from deephash_cli.data.text import read_text, split_lines
from deephash_cli.errors import ArtifactError, DataError, short
from deephash_cli.npy import FLOATS, NUMBERS, RowNumbers, blocks, labels_of

_CLASSES = 10_000  # class ids up to here are believed, however few the items are


def vectors(file: str | None, labels: str | None, ids: str | None) -> RetrievalDataset:
    """Load vectors, with their labels and ids from separate files, all in the same order.

    Vectors in a .npy file stay on disk and are read on demand. A file may also be .mat, .h5 or .hdf5, and then
    ``file.mat::name`` chooses one of several arrays in it. Nothing in a file is executed.

    Args:
        file: Path of a file of float16, float32 or float64 vectors (n, d); None is an error.
        labels: Path of a file of class ids (n,) or (n, 1), with -1 for an item without a class, or of multi-hot
            labels (n, classes), of 0 and 1 or of -1 and 1; None means that there are no labels.
        ids: Path of a text file with one id per line; None means that the row numbers are the ids.

    Raises:
        ConfigError: If a file is HDF5 and h5py is not installed.
        DataError: If a file is missing or malformed, lengths differ, or a value is not finite as float32.
    """
    if file is None:
        raise DataError(
            "a data set of vectors needs dataset.vectors=<file.npy>, and dataset.labels=<file.npy> if there are labels"
        )
    try:
        array = array_file.load(file, "vectors", (2,), FLOATS)
    except ArtifactError as error:
        raise DataError(f"dataset.vectors: {error}") from error
    images = Vectors(array)
    if not np.isfinite(images.spread.mean).all():  # which reads the vectors only once
        _refuse(file, array)
    count = len(array)
    multi_hot, names, how = np.zeros((count, 0), np.uint8), range(0), ""
    if labels is not None:
        multi_hot, names, how = _labels(labels, file, count)
    return RetrievalDataset(
        name="vectors",
        ids=RowNumbers(np.arange(count)) if ids is None else _ids(Path(ids).expanduser(), file, count),
        labels=multi_hot,
        class_names=[str(number) for number in names],
        images=images,
        reading=(how,),
    )


def _refuse(path: str, array: Float[np.ndarray, "n d"]) -> NoReturn:
    """Raise the error that names the first value that is not finite as float32."""
    for rows in blocks(array):
        with np.errstate(over="ignore"):  # reported below
            broken = ~np.isfinite(array[rows].astype(np.float32))
        if broken.any():
            row, column = divmod(int(broken.argmax()), array.shape[1])
            value = array[rows.start + row, column]
            remedy = (
                "scale the vectors" if np.isfinite(value) else "leave out such vectors, or find the cause of this value"
            )
            raise DataError(
                f"dataset.vectors: {path} must hold numbers that are finite as float32, got {value} in row "
                f"{rows.start + row}, column {column}: {remedy}"
            )
    raise AssertionError("all values are finite")


def _labels(path: str, beside: str, count: int) -> tuple[UInt8[np.ndarray, "n classes"], range, str]:
    """Read the labels. Return them as a multi-hot array in memory, the numbers of the classes, and their format."""
    try:
        found = labels_of(path, array_file.load(path, "labels", (1, 2), NUMBERS), lowest=-1)
    except ArtifactError as error:
        raise DataError(f"dataset.labels: {error}") from error
    if len(found.array) != count:
        raise DataError(
            f"{beside} has {count} vectors but {path} has labels for {len(found.array)} items: each vector needs its "
            "own labels, in the same order"
        )
    if found.array.ndim == 2:
        return np.array(found.array), range(found.array.shape[1]), f"labels: {found.format}"
    classes = found.highest + 1
    if classes > max(count, _CLASSES) or count * classes > LIMIT:
        raise DataError(
            f"dataset.labels: {path} has class ids up to {found.highest}, too many classes for {count} items: number "
            "them 0, 1, 2, ..."
        )
    ids = found.array.astype(np.int64)
    known = np.flatnonzero(ids >= 0)
    if len(known) < count and len(known) and (ids[known] == 1).all():
        raise DataError(
            f"dataset.labels: {path} holds only -1 and 1, which has two meanings; number the classes 0 and 1, or if -1 "
            "stands for no class, give the only class the number 0"
        )
    labels = np.zeros((count, classes), np.uint8)
    labels[known, ids[known]] = 1
    counted_from = 0
    if array_file.split(path)[0].suffix.lower() == array_file.MATLAB and classes and not labels[:, 0].any():
        counted_from = 1  # MATLAB counts from 1, and a class without images would be too small for most protocols
    return labels[:, counted_from:], range(counted_from, classes), f"labels: {found.format}"


def _ids(path: Path, beside: str, count: int) -> list[str]:
    ids = split_lines(read_text(path, f"dataset.ids={path}"))
    while ids and not ids[-1].strip():
        ids.pop()  # empty lines at the end
    if len(ids) != count:
        raise DataError(
            f"{beside} has {count} vectors but {path} has {len(ids)} ids: each line must be the id of a vector, in the "
            "same order"
        )
    seen: dict[str, int] = {}
    for number, identifier in enumerate(ids, start=1):
        if not identifier.strip():
            raise DataError(f"dataset.ids={path}:{number}: the line is empty; each line must be the id of a vector")
        before = seen.setdefault(composed(identifier), number)
        if before != number:
            raise DataError(
                f"dataset.ids={path}:{number}: the id {short(identifier)!r} is already in line {before}; ids must be "
                "unique, so rename one of the two"
            )
    return ids

"""Load feature vectors made by another program, such as CLIP or a text model, from NumPy files."""

from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Float, UInt8

from deephash_cli.data.dataset import RetrievalDataset, Vectors
from deephash_cli.data.identity import composed
from deephash_cli.data.labels import LIMIT
from deephash_cli.data.text import read_text, split_lines
from deephash_cli.errors import ArtifactError, DataError, short
from deephash_cli.npy import FLOATS, RowNumbers, blocks, open_array, read_labels

_CLASSES = 10_000  # class ids up to here are believed, however few the items are


def vectors(file: str | None, labels: str | None, ids: str | None) -> RetrievalDataset:
    """Load vectors, with their labels and ids from separate files, all in the same order.

    The vectors stay on disk and are read on demand. Nothing in a file is executed.

    Args:
        file: Path of a .npy file of float16, float32 or float64 vectors (n, d); None is an error.
        labels: Path of a .npy file of class ids (n,) or (n, 1), with -1 for an item without a class, or of multi-hot
            labels (n, classes), of 0 and 1 or of -1 and 1; None means that there are no labels.
        ids: Path of a text file with one id per line; None means that the row numbers are the ids.

    Raises:
        DataError: If a file is missing or malformed, lengths differ, or a value is not finite as float32.
    """
    if file is None:
        raise DataError(
            "a data set of vectors needs dataset.vectors=<file.npy>, and dataset.labels=<file.npy> if there are labels"
        )
    path = Path(file).expanduser()
    try:
        array = open_array(path, "vectors", (2,), FLOATS)
    except ArtifactError as error:
        raise DataError(f"dataset.vectors: {error}") from error
    images = Vectors(array)
    if not np.isfinite(images.spread.mean).all():  # which reads the vectors only once
        _refuse(path, array)
    count = len(array)
    multi_hot, how = np.zeros((count, 0), np.uint8), ""
    if labels is not None:
        multi_hot, how = _labels(Path(labels).expanduser(), path, count)
    return RetrievalDataset(
        name="vectors",
        ids=RowNumbers(np.arange(count)) if ids is None else _ids(Path(ids).expanduser(), path, count),
        labels=multi_hot,
        class_names=[str(column) for column in range(multi_hot.shape[1])],
        images=images,
        reading=(how,),
    )


def _refuse(path: Path, array: Float[np.ndarray, "n d"]) -> NoReturn:
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


def _labels(path: Path, beside: Path, count: int) -> tuple[UInt8[np.ndarray, "n classes"], str]:
    """Read the labels. Return them as a multi-hot array in memory, and how the file was understood."""
    try:
        found = read_labels(path, lowest=-1)
    except ArtifactError as error:
        raise DataError(f"dataset.labels: {error}") from error
    if len(found.array) != count:
        raise DataError(
            f"{beside} has {count} vectors but {path} has labels for {len(found.array)} items: each vector needs its "
            "own labels, in the same order"
        )
    if found.array.ndim == 2:
        return np.array(found.array), f"labels: {found.format}"
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
    return labels, f"labels: {found.format}"


def _ids(path: Path, beside: Path, count: int) -> list[str]:
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

"""Load feature vectors made by another program, such as CLIP or a text model, from NumPy files."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from deephash_cli.data.dataset import RetrievalDataset, Vectors
from deephash_cli.errors import ArtifactError, DataError
from deephash_cli.npy import FLOATS, RowNumbers, blocks, open_array, read_labels

_LABELS_LIMIT = 2**31  # largest number of entries in the multi-hot labels made from class ids


def vectors(file: str | None, labels: str | None, ids: str | None) -> RetrievalDataset:
    """Load vectors, with their labels and ids from separate files, all in the same order.

    The vectors stay on disk and are read on demand. Nothing in a file is executed.

    Args:
        file: Path of a .npy file of float16, float32 or float64 vectors (n, d); None is an error.
        labels: Path of a .npy file of class ids (n,) or (n, 1), with -1 for an item without a class, or of multi-hot
            labels (n, classes); None means that there are no labels.
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
    _require_finite(path, array)
    count = len(array)
    multi_hot = np.zeros((count, 0), np.uint8) if labels is None else _labels(Path(labels).expanduser(), path, count)
    return RetrievalDataset(
        name="vectors",
        ids=RowNumbers(np.arange(count)) if ids is None else _ids(Path(ids).expanduser(), path, count),
        labels=multi_hot,
        class_names=[str(column) for column in range(multi_hot.shape[1])],
        images=Vectors(array),
    )


def _require_finite(path: Path, array: Float[np.ndarray, "n d"]) -> None:
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


def _labels(path: Path, beside: Path, count: int) -> UInt8[np.ndarray, "n classes"]:
    """Read the labels, and return them as a multi-hot array in memory."""
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
        return np.array(found.array)
    classes = found.highest + 1
    if count * classes > _LABELS_LIMIT:
        raise DataError(
            f"dataset.labels: {path} has class ids up to {found.highest}, too many classes for {count} items: number "
            "them 0, 1, 2, ..."
        )
    ids = found.array.astype(np.int64)
    known = np.flatnonzero(ids >= 0)
    labels = np.zeros((count, classes), np.uint8)
    labels[known, ids[known]] = 1
    return labels


def _ids(path: Path, beside: Path, count: int) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"dataset.ids={path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"dataset.ids={path} is not UTF-8 text; save it as UTF-8") from error
    ids = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if len(ids) != count:
        raise DataError(
            f"{beside} has {count} vectors but {path} has {len(ids)} ids: each line must be the id of a vector, in the "
            "same order"
        )
    return ids

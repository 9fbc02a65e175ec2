"""Write a division as the list files that are common in the field: on each line an id and a 0 or 1 for each class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.protocol import Split
from deephash_cli.errors import DataError
from deephash_cli.files import atomic_write, write_text
from deephash_cli.npy import ids_at

# Name of the list of each part; the queries are called test in the lists of the field.
LISTS = {"train": "train.txt", "query": "test.txt", "database": "database.txt"}
CLASSES = "classes.txt"
_BLOCK = 2**14  # lines that are written at a time


def write_lists(folder: Path, dataset: RetrievalDataset, split: Split) -> None:
    """Write train.txt, test.txt and database.txt, and classes.txt with the names of the label columns.

    A tab separates an id that has a space in it from its labels.

    Args:
        folder: Folder that exists.
        dataset: Data set that ``split`` divides.
        split: The division.

    Raises:
        DataError: If the data set has fewer than two classes, or an id that a list cannot hold.
        ArtifactError: If a file cannot be written.
    """
    if len(dataset.class_names) < 2:
        raise DataError(
            f"list files have a column for each of at least two classes, but data set {dataset.name} has "
            f"{len(dataset.class_names)}: write a split.json, with output=<file.json>"
        )
    for role, name in LISTS.items():
        rows = getattr(split, role)
        with atomic_write(folder / name) as file:
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                file.writelines(_lines(ids_at(dataset.ids, block), dataset.labels[block]))
    write_text(folder / CLASSES, "".join(f"{name}\n" for name in dataset.class_names))


def _lines(ids: Sequence[str], labels: UInt8[np.ndarray, "n classes"]) -> Iterator[bytes]:
    columns = np.full((len(labels), 2 * labels.shape[1]), ord(" "), np.uint8)
    columns[:, ::2] = labels + ord("0")
    columns[:, -1] = ord("\n")
    for identifier, own in zip(ids, columns, strict=True):
        if "\t" in identifier or identifier != identifier.strip():
            raise DataError(
                f"the id {identifier!r} has a tab or outer spaces, which a list file cannot hold; rename it"
            )
        mark = "\t" if " " in identifier else " "
        yield f"{identifier}{mark}".encode() + own.tobytes()

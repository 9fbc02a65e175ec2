"""Load a published data set from the lists of the field: train.txt, test.txt and database.txt in one folder.

Each line has the path of an image and a 0 or 1 for each class, as in the lists of HashNet and of the many projects that
copied them. The lists are the division, so the numbers can stand beside those of everybody who used the same lists.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.image_list import read_lists
from deephash_cli.data.list_files import LISTS
from deephash_cli.data.location import candidate_folders
from deephash_cli.data.published import require_counts
from deephash_cli.errors import DataError

_PARTS = {"train": "training images", "query": "queries", "database": "images in the database"}


def from_lists(
    name: str,
    title: str,
    lists: str | Path,
    root: str | Path | None,
    orders: Sequence[Sequence[str]],
    published: Mapping[str, Sequence[int]],
    incomplete: bool,
    folder: str = "",
    most: str = "",
) -> RetrievalDataset:
    """Load a data set from its usual lists, which become its official division.

    Most lists do not name their columns, and those of one data set have them in different orders. The class that is
    known to have the most images tells which order a list has; if it tells none, classes have numbers for names.

    Args:
        name: Name of the data set.
        title: Name of the data set for people.
        lists: Folder that holds the three lists.
        root: Folder that the paths in the lists start from, or the end of these paths if the lists were written on
            another machine; None searches the usual folders, and then the folder of the lists.
        orders: Names of the classes in the order of the columns, in each order that lists are known to have.
        published: For ``train``, ``query`` and ``database`` the numbers of images that published lists have.
        incomplete: Whether other numbers are accepted.
        folder: Name of the data set's folder among the usual ones, if it is not ``name``.
        most: Name of the class that has the most images; empty if the order needs no check.

    Raises:
        DataError: If a list is missing or malformed, has another number of classes or images than published, or names
            images that do not exist.
    """
    place = Path(lists).expanduser()
    missing = [file for file in LISTS.values() if not (place / file).is_file()]
    if missing:
        raise DataError(
            f"dataset.lists={place} has no {missing[0]}: it must be a folder with {', '.join(LISTS.values())}, each "
            "line a path and a 0 or 1 for each class"
        )
    folders = [found for found in candidate_folders(folder or name, root) if root is not None or found.is_dir()]
    data = read_lists({role: place / file for role, file in LISTS.items()}, (folders or [place])[0], moved=True)
    if len(data.class_names) != len(orders[0]):
        raise DataError(
            f"the lists in {place} have {len(data.class_names)} columns of labels, but {title} has {len(orders[0])} "
            "classes; give the lists of this data set"
        )
    found = {role: len(rows) for role, rows in (data.official or {}).items()}
    expected = {role: found[role] if found[role] in counts else counts[0] for role, counts in published.items()}
    counted = require_counts(title, _in_words(found), _in_words(expected), incomplete)
    return dataclasses.replace(
        data,
        name=name,
        class_names=_class_names(data, orders, most),
        reading=(f"lists in {place}", counted, _unlabelled(data)),
    )


def _in_words(counts: Mapping[str, int]) -> dict[str, int]:
    return {_PARTS[role]: count for role, count in counts.items()}


def _unlabelled(data: RetrievalDataset) -> str:
    counts = {role: int((~data.labels[rows].any(axis=1)).sum()) for role, rows in (data.official or {}).items()}
    return ", ".join(f"{count:,} {part} without a label" for part, count in _in_words(counts).items() if count)


def _class_names(data: RetrievalDataset, orders: Sequence[Sequence[str]], most: str) -> list[str]:
    numbered = [f"class {number}" for number in range(len(data.class_names))]
    if data.class_names != numbered:
        return data.class_names  # a line at the beginning of the lists names them
    highest = int(data.labels.sum(axis=0, dtype=np.int64).argmax())
    return next((list(names) for names in orders if not most or names[highest] == most), numbered)

"""Load data sets from list files, in which each line has an image's path and a column of 0 or 1 for each class.

This is the usual format of the field: HashNet's lists for NUS-WIDE, MS-COCO and ImageNet-100, and those of the many
projects after it, have it. A published division can therefore be used as it is. Other projects write a single column
with the number of the class.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.decoding import endings
from deephash_cli.data.identity import ImageNames, shown
from deephash_cli.data.labels import from_columns, is_number
from deephash_cli.data.leniency import is_lenient, refuse
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.data.text import lines
from deephash_cli.errors import DataError, short
from deephash_cli.names import Names

_LINE = "a path and a 0 or 1 for each class, or a path and a class number"
_TRIED = 10  # lines of a list that are tried to find where its images are on this machine


def image_list(root: str | Path | None, train: str | None, query: str | None, database: str | None) -> RetrievalDataset:
    """Load the images named in list files, which are also the official division.

    An image may be in both the training list and the database list; it is still one row of the data set, even if the
    lists spell its path in different ways. The labels of all lists together decide how they are read: a single column
    holds class numbers, several columns have one for each class.

    Args:
        root: Folder that the paths in the lists start from; None means the current folder.
        train: Path of the list of training images, from the current folder or from ``root``; None is an error.
        query: Path of the list of queries, found in the same way; None is an error.
        database: Path of the list of images to search, found in the same way; None means the training images.

    Raises:
        DataError: If a list is missing or malformed, or names images that do not exist.
    """
    folder = Path(root if root is not None else ".").expanduser()
    given = {"train": train, "query": query, "database": database}
    for role in ("train", "query"):
        if given[role] is None:
            raise DataError(f"an image list needs dataset.{role}=<file>, each line {_LINE}")
    return read_lists({role: _find(role, name, folder) for role, name in given.items() if name is not None}, folder)


def read_lists(files: Mapping[str, Path], folder: Path, moved: bool = False) -> RetrievalDataset:
    """Load the images named in list files, as ``image_list`` does.

    Args:
        files: The list of each part: ``train``, ``query`` and, optionally, ``database``.
        folder: Folder that the paths in the lists start from.
        moved: Whether the lists may name folders of the machine on which they were written: the beginning of their
            paths is left out if only the rest exists below ``folder``.

    Raises:
        DataError: If a list is malformed, or names images that do not exist.
    """
    lists = {role: _read(file, folder, moved) for role, file in files.items()}
    if is_lenient():
        lists = _of_one_width(lists)
    images = ImageNames(folder)
    rows = {
        role: images.rows(
            [entry.path for entry in found.entries], [entry.place for entry in found.entries], "remove one of the two"
        )
        for role, found in lists.items()
    }
    spaces = any(" " in path for path in images.missing)
    images.require_all("list files", ", or put a tab after a path with spaces" if spaces else "")
    headers = list({found.header for found in lists.values() if found.header is not None})
    if len(headers) > 1:
        raise DataError(f"the header lines of the lists differ: {short(str(headers[0]))} and {short(str(headers[1]))}")
    entries = [entry for found in lists.values() for entry in found.entries]
    read = from_columns(
        [entry.columns for entry in entries], [entry.place for entry in entries], headers[0] if headers else None
    )
    numbers = [number for own in rows.values() for number in own]
    labels = np.zeros((len(images.ids), len(read.class_names)), np.uint8)
    first: dict[int, int] = {}
    for position, number in enumerate(numbers):
        before = first.setdefault(number, position)
        if before == position:
            labels[number] = read.labels[position]
        elif not np.array_equal(labels[number], read.labels[position]):
            refuse(
                DataError(
                    f"{entries[position].place}: {entries[position].path} has different labels in "
                    f"{entries[before].place}; make them equal"
                )
            )
    names = Names(images.ids)
    return RetrievalDataset(
        name="image_list",
        ids=names,
        labels=labels,
        class_names=read.class_names,
        images=in_memory_if_small(ImageFiles(names, folder)),
        official={role: np.array([*dict.fromkeys(own)], dtype=np.int64) for role, own in rows.items()},
        reading=(read.how,),
    )


def paths_in(path: Path, root: Path) -> list[str]:
    """Return the paths in a list file, as they are written.

    Args:
        path: The list file.
        root: Folder that the paths start from; it decides what a path with spaces is.

    Raises:
        DataError: If the list is missing or malformed.
    """
    return [entry.path for entry in _read(path, root, moved=False).entries]


class _Entry(NamedTuple):
    path: str
    columns: list[str]
    place: str  # file and line


class _List(NamedTuple):
    header: tuple[str, ...] | None  # class names, if the first line gives them
    entries: list[_Entry]


def _find(role: str, name: str, root: Path) -> Path:
    places = [Path(name).expanduser(), root / name]
    for place in places:
        if os.path.isfile(place):  # noqa: PTH113  Path.is_file raises if the name is too long
            return place
    tried = " nor ".join(dict.fromkeys(short(str(place)) for place in places))
    raise DataError(f"dataset.{role}={short(name)} is not a file: found neither {tried}")


def _read(path: Path, root: Path, moved: bool) -> _List:
    found = [
        _Entry(*_parse(line, f"{path}:{number}", root), f"{path}:{number}")
        for number, line in enumerate(lines(path), 1)
    ]
    header = None
    if found and _is_header(found[0], root):
        header = tuple(shown(column) for column in found[0].columns)
        found = found[1:]
    if not found:
        raise DataError(f"{path} is empty; each line must be {_LINE}")
    for entry in found:
        if not entry.columns:
            raise DataError(f"{entry.place}: no labels after the path; a line must be {_LINE}")
    return _List(header, _at_home(found, root) if moved else found)


def _at_home(entries: list[_Entry], root: Path) -> list[_Entry]:
    """Leave out the beginning that the paths of a list have in common, if only the rest of them exists below a root."""
    for entry in entries[:_TRIED]:
        if (root / entry.path).exists():
            break
        ends = [number + 1 for number, character in enumerate(entry.path) if character in "/\\"]
        beginning = next((entry.path[:end] for end in ends if (root / entry.path[end:]).is_file()), "")
        if beginning:
            return [other._replace(path=other.path.removeprefix(beginning)) for other in entries]
    return entries


def _of_one_width(lists: Mapping[str, _List]) -> dict[str, _List]:
    """Leave out the lines that have another number of label columns than most lines have."""
    width = Counter(len(entry.columns) for found in lists.values() for entry in found.entries).most_common(1)[0][0]
    kept = {}
    for role, found in lists.items():
        fitting = [entry for entry in found.entries if len(entry.columns) == width]
        if wrong := [entry for entry in found.entries if len(entry.columns) != width]:
            refuse(
                DataError(
                    f"{wrong[0].place}: expected {width} label columns, as in most lines, got {len(wrong[0].columns)}; "
                    f"correct it, and all lines of the {role} list with another number of columns ({len(wrong)})"
                )
            )
        kept[role] = _List(found.header, fitting)
    return kept


def _parse(line: str, place: str, root: Path) -> tuple[str, list[str]]:
    """Return a line's path and its label columns.

    If there is a tab, it separates the two. Otherwise the path ends at the first space, unless it has spaces itself:
    then the labels are the numbers at the end.
    """
    line = line.rstrip()
    path, _, rest = line.partition("\t" if "\t" in line else " ")
    columns = rest.split()
    if not path.strip():
        raise DataError(f"{place}: the path is empty; a line must be {_LINE}")
    if "," in line and is_number(line.rpartition(",")[2].strip()):
        raise DataError(
            f"{place}: the columns are separated by commas; separate them by spaces, or give a table with dataset=csv"
        )
    if "\t" not in line and not all(is_number(column) for column in set(columns)):
        longer, numbers = line.strip(), []
        while (parts := longer.rsplit(maxsplit=1)) and len(parts) == 2 and is_number(parts[1]):
            longer = parts[0]
            numbers.insert(0, parts[1])
        if numbers and not os.path.isfile(root / path):  # noqa: PTH113  as above
            return longer, numbers
    return path.strip(), columns


def _is_header(entry: _Entry, root: Path) -> bool:
    """Whether the first line of a list names the columns: it has no number, and its path is not that of an image."""
    if not entry.columns or any(is_number(column) for column in entry.columns):
        return False
    return Path(entry.path).suffix.lower() not in endings() and not os.path.exists(root / entry.path)  # noqa: PTH110

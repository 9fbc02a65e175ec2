"""Load data sets from list files, in which each line has an image's path and a column of 0 or 1 for each class.

This is the usual format of the field: HashNet's lists for NUS-WIDE, MS-COCO and ImageNet-100, and those of the many
projects after it, have it. A published division can therefore be used as it is.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, missing_images
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.errors import DataError


def image_list(root: str | Path | None, train: str | None, query: str | None, database: str | None) -> RetrievalDataset:
    """Load the images named in list files, which are also the official division.

    An image may be in both the training list and the database list; it is still one row of the data set.

    Args:
        root: Folder that the paths in the lists start from; None means the current folder.
        train: Path of the list of training images, from the current folder or from ``root``; None is an error.
        query: Path of the list of queries, found in the same way; None is an error.
        database: Path of the list of images to search, found in the same way; None means the training images.

    Raises:
        DataError: If a list is missing or malformed, or names images that do not exist.
    """
    folder = Path(root if root is not None else ".").expanduser()
    lists = {"train": train, "query": query, "database": database}
    for role in ("train", "query"):
        if lists[role] is None:
            raise DataError(f"an image list needs dataset.{role}=<file>, each line a path and a 0 or 1 for each class")
    rows: dict[str, _Row] = {}
    official = {}
    first = None
    for role, name in lists.items():
        if name is not None:
            numbers, first = _read_list(_find(role, name, folder), rows, first)
            official[role] = np.array(numbers, dtype=np.int64)
    missing = [name for name in rows if not (folder / name).is_file()]
    if missing:
        raise missing_images("list files", folder, missing)
    labels = np.stack([row.labels for row in rows.values()])
    return RetrievalDataset(
        name="image_list",
        ids=list(rows),
        labels=labels,
        class_names=[f"class {number}" for number in range(labels.shape[1])],
        images=in_memory_if_small(ImageFiles([Path(name) for name in rows], folder)),
        official=official,
    )


@dataclass(frozen=True)
class _Row:
    number: int
    labels: np.ndarray
    place: str  # the file and line that first named it


def _find(role: str, name: str, root: Path) -> Path:
    places = [Path(name).expanduser(), root / name]
    for place in places:
        if place.is_file():
            return place
    tried = " nor ".join(dict.fromkeys(str(place) for place in places))
    raise DataError(f"dataset.{role}={name} is not a file: found neither {tried}")


def _read_list(path: Path, rows: dict[str, _Row], first: _Row | None) -> tuple[list[int], _Row]:
    """Add a list's images to ``rows``; return their row numbers and the first row of all, which fixes the width."""
    numbers = []
    here: dict[str, int] = {}
    for line_number, line in enumerate(lines(path), start=1):
        place = f"{path}:{line_number}"
        name, labels = _parse(line, place)
        if first is not None and len(labels) != len(first.labels):
            raise DataError(
                f"{place}: expected {len(first.labels)} label columns, as in {first.place}, got {len(labels)}"
            )
        if name in here:
            raise DataError(f"{place}: {name} is already in line {here[name]}; remove one of the two")
        here[name] = line_number
        row = rows.setdefault(name, _Row(len(rows), labels, place))
        if not np.array_equal(row.labels, labels):
            raise DataError(f"{place}: {name} has different labels in {row.place}; make them equal")
        first = first or row
        numbers.append(row.number)
    if first is None or not numbers:
        raise DataError(f"{path} is empty; each line must be a path and a 0 or 1 for each class")
    return numbers, first


def lines(path: Path) -> list[str]:
    """Return the lines of a list file.

    Raises:
        DataError: If the file cannot be read, or is not UTF-8 (the message then names the line).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text; save the list as UTF-8") from error
    return text.rstrip().split("\n") if text.strip() else []


def _parse(line: str, place: str) -> tuple[str, np.ndarray]:
    """Return a line's path and labels. If there is a tab, it separates the two, so that paths may contain spaces."""
    line = line.rstrip()
    name, _, rest = line.partition("\t" if "\t" in line else " ")
    columns = rest.split()
    if not name.strip():
        raise DataError(f"{place}: the path is empty; a line must be a path and a 0 or 1 for each class")
    if not columns:
        raise DataError(f"{place}: no labels after the path; a line must be a path and a 0 or 1 for each class")
    digits = "".join(columns)
    if len(digits) != len(columns) or digits.strip("01"):
        wrong = next(column for column in columns if column not in ("0", "1"))
        raise DataError(
            f"{place}: labels must be 0 or 1, got {wrong!r} (a path with spaces needs a tab between it and the labels)"
        )
    return name.strip(), np.frombuffer(digits.encode("ascii"), dtype=np.uint8) - ord("0")

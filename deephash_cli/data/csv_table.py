"""Load your own images from a CSV table: path and, optionally, class names and the parts each image belongs to."""

import csv
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deephash_cli.data import labels
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.identity import ImageNames, canonical, shown
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.data.text import read_text
from deephash_cli.errors import DataError, short
from deephash_cli.names import Names

_ROLES = ("train", "query", "database")
_COLUMNS = ("path", "labels", "split")
_MEANT = {
    "path": ("file", "filename", "filepath", "file_name", "image", "image_path", "img", "id"),
    "labels": ("class", "classes", "class_name", "category", "categories", "tag", "tags", "target", "targets"),
}  # usual names for the same column in other programs
_PARTS = {
    **{role: role for role in _ROLES},
    **dict.fromkeys(("val", "valid", "validation", "dev"), ""),
    "training": "train",
    **dict.fromkeys(("test", "testing", "queries"), "query"),
    **dict.fromkeys(("gallery", "db", "retrieval"), "database"),
}  # the part that is meant by a word; "" if it may be any


def csv_table(root: str | Path | None, file: str | None) -> RetrievalDataset:
    """Load the images named in a CSV file with the columns ``path`` and, optionally, ``labels`` and ``split``.

    Several labels or several parts in a cell are separated by ``;``: ``red;shoe``, ``train;database``; see
    ``labels.from_cells`` for other notations. A row without labels is an image that is relevant to no query. A table
    without the column is a data set without labels. A row with an empty ``split`` is in no part.

    Args:
        root: Folder that the paths in the table start from; None means the folder of the table.
        file: Path of the CSV file; None is an error.

    Raises:
        DataError: If no table is given, or it is missing or malformed, or names images that do not exist.
    """
    if file is None:
        raise DataError("a table needs dataset.file=<file.csv>, with the column path, and optionally labels and split")
    path = Path(file).expanduser()
    folder = Path(root).expanduser() if root is not None else path.parent
    table = _read(path)
    images = ImageNames(folder)
    images.rows(_paths(table), table.places, "merge the two rows")
    images.require_all(str(path))
    if "labels" in table.columns:
        read = labels.from_cells(table.columns["labels"], table.places)
    else:
        read = labels.Labels(np.zeros((len(images.ids), 0), np.uint8), [], "")
    unused = [name for name in table.columns if name not in _COLUMNS]
    _require_no_meaning(path, table, unused)
    official = _official(table) if "split" in table.columns else None
    names = Names(images.ids)
    return RetrievalDataset(
        name="csv",
        ids=names,
        labels=read.labels,
        class_names=read.class_names,
        images=in_memory_if_small(ImageFiles(names, folder)),
        official=official,
        reading=(read.how, f"not used: column{'s' * (len(unused) > 1)} {', '.join(unused)}" if unused else ""),
    )


class _Table(NamedTuple):
    columns: dict[str, list[str]]  # the cells of each column, by its name; path, labels and split in small letters
    places: list[str]  # file and line of each row


def _read(path: Path) -> _Table:
    """Read all cells of a table."""
    text = read_text(path, f"dataset.file={path}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = _header(path, next(reader, []))
        cells, places = [], []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue  # an empty line, or one of commas alone, as spreadsheets write
            if len(row) != len(names):
                raise DataError(
                    f"{path}:{reader.line_num}: expected {len(names)} columns, got {len(row)}; quote values "
                    "that contain a comma"
                )
            cells.append(row)
            places.append(f"{path}:{reader.line_num}")
    except csv.Error as error:
        quote = (
            ", for example because a quote is missing"
            if "field" in str(error) or "unexpected end" in str(error)
            else ""
        )
        raise DataError(
            f"{path}:{reader.line_num}: cannot be read as a table: {error}{quote}; correct this line or those above"
        ) from error
    if not cells:
        raise DataError(f"{path} has no rows below its first line; add a row for each image")
    columns = [list(column) for column in zip(*cells, strict=True)]
    return _Table({name: column for name, column in zip(names, columns, strict=True) if name}, places)


def _header(path: Path, row: Sequence[str]) -> list[str]:
    """Return the names of the columns: path, labels and split in small letters, "" for a column without a name."""
    names = [shown(name) for name in row]
    if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in row[0]), None)):
        kind = {"\t": "tabs"}.get(mark, mark)
        raise DataError(f"{path}: the columns are separated by {kind}, expected commas; save the table with commas")
    known = {**{name: name for name in _COLUMNS}, "label": "labels"}
    names = [known.get(canonical(name).casefold(), name) for name in names]
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if name and seen.setdefault(canonical(name), number) != number:
            both = " and ".join(repr(row[at]) for at in (seen[canonical(name)], number))
            raise DataError(f"{path}: two columns are named {name}: {both}; remove or rename one of the two")
    for wanted in ("path", "labels"):
        meant = [name for name in names if name.casefold().replace(" ", "_") in _MEANT[wanted]]
        if wanted not in names and meant:
            raise DataError(f"{path}: there is no column {wanted}, but a column {meant[0]}; rename it to {wanted}")
    for name in names:
        if near := difflib.get_close_matches(name.casefold(), [name for name in _COLUMNS if name not in names], 1, 0.8):
            raise DataError(f"{path}: there is no column {near[0]}, but a column {name}; rename one that was misspelt")
    if "path" not in names:
        raise DataError(
            f"{path}: the first line must name the columns, path and optionally labels and split, got "
            f"{short(', '.join(names))!r}"
        )
    return names


def _paths(table: _Table) -> list[str]:
    paths = [cell.strip() for cell in table.columns["path"]]
    if "" in paths:
        raise DataError(f"{table.places[paths.index('')]}: the path is empty")
    return paths


def _official(table: _Table) -> dict[str, np.ndarray]:
    """Read the column split: the rows of each part."""
    parts = []
    for cell, place in zip(table.columns["split"], table.places, strict=True):
        own = [word.casefold() for word in re.split(r"[\s;|,'\"\[\](){}]+", canonical(cell)) if word]
        unknown = [word for word in own if word not in _ROLES]
        if unknown:
            meant = f", which is probably {_PARTS[unknown[0]]} here" if _PARTS.get(unknown[0]) else ""
            raise DataError(
                f"{place}: split must be train, query or database, got {short(unknown[0])!r}{meant}; separate several "
                "parts by ;, and leave the cell empty for an image in no part"
            )
        parts.append(own)
    rows = {role: np.array([number for number, own in enumerate(parts) if role in own], np.int64) for role in _ROLES}
    return {role: numbers for role, numbers in rows.items() if len(numbers)}


def _require_no_meaning(path: Path, table: _Table, unused: Sequence[str]) -> None:
    """Refuse columns that are not used although their values say that they are a division or labels."""
    values = {name: {canonical(cell).casefold() for cell in table.columns[name]} - {""} for name in unused}
    for name in unused:
        if "split" not in table.columns and len(values[name]) > 1 and values[name] <= _PARTS.keys():
            raise DataError(
                f"{path}: the column {name} holds {', '.join(sorted(values[name]))}, but a division must be in the "
                "column split, as train, query or database; rename it, or remove it to draw queries at random"
            )
    if "labels" not in table.columns:
        marks = [name for name in unused if values[name] and values[name] <= {"0", "1", "0.0", "1.0", "true", "false"}]
        if marks:
            raise DataError(
                f"{path}: there is no column labels, and {short(', '.join(marks))} hold 0 or 1; write the names of an "
                "image's classes in one column labels, separated by ;, or remove these columns"
            )

"""Read labels as people write them: names in the cells of a table, numbers in the columns of a list.

Each reading is decided for the whole column, never for a single cell. What has two meanings is refused.
"""

import ast
import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from deephash_cli.data.identity import canonical, joined, shown
from deephash_cli.errors import DataError, short

LIMIT = 2**31  # largest number of entries in multi-hot labels

# What pandas and NumPy write for a missing value, if it is made into text.
_MISSING = ("nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT")
_CALL = re.compile(r"(?:\w+\.)?(?:array|frozenset|set|tuple|list|Index)\((.*?)(?:,\s*dtype=[^\]]*)?\)", re.DOTALL)
# A text in quotes, in which nothing is replaced; or np.str_('a'), as NumPy 2 writes an item of a list.
_SCALAR = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?:np|numpy)\.\w+\(([^()]*)\)""", re.DOTALL)
_ITEM = re.compile(
    r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?\d+(?:\.\d*)?)\s*(?:,|(?=['"\s\d+-])|$)""", re.DOTALL
)
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")


def is_number(text: str) -> bool:
    """Whether a text is a decimal number."""
    return _NUMBER.fullmatch(text) is not None


class Labels(NamedTuple):
    """Labels that were read from text."""

    labels: UInt8[np.ndarray, "n classes"]
    class_names: list[str]
    how: str  # how the text was understood, for people


def from_cells(cells: Sequence[str], places: Sequence[str]) -> Labels:
    """Read the class names in a column of a table.

    Several names in a cell are separated by ``;`` or ``|``, the same one in the whole column, or are written as a list,
    as pandas writes lists, tuples, sets and arrays. An empty cell is an image without labels. Spellings that look the
    same when printed are one class.

    Args:
        cells: Text of each cell.
        places: File and line of each cell, for messages.

    Raises:
        DataError: If a cell has two meanings, or seems to hold something else than class names.
    """
    lists = [_items_of_list(cell, place) for cell, place in zip(cells, places, strict=True)]
    if any(items is not None for items in lists):
        rows, how = _rows_of_lists(cells, lists, places), "labels are lists"
    else:
        rows, how = _rows_of_text(cells, places)
    rows = [[_name(item) for item in row if canonical(item)] for row in rows]
    for row, place in zip(rows, places, strict=True):
        for name in row:
            _require_name(name, place)
    _require_no_numbers(rows, places)
    spelling = joined(name for row in rows for name in row)
    class_names = sorted(spelling.values())
    column = {name: number for number, name in enumerate(class_names)}
    numbers = [sorted({column[spelling[canonical(name)]] for name in row}) for row in rows]
    return Labels(_multi_hot(numbers, len(class_names), places[0]), class_names, how)


def from_columns(columns: Sequence[Sequence[str]], places: Sequence[str], names: Sequence[str] | None) -> Labels:
    """Read the numbers after the paths of list files, all lists together.

    A single column holds class numbers. If there are several columns, each stands for a class: 1 for an image of the
    class, and 0 or, in all lists, -1 for one that is not.

    Args:
        columns: Text of the label columns of each line.
        places: File and line of each, for messages.
        names: Class names that a header line gives; None if there is none.

    Raises:
        DataError: If lines differ in their number of columns, or a number has no meaning or two.
    """
    width = len(columns[0])
    number_of = {value: _whole(value) for value in {value for own in columns for value in own}}
    for own, place in zip(columns, places, strict=True):
        if len(own) != width:
            raise DataError(f"{place}: expected {width} label columns, as in {places[0]}, got {len(own)}")
        wrong = next((value for value in own if number_of[value] is None), None)
        if wrong is not None:
            raise DataError(
                f"{place}: labels must be 0 or 1, or one class number, got {short(wrong)!r}; correct it, or give class "
                "names in a table with dataset=csv"
            )
    values = np.array([[number_of[value] for value in own] for own in columns], dtype=np.int64)
    if names is not None and len(names) != width:
        raise DataError(
            f"the header line names {len(names)} classes ({short(', '.join(names))}), but {places[0]} has {width} "
            "label columns; name each column or remove the header line"
        )
    if width == 1:
        return _class_numbers(values[:, 0], places, names)
    negative = (values == -1).any()
    allowed = (-1, 1) if negative else (0, 1)
    strange = ~np.isin(values, allowed)
    if strange.any():
        row, column = divmod(int(strange.argmax()), width)
        beside = ", but other lines have -1" if negative and values[row, column] == 0 else ""
        raise DataError(
            f"{places[row]}: labels in {width} columns must be 0 or 1, or all -1 or 1, got {columns[row][column]!r}"
            f"{beside}; write one column for each class, or a single column with the class number"
        )
    class_names = list(names) if names is not None else [f"class {number}" for number in range(width)]
    how = f"labels: a column of {'-1' if negative else '0'} or 1 for each class"
    return Labels((values == 1).astype(np.uint8), class_names, how)


def _whole(text: str) -> int | None:
    """Return a whole number, which may be written as 1.0 or 1e0; None if the text is none."""
    if not is_number(text) or len(text) > 40 or not float(text).is_integer() or abs(float(text)) > 2**53:
        return None
    return int(float(text))


def _class_numbers(values: Int64[np.ndarray, " n"], places: Sequence[str], names: Sequence[str] | None) -> Labels:
    known = np.unique(values[values != -1])
    if len(known) and known[0] < 0:
        row = int((values == known[0]).argmax())
        raise DataError(f"{places[row]}: class numbers must be 0 or more, or -1 for no class, got {known[0]}")
    if (values == -1).any() and (len(known) == 0 or known[-1] <= 1):
        row = int((values == -1).argmax())
        raise DataError(
            f"{places[row]}: a single column of -1 and 1 has two meanings, two classes or no class; write 0 and 1 for "
            "two classes"
        )
    if names is not None:
        raise DataError(
            f"the header line gives the single column the name {names[0]!r}, but the column of {places[0]} holds class "
            f"numbers of {len(known)} classes; remove the header line"
        )
    numbers = [[] if value == -1 else [int(np.searchsorted(known, value))] for value in values]
    class_names = [f"class {number}" for number in known]
    return Labels(_multi_hot(numbers, len(known), places[0]), class_names, "labels: one class number a line")


def _multi_hot(rows: Sequence[Sequence[int]], classes: int, place: str) -> UInt8[np.ndarray, "n classes"]:
    if len(rows) * classes > LIMIT:
        raise DataError(
            f"{place.rpartition(':')[0]} has {classes} different labels for {len(rows)} images, too many to be "
            "classes; give the labels that images have in common"
        )
    labels = np.zeros((len(rows), classes), dtype=np.uint8)
    columns = np.fromiter(chain.from_iterable(rows), np.int64)
    labels[np.repeat(np.arange(len(rows)), [len(row) for row in rows]), columns] = 1
    return labels


def _items_of_list(cell: str, place: str) -> list[str] | None:
    """Return the items of a cell that holds a Python list, tuple or set, a JSON list or a NumPy array; otherwise None.

    Raises:
        DataError: If the cell starts and ends like a list but cannot be read as one.
    """
    text = cell.strip()
    if call := _CALL.fullmatch(text):
        text = call[1].strip() or "[]"
    content = text[1:-1].strip()
    if text[:1] + text[-1:] not in ("[]", "()", "{}") or len(text) < 2:
        return None
    if text[0] != "[" and content and content[0] not in "'\"" and not content[0].isdigit():
        return None  # a name in brackets, such as (background)
    content = _SCALAR.sub(r"\1\2", content)
    items, position = [], 0
    while position < len(content):
        found = _ITEM.match(content, position)
        if not found:
            raise DataError(
                f"{place}: the labels {short(cell)!r} look like a list but cannot be read as one; write names "
                "separated by ;"
            )
        token = found[1]
        items.append(str(ast.literal_eval(token)) if token[0] in "'\"" else token)
        position = found.end()
    return items


def _rows_of_lists(cells: Sequence[str], lists: Sequence[list[str] | None], places: Sequence[str]) -> list[list[str]]:
    for cell, items, place in zip(cells, lists, places, strict=True):
        if items is None and canonical(cell):
            _require_name(_name(cell), place)
            raise DataError(
                f"{place}: the labels {short(cell)!r} are no list, but other lines have lists such as "
                f"{short(next(other for other, own in zip(cells, lists, strict=True) if own is not None))!r}; write "
                "names separated by ; in all lines"
            )
    return [items or [] for items in lists]


def _rows_of_text(cells: Sequence[str], places: Sequence[str]) -> tuple[list[list[str]], str]:
    for cell, place in zip(cells, places, strict=True):
        if len(cell.strip().splitlines()) > 1:
            raise DataError(f"{place}: the labels {short(cell)!r} have a line break in them; separate names by ;")
    first = {mark: next((row for row, cell in enumerate(cells) if mark in cell), None) for mark in ";|"}
    if first[";"] is not None and first["|"] is not None:
        raise DataError(
            f"{places[first['|']]}: names are separated by |, but in {places[first[';']]} by ;; separate all by ;"
        )
    mark = ";" if first[";"] is not None else "|" if first["|"] is not None else None
    comma = next((row for row, cell in enumerate(cells) if "," in cell and (mark or ";") not in cell), None)
    if comma is not None:
        raise DataError(
            f"{places[comma]}: the comma in the labels {short(cells[comma])!r} may separate two names or be part of "
            f"one; write {mark or ';'} between two names, or {mark or ';'} after a name that has a comma in it"
        )
    rows = [cell.split(mark) if mark else [cell] for cell in cells]
    known = {canonical(name) for row in rows for name in row}
    for row, place in zip(rows, places, strict=True):
        for name in row:
            parts = [canonical(part) for part in name.split(",")]
            if len(parts) > 1 and known.issuperset(parts):
                raise DataError(
                    f"{place}: the name {short(name)!r} consists of names that other lines have as classes of their "
                    f"own; separate them by {mark}"
                )
    return rows, f"labels separated by {mark}" if mark else ""


def _name(text: str) -> str:
    """Return a name as it is shown; a whole number such as 1.0, as pandas writes it, loses its fraction of zeros."""
    name = shown(text)
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0*", name) else name


def _require_name(name: str, place: str) -> None:
    if name in _MISSING:
        raise DataError(
            f"{place}: the label {name!r} is what programs write for a missing value; leave the cell empty for an "
            "image without labels, or give the class another name"
        )
    if re.fullmatch(r"[-+\d.]+( [-+\d.]+)+", name):
        raise DataError(
            f"{place}: the label {short(name)!r} holds several numbers; write the names of the image's classes, "
            "separated by ;"
        )


def _require_no_numbers(rows: Sequence[Sequence[str]], places: Sequence[str]) -> None:
    """Refuse numbers that are no names: rows of 0 and 1 for each class, and -1 for no class."""
    names = {name for row in rows for name in row}
    longest = max(range(len(rows)), key=lambda row: len(rows[row]))
    if names and names <= {"0", "1"} and len(rows[longest]) > 1:
        raise DataError(
            f"{places[longest]}: the labels {short(';'.join(rows[longest]))!r} seem to be a 0 or 1 for each class; "
            "write the names of the image's classes, separated by ;"
        )
    if "-1" in names and all(re.fullmatch(r"-?\d+", name) for name in names):
        row = next(row for row, own in enumerate(rows) if "-1" in own)
        raise DataError(
            f"{places[row]}: the label -1 usually stands for no class; leave the cell empty for an image without labels"
        )

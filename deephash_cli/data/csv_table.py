"""Load your own images from a CSV table: path, class names and, optionally, the parts each image belongs to."""

import csv
from pathlib import Path

import numpy as np

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, missing_images
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.errors import DataError

_ROLES = ("train", "query", "database")


def csv_table(root: str | Path | None, file: str | None) -> RetrievalDataset:
    """Load the images named in a CSV file with the columns ``path``, ``labels`` and, optionally, ``split``.

    Semicolons separate several labels or several parts: ``red;shoe``, ``train;database``. A row without labels is an
    image that is relevant to no query. A row with an empty ``split`` is in no part.

    Args:
        root: Folder that the paths in the table start from; None means the folder of the table.
        file: Path of the CSV file; None is an error.

    Raises:
        DataError: If no table is given, or it is missing or malformed, or names images that do not exist.
    """
    if file is None:
        raise DataError("a table needs dataset.file=<file.csv>, with the columns path and labels, and optionally split")
    table = Path(file).expanduser()
    folder = Path(root).expanduser() if root is not None else table.parent
    paths, names, parts = _read(table)
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing:
        raise missing_images(str(table), folder, missing)
    class_names = sorted({name for row in names for name in row})
    column = {name: number for number, name in enumerate(class_names)}
    labels = np.zeros((len(paths), len(class_names)), dtype=np.uint8)
    for number, row in enumerate(names):
        labels[number, [column[name] for name in row]] = 1
    return RetrievalDataset(
        name="csv",
        ids=paths,
        labels=labels,
        class_names=class_names,
        images=in_memory_if_small(ImageFiles([Path(path) for path in paths], folder)),
        official=_official(parts) if parts is not None else None,
    )


def _read(table: Path) -> tuple[list[str], list[list[str]], list[list[str]] | None]:
    """Read the columns path, labels and split; the last is None if the table has no ``split`` column."""
    paths: dict[str, int] = {}
    names, parts = [], []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [column.strip() for column in reader.fieldnames or []]
            if not {"path", "labels"} <= set(header):
                raise DataError(
                    f"{table}: the first line must name the columns path and labels, got {', '.join(header)!r}"
                )
            reader.fieldnames = header
            for row in reader:
                place = f"{table}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{place}: expected {len(header)} columns; quote values that contain a comma")
                path = row["path"].strip()
                if not path:
                    raise DataError(f"{place}: the path is empty")
                if path in paths:
                    raise DataError(f"{place}: {path} is already in line {paths[path]}; merge the two rows")
                paths[path] = reader.line_num
                names.append(_items(row["labels"]))
                parts.append(_items(row.get("split", "")))
                if unknown := [part for part in parts[-1] if part not in _ROLES]:
                    raise DataError(f"{place}: split must be train, query or database, got {unknown[0]!r}")
    except FileNotFoundError as error:
        raise DataError(f"dataset.file={table} does not exist") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not UTF-8 text; save the table as UTF-8") from error
    if not paths:
        raise DataError(f"{table} has no rows below its first line; add a row for each image")
    return list(paths), names, parts if "split" in header else None


def _items(value: str) -> list[str]:
    return [item.strip() for item in value.split(";") if item.strip()]


def _official(parts: list[list[str]]) -> dict[str, np.ndarray]:
    rows = {role: np.array([number for number, own in enumerate(parts) if role in own], np.int64) for role in _ROLES}
    return {role: numbers for role, numbers in rows.items() if len(numbers)}

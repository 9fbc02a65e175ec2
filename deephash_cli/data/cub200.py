"""CUB-200-2011: 11,788 photographs of 200 species of birds, which differ in small details.

Wah, Branson, Welinder, Perona, Belongie, 2011, "The Caltech-UCSD Birds-200-2011 dataset".
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from deephash_cli.data import published
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, multi_hot
from deephash_cli.data.download import Archive
from deephash_cli.data.text import lines
from deephash_cli.errors import DataError, short
from deephash_cli.names import Names

COUNTS = {"train": 5_994, "query": 5_794}
CLASSES = 200

_TITLE = "CUB-200-2011"
_TOP = "CUB_200_2011"
_ARCHIVE = Archive(
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    size=1_150_585_339,
    md5="97eceeb196236b17998738112f37df78",
    max_files=20_000,
    max_bytes=4 * 10**9,
)
_ITEMS = [
    published.Item(f"{_TOP}/{name}", size, f"{_ARCHIVE.url} (1.2 GB)")
    for name, size in {
        "images.txt": "1 MB", "image_class_labels.txt": "100 kB", "train_test_split.txt": "80 kB",
        "classes.txt": "5 kB", "images": "1.2 GB",
    }.items()
]  # fmt: skip


def cub200(root: str | Path | None, download: bool, incomplete: bool) -> RetrievalDataset:
    """Load the images of birds. In the official division the test images search the training images.

    Args:
        root: Folder that holds ``CUB_200_2011``; None searches the usual folders.
        download: Whether to download the archive (1.2 GB) if the files are not found.
        incomplete: Whether fewer images than published are accepted.

    Raises:
        DataError: If files are missing or malformed, or the number of images is not the published one.
    """
    folder = published.find_or_fetch("cub200", _TITLE, root, _ITEMS, [_ARCHIVE], download) / _TOP
    names = _column(folder / "classes.txt")
    if len(names) != CLASSES:
        raise DataError(f"{folder / 'classes.txt'} must name {CLASSES} classes, got {len(names)}; get it again")
    paths = _column(folder / "images.txt")
    classes = _numbers(folder / "image_class_labels.txt", len(paths), range(1, CLASSES + 1)) - 1
    _require_folders(folder, paths, [names[number] for number in classes.tolist()])
    is_train = _numbers(folder / "train_test_split.txt", len(paths), range(2)) == 1
    train = np.flatnonzero(is_train)
    files = Names(paths)
    dataset = RetrievalDataset(
        name="cub200",
        ids=files,
        labels=multi_hot(classes, CLASSES),
        class_names=[name.partition(".")[2].replace("_", " ") for name in names],  # 001.Black_footed_Albatross
        images=ImageFiles(files, folder / "images"),
        official={"train": train, "query": np.flatnonzero(~is_train), "database": train},
    )
    return published.complete(dataset, _TITLE, COUNTS, incomplete, folder / "images")


def _column(path: Path) -> list[str]:
    """Return the second column of a file, whose first column must count the lines from 1."""
    values = []
    for number, line in enumerate(lines(path), start=1):
        first, _, value = line.strip().partition(" ")
        if first != str(number) or not value:
            raise DataError(f"{path}:{number}: expected {number} and a value, got {short(line)!r}; get the file again")
        values.append(value)
    return values


def _require_folders(folder: Path, paths: Sequence[str], names: Sequence[str]) -> None:
    """Check that each image is in the folder of its class, because labels in another order would look right."""
    for number, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
        if path.partition("/")[0] != name:
            raise DataError(
                f"{folder / 'image_class_labels.txt'}:{number}: the class of {short(path)} is {short(name)}, but an "
                "image is in the folder of its class; get the file and images.txt again"
            )


def _numbers(path: Path, count: int, allowed: Sequence[int]) -> Int64[np.ndarray, " n"]:
    """Return the second column of a file that has a number for each image."""
    values = _column(path)
    texts = {str(number): number for number in allowed}
    wrong = next((number for number, value in enumerate(values, start=1) if value not in texts), None)
    if wrong is not None:
        raise DataError(
            f"{path}:{wrong}: expected a number from {allowed[0]} to {allowed[-1]}, got {short(values[wrong - 1])!r}; "
            "get the file again"
        )
    if len(values) != count:
        raise DataError(f"{path} has {len(values)} lines, but images.txt has {count}; get both files again")
    return np.array([texts[value] for value in values], dtype=np.int64)

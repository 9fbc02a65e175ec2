"""Food-101: 101,000 photographs of 101 dishes. The training images have some wrong labels on purpose.

Bossard, Guillaumin, Van Gool, 2014, "Food-101: mining discriminative components with random forests".
"""

from pathlib import Path

import numpy as np

from deephash_cli.data import published
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, multi_hot
from deephash_cli.data.download import Archive
from deephash_cli.data.text import lines
from deephash_cli.errors import DataError, short
from deephash_cli.names import Names

COUNTS = {"train": 75_750, "query": 25_250}
CLASSES = 101

_TITLE = "Food-101"
_TOP = "food-101"
_ARCHIVE = Archive(
    "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
    size=4_996_278_331,
    md5="85eeb15f3717b99a5da872d97d918f87",
    max_files=150_000,
    max_bytes=10 * 10**9,
)
_ITEMS = [
    published.Item(f"{_TOP}/{name}", size, f"{_ARCHIVE.url} (5 GB)")
    for name, size in {
        "meta/classes.txt": "1 kB", "meta/train.txt": "2 MB", "meta/test.txt": "500 kB", "images": "5 GB",
    }.items()
]  # fmt: skip
_PARTS = {"train": "train.txt", "query": "test.txt"}


def food101(root: str | Path | None, download: bool, incomplete: bool) -> RetrievalDataset:
    """Load the photographs of dishes. In the official division the test images search the training images.

    Args:
        root: Folder that holds ``food-101``; None searches the usual folders.
        download: Whether to download the archive (5 GB) if the files are not found.
        incomplete: Whether fewer images than published are accepted.

    Raises:
        DataError: If files are missing or malformed, or the number of images is not the published one.
    """
    folder = published.find_or_fetch("food101", _TITLE, root, _ITEMS, [_ARCHIVE], download) / _TOP
    names = [line.strip() for line in lines(folder / "meta" / "classes.txt")]
    if len(names) != CLASSES:
        raise DataError(f"{folder / 'meta/classes.txt'} must name {CLASSES} classes, got {len(names)}; get it again")
    number_of = {name: number for number, name in enumerate(names)}
    paths: list[str] = []
    classes: list[int] = []
    official = {}
    for part, file in _PARTS.items():
        start = len(paths)
        for number, line in enumerate(lines(folder / "meta" / file), start=1):
            name, _, image = line.strip().partition("/")
            if name not in number_of or not image:
                raise DataError(
                    f"{folder / 'meta' / file}:{number}: expected a class of classes.txt, a slash and the number of an "
                    f"image, got {short(line)!r}; get the file again"
                )
            paths.append(f"{name}/{image}.jpg")
            classes.append(number_of[name])
        official[part] = np.arange(start, len(paths))
    files = Names(paths)
    dataset = RetrievalDataset(
        name="food101",
        ids=files,
        labels=multi_hot(np.array(classes, dtype=np.int64), CLASSES),
        class_names=[name.replace("_", " ") for name in names],
        images=ImageFiles(files, folder / "images"),
        official={**official, "database": official["train"]},
    )
    return published.complete(dataset, _TITLE, COUNTS, incomplete, folder / "images")

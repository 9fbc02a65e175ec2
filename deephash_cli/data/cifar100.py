"""CIFAR-100: 60,000 colour images of 32 x 32 pixels in a hundred classes, which form twenty groups.

Krizhevsky, 2009, "Learning multiple layers of features from tiny images".
"""

from pathlib import Path

import numpy as np

from deephash_cli.data import published
from deephash_cli.data.cifar10 import read_batch
from deephash_cli.data.dataset import ImageArray, RetrievalDataset, multi_hot
from deephash_cli.data.download import Archive
from deephash_cli.data.restricted_pickle import read_pickle
from deephash_cli.errors import DataError

COUNTS = {"training images": 50_000, "test images": 10_000}
CLASSES = {"fine": 100, "coarse": 20}

_TITLE = "CIFAR-100"
_TOP = "cifar-100-python"
_ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    size=169_001_437,
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    max_files=20,
    max_bytes=400 * 10**6,
)
_ITEMS = [
    published.Item(f"{_TOP}/{name}", size, f"{_ARCHIVE.url} (169 MB)")
    for name, size in (("train", "155 MB"), ("test", "31 MB"), ("meta", "2 kB"))
]
_MAX_BYTES = 256 * 2**20
_MAX_META_BYTES = 2**20


def cifar100(root: str | Path | None, download: bool, labels: str, incomplete: bool) -> RetrievalDataset:
    """Load CIFAR-100's training and test images into one pool; in the official division the test images are queries.

    Args:
        root: Folder that holds ``cifar-100-python``; None searches the usual folders.
        download: Whether to download the archive (169 MB) if the files are not found.
        labels: ``fine`` for the hundred classes, ``coarse`` for their twenty groups.
        incomplete: Whether other numbers of images than published are accepted.

    Raises:
        ConfigError: If ``labels`` is neither of the two.
        DataError: If files are missing or damaged, or the number of images is not the published one.
    """
    published.require_choice("dataset.labels", labels, tuple(CLASSES))
    folder = published.find_or_fetch("cifar100", _TITLE, root, _ITEMS, [_ARCHIVE], download) / _TOP
    key, count = f"{labels}_labels", CLASSES[labels]
    parts = {part: read_batch(folder / part, key, count, _TITLE, _MAX_BYTES) for part in ("train", "test")}
    train, test = (len(classes) for _, classes in parts.values())
    remark = published.require_counts(_TITLE, {"training images": train, "test images": test}, COUNTS, incomplete)
    rows = np.arange(train)
    return RetrievalDataset(
        name="cifar100",
        ids=[f"{part}/{number:05d}" for part, (_, classes) in parts.items() for number in range(len(classes))],
        labels=multi_hot(np.concatenate([classes for _, classes in parts.values()]), count),
        class_names=_class_names(folder / "meta", f"{labels}_label_names", count),
        images=ImageArray(np.concatenate([pixels for pixels, _ in parts.values()])),
        official={"train": rows, "query": train + np.arange(test), "database": rows},
        reading=(remark,) if remark else None,
    )


def _class_names(path: Path, key: str, count: int) -> list[str]:
    content = read_pickle(path, _MAX_META_BYTES)
    names = content.get(key) if isinstance(content, dict) else None
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} does not name the {count} classes of {_TITLE}; get the file from its authors")
    return [name.replace("_", " ") for name in names]

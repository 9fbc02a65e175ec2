"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes.

Krizhevsky, 2009, "Learning multiple layers of features from tiny images".
"""

from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from deephash_cli.data.dataset import ImageArray, ImageFiles, RetrievalDataset, multi_hot
from deephash_cli.data.decoding import ENDINGS
from deephash_cli.data.download import Archive, fetch_archives
from deephash_cli.data.location import candidate_folders, download_folder, listed
from deephash_cli.data.restricted_pickle import read_pickle
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.errors import DataError

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_MAX_BATCH_BYTES = 64 * 2**20  # the published batches have 31 MB
_TOP = "cifar-10-batches-py"
_ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    size=170_498_071,
    md5="c58f30108f718f92721af3b95e74349a",
    max_files=20,
    max_bytes=400 * 10**6,
)


def cifar10(root: str | Path | None, download: bool) -> RetrievalDataset:
    """Load CIFAR-10's training and test images into one pool, as the retrieval papers do.

    Two layouts are read: the published batches (``cifar-10-batches-py/data_batch_1``, ids ``train/00000``), and image
    files in folders (``train/airplane/0001.jpg``, ids ``train/airplane/0001``). Their ids differ, and therefore the
    splits differ too.

    Args:
        root: Folder that holds one of the layouts; None searches the usual folders.
        download: Whether to download the batches (170 MB) if neither layout is found.

    Raises:
        DataError: If the data are missing or damaged.
    """
    folders = candidate_folders("cifar10", root)
    for folder in folders:
        for batches in (folder / _TOP, folder):
            if all((batches / name).is_file() for names in _BATCHES.values() for name in names):
                return _from_batches(batches)
        if all((folder / part / name).is_dir() for part in _BATCHES for name in CLASS_NAMES):
            return _from_folders(folder)
    if not download:
        raise DataError(
            "CIFAR-10 was found neither as batches (cifar-10-batches-py/data_batch_1, ..., test_batch) nor as image "
            f"folders (train/airplane, ..., test/truck) in {listed(folders)}; set dataset.root=<folder>, or "
            "dataset.download=true to fetch it (170 MB)"
        )
    place = download_folder("cifar10", root)
    fetch_archives([_ARCHIVE], place)
    return _from_batches(place / _TOP)


def _from_batches(folder: Path) -> RetrievalDataset:
    ids, pixels, classes = [], [], []
    sizes = {}
    for part, names in _BATCHES.items():
        parts = [read_batch(folder / name, "labels", 10, "CIFAR-10") for name in names]
        sizes[part] = sum(len(part_classes) for _, part_classes in parts)
        ids += [f"{part}/{number:05d}" for number in range(sizes[part])]
        pixels += [part_pixels for part_pixels, _ in parts]
        classes += [part_classes for _, part_classes in parts]
    images = ImageArray(np.concatenate(pixels))
    return _pool(ids, np.concatenate(classes), images, sizes["train"])


def read_batch(
    path: Path, key: str, classes: int, title: str, max_bytes: int = _MAX_BATCH_BYTES
) -> tuple[UInt8[np.ndarray, "n 3 32 32"], Int64[np.ndarray, " n"]]:
    """Read one of the published files of CIFAR-10 or CIFAR-100.

    Args:
        path: The file, a pickle.
        key: Name of the labels in it.
        classes: Number of classes.
        title: Name of the data set for people.
        max_bytes: Largest size of the file accepted, in bytes.

    Returns:
        The images, and the number of the class of each.

    Raises:
        DataError: If the file is missing or has other content.
    """
    content = read_pickle(path, max_bytes)
    pixels = content.get("data") if isinstance(content, dict) else None
    labels = content.get(key) if isinstance(content, dict) else None
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 2
        and pixels.shape[1] == 3072
        and isinstance(labels, list)
        and len(labels) == len(pixels)
        and all(type(label) is int and 0 <= label < classes for label in labels)
    ):
        raise DataError(
            f"{path} is not a batch of {title}: expected rows of 3072 bytes and one label from 0 to {classes - 1} for "
            "each; get the file from its authors"
        )
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _from_folders(root: Path) -> RetrievalDataset:
    paths, classes = [], []
    train = 0
    for part in _BATCHES:
        for number, name in enumerate(CLASS_NAMES):
            found = sorted(
                path.relative_to(root)
                for path in (root / part / name).iterdir()
                if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
            )
            if not found:
                raise DataError(f"{root / part / name} holds no images; each class of CIFAR-10 has some in both parts")
            paths += found
            classes += [number] * len(found)
        train = len(paths) if part == "train" else train
    ids = [path.with_suffix("").as_posix() for path in paths]
    return _pool(ids, np.array(classes), in_memory_if_small(ImageFiles(paths, root)), train)


def _pool(ids: list[str], classes: np.ndarray, images: ImageArray | ImageFiles, train: int) -> RetrievalDataset:
    official = {"train": np.arange(train), "query": np.arange(train, len(ids)), "database": np.arange(train)}
    return RetrievalDataset("cifar10", ids, multi_hot(classes, 10), CLASS_NAMES, images, official)

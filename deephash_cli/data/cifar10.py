"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes.

Krizhevsky, 2009, "Learning multiple layers of features from tiny images".
"""

from pathlib import Path

import numpy as np

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
_ARCHIVE_BYTES = 170498071
_MAX_FILES, _MAX_BYTES = 20, 400 * 2**20  # the published archive has 9 files with 186 MB


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
        for batches in (folder / "cifar-10-batches-py", folder):
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
    return _from_batches(_fetch(download_folder("cifar10", root)))


def _from_batches(folder: Path) -> RetrievalDataset:
    ids, pixels, classes = [], [], []
    sizes = {}
    for part, names in _BATCHES.items():
        parts = [_read_batch(folder / name) for name in names]
        sizes[part] = sum(len(part_classes) for _, part_classes in parts)
        ids += [f"{part}/{number:05d}" for number in range(sizes[part])]
        pixels += [part_pixels for part_pixels, _ in parts]
        classes += [part_classes for _, part_classes in parts]
    images = ImageArray(np.concatenate(pixels))
    return _pool(ids, np.concatenate(classes), images, sizes["train"])


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(path, _MAX_BATCH_BYTES)
    pixels = content.get("data") if isinstance(content, dict) else None
    labels = content.get("labels") if isinstance(content, dict) else None
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 2
        and pixels.shape[1] == 3072
        and isinstance(labels, list)
        and len(labels) == len(pixels)
        and all(type(label) is int and 0 <= label <= 9 for label in labels)
    ):
        raise DataError(
            f"{path} is not a batch of CIFAR-10: expected rows of 3072 bytes and one label from 0 to 9 for each; "
            "get the file from its authors"
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


def _fetch(folder: Path) -> Path:
    from torchvision.datasets import CIFAR10  # has the address and checksum; importing it takes a second

    archive = Archive(CIFAR10.url, _ARCHIVE_BYTES, CIFAR10.tgz_md5, _MAX_FILES, _MAX_BYTES)
    fetch_archives([archive], folder)
    return folder / CIFAR10.base_folder

"""Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017, arXiv 1708.07747): 28 x 28 grey pictures of ten kinds of clothing.

The ten thousand test images are part of this package (MIT licence, see fashion_mini/LICENSE), so that a first run needs
no download.
"""

import gzip
import math
import zlib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deephash_cli.data.dataset import ImageArray, RetrievalDataset, multi_hot
from deephash_cli.data.download import download as fetch
from deephash_cli.data.location import candidate_folders, download_folder, listed
from deephash_cli.errors import DataError

CLASS_NAMES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_PARTS = {"train": "train", "test": "t10k"}  # our name of each part, and the prefix of its file names
_FILES = [f"{prefix}-{kind}" for prefix in _PARTS.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
_MAX_BYTES = 256 * 2**20  # the published files have up to 47 MB


def fashion_mini() -> RetrievalDataset:
    """Load Fashion-MNIST's 10,000 test images, which are part of this package."""
    images, labels = _read_part(resources.files("deephash_cli.data") / "fashion_mini", "t10k")
    ids = [f"test/{number:05d}" for number in range(len(images))]
    return RetrievalDataset("fashion_mini", ids, multi_hot(labels, 10), CLASS_NAMES, ImageArray(images))


def fashion_mnist(root: str | Path | None, download: bool) -> RetrievalDataset:
    """Load all 70,000 images of Fashion-MNIST.

    In the official division the test images are the queries, and the training images are also the database.

    Args:
        root: Folder with the four original files, compressed or not; None searches the usual folders, including
            Debian's.
        download: Whether to download the files (31 MB) if they are not found.

    Raises:
        DataError: If the files are missing or damaged.
    """
    folder = _find(root, download)
    parts = {part: _read_part(folder, prefix) for part, prefix in _PARTS.items()}
    sizes = {part: len(labels) for part, (_, labels) in parts.items()}
    train = np.arange(sizes["train"])
    return RetrievalDataset(
        name="fashion_mnist",
        ids=[f"{part}/{number:05d}" for part, size in sizes.items() for number in range(size)],
        labels=multi_hot(np.concatenate([labels for _, labels in parts.values()]), 10),
        class_names=CLASS_NAMES,
        images=ImageArray(np.concatenate([images for images, _ in parts.values()])),
        official={"train": train, "query": np.arange(sizes["test"]) + len(train), "database": train},
    )


def read_idx(content: bytes, name: str, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Read an array of bytes in the IDX format: a magic number, the sizes, the values, and no more bytes.

    Args:
        content: Bytes of the whole file, not compressed.
        name: Name of the file, for error messages.
        dimensions: Number of dimensions that the array must have.

    Raises:
        DataError: If the content is of another kind, cut short, or has bytes left over.
    """
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{name} is not an IDX file of bytes in {dimensions} dimensions; download it again")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    expected, found = math.prod(shape), len(content) - start
    if found != expected or not expected:
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{name} should hold {sizes} bytes after its header but has {found}; download it again")
    # A copy, because whoever makes a tensor of the array needs memory that can be written to.
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=start).reshape(shape)


def _read_part(folder: Path | Traversable, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images = _read_file(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_file(folder, f"{prefix}-labels-idx1-ubyte", 1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or labels.max() > 9:
        raise DataError(
            f"{folder} has {prefix} images of shape {images.shape} with {len(labels)} labels up to {labels.max()}; "
            "expected images of 28 x 28 pixels and one label from 0 to 9 for each"
        )
    return images[:, None], labels


def _read_file(folder: Path | Traversable, name: str, dimensions: int) -> np.ndarray:
    plain, compressed = folder / name, folder / f"{name}.gz"
    source = plain if plain.is_file() else compressed
    try:
        with source.open("rb") as file:
            if source is compressed:
                with gzip.open(file) as unpacked:
                    content = unpacked.read(_MAX_BYTES)
            else:
                content = file.read(_MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read: {error}; download it again") from error
    return read_idx(content, str(source), dimensions)


def _find(root: str | Path | None, download: bool) -> Path:
    folders = candidate_folders("fashion_mnist", root)
    if root is None:
        folders.insert(-1, DEBIAN_FOLDER)  # before the cache: folders that the user filled come first
    for folder in folders:
        for place in (folder, folder / "raw", folder / "FashionMNIST" / "raw"):
            if all((place / name).is_file() or (place / f"{name}.gz").is_file() for name in _FILES):
                return place
    if not download:
        raise DataError(
            f"Fashion-MNIST's four files ({_FILES[0]}.gz, ...) were not found in {listed(folders)}; set "
            "dataset.root=<folder>, or dataset.download=true to fetch them (31 MB), or run: "
            "apt install dataset-fashion-mnist"
        )
    return _fetch(download_folder("fashion_mnist", root))


def _fetch(folder: Path) -> Path:
    from torchvision.datasets import FashionMNIST  # has the addresses and checksums; importing it takes a second

    for name, md5 in FashionMNIST.resources:
        fetch(FashionMNIST.mirrors[0] + name, folder / name, md5, max_bytes=100 * 2**20)
    return folder

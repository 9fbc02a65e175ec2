"""Load your own images from one folder per class."""

import logging
import os
from pathlib import Path

import numpy as np

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, multi_hot
from deephash_cli.data.decoding import ENDINGS
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.errors import DataError

_PARTS = {"train", "training", "test", "val", "valid", "validation", "query", "database", "gallery"}

_logger = logging.getLogger(__name__)


def image_folder(root: str | Path | None) -> RetrievalDataset:
    """Load images from one sub-folder per class, at any depth below it; ids are the paths relative to ``root``.

    Hidden files and files without an image extension are left out; a warning with their number is logged.

    Args:
        root: Folder with the class folders; None is an error.

    Raises:
        DataError: If there is no root or no class folder, if a class folder has no image, or if the folders are named
            like parts of a data set (``train``, ``test``).
    """
    if root is None:
        raise DataError("an image folder needs dataset.root=<folder>, with one sub-folder of images for each class")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"dataset.root={root} is not a folder; it must hold one sub-folder of images for each class")
    entries = sorted(root.iterdir())
    folders = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    if not folders:
        raise DataError(f"{root} has no sub-folders; it must hold one sub-folder of images for each class")
    if {folder.name.lower() for folder in folders} <= _PARTS:
        names = ", ".join(folder.name for folder in folders)
        raise DataError(
            f"{root} holds the folders {names}: these look like parts of a data set, not classes; point dataset.root "
            "at one of them, or describe the division in a table with dataset=csv"
        )
    paths, classes = [], []
    left_out = len(entries) - len(folders)
    for number, folder in enumerate(folders):
        found, others = images_below(folder)
        if not found:
            raise DataError(
                f"class folder {folder} holds no image ({others} other files); add images "
                f"({', '.join(sorted(ENDINGS))}) or remove the folder"
            )
        paths += [path.relative_to(root) for path in found]
        classes += [number] * len(found)
        left_out += others
    if left_out:
        _logger.warning(
            "left out %d files or folders under %s that are hidden or have no image extension", left_out, root
        )
    return RetrievalDataset(
        name="image_folder",
        ids=[path.as_posix() for path in paths],
        labels=multi_hot(np.array(classes), len(folders)),
        class_names=[folder.name for folder in folders],
        images=in_memory_if_small(ImageFiles(paths, root)),
    )


def images_below(folder: Path) -> tuple[list[Path], int]:
    """Return the image files below ``folder``, sorted, and the number of other files."""
    found, others = [], 0
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link that leads back to a folder already visited
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in ENDINGS and path.is_file():
                found.append(path)
            else:
                others += 1
    return sorted(found), others

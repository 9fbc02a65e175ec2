"""Images without labels that a command is given as ``input=``: a folder, or a list of files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.identity import listed
from deephash_cli.data.image_folder import images_below
from deephash_cli.errors import DataError
from deephash_cli.names import Names


def images_at(place: Path, root: Path | None) -> RetrievalDataset:
    """Find the images of a folder, at any depth, or of a text file with one path per line. None is opened.

    Args:
        place: The folder or text file.
        root: Folder that the paths in a text file start from; None for the folder of the text file.

    Returns:
        The images without labels; their ids are the paths.

    Raises:
        DataError: If the place does not exist, has no image, or lists a file that does not exist.
    """
    if place.is_dir():
        found, others = images_below(place)
        if not found:
            raise DataError(f"input={place} holds no image ({len(others)} other files); give a folder with images")
        left_out = [(path.relative_to(place).as_posix(), reason) for path, reason in others]
        return _unlabelled(place.name, Names(path.relative_to(place).as_posix() for path in found), place, left_out)
    if place.is_file():
        root = root or place.parent
        return _unlabelled(place.stem, Names(Path(path).as_posix() for path in listed(place, root).ids), root)
    raise DataError(f"input={place} is neither a file nor a folder")


def _unlabelled(name: str, ids: Names, root: Path, left_out: Sequence[tuple[str, str]] = ()) -> RetrievalDataset:
    labels = np.zeros((len(ids), 0), np.uint8)
    return RetrievalDataset(name, ids, labels, [], ImageFiles(ids, root), left_out=left_out)

"""NUS-WIDE: 269,648 images from Flickr, judged for 81 concepts; several concepts may be in one image.

Chua, Tang, Hong, Li, Luo and Zheng, 2009, "NUS-WIDE: a real-world web image database from National University of
Singapore". Papers on hashing use the images of the 21 most frequent concepts, or of any of the 81.
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.published import Item, existing, find, require_counts
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.data.text import lines
from deephash_cli.data.usual_lists import from_lists
from deephash_cli.errors import ArtifactError, DataError
from deephash_cli.files import read_bytes
from deephash_cli.names import Names

# In the order of Concepts81.txt, which is that of the alphabet; lists with 81 columns have this order, too.
CONCEPTS = (
    "airport", "animal", "beach", "bear", "birds", "boats", "book", "bridge", "buildings", "cars", "castle", "cat",
    "cityscape", "clouds", "computer", "coral", "cow", "dancing", "dog", "earthquake", "elk", "fire", "fish", "flags",
    "flowers", "food", "fox", "frost", "garden", "glacier", "grass", "harbor", "horses", "house", "lake", "leaf", "map",
    "military", "moon", "mountain", "nighttime", "ocean", "person", "plane", "plants", "police", "protest", "railroad",
    "rainbow", "reflection", "road", "rocks", "running", "sand", "sign", "sky", "snow", "soccer", "sports", "statue",
    "street", "sun", "sunset", "surf", "swimmers", "tattoo", "temple", "tiger", "tower", "town", "toy", "train", "tree",
    "valley", "vehicle", "water", "waterfall", "wedding", "whales", "window", "zebra",
)  # fmt: skip
# The 21 most frequent ones, the most frequent one first: the order that lists with 21 columns have.
_FREQUENT = (
    "sky", "clouds", "person", "water", "animal", "grass", "buildings", "window", "plants", "lake", "ocean", "road",
    "flowers", "sunset", "reflection", "rocks", "vehicle", "snow", "tree", "beach", "mountain",
)  # fmt: skip
ORDERS = {21: (_FREQUENT, tuple(sorted(_FREQUENT))), 81: (CONCEPTS,)}
IMAGES = 269_648
USED = {21: 195_834}  # images that have one of the most frequent concepts
LISTED = {
    21: {"train": (10_500,), "query": (2_100,), "database": (193_734,)},
    81: {"train": (10_000,), "query": (5_000,)},
}

_TITLE = "NUS-WIDE"
_LIST = "ImageList/Imagelist.txt"
_LABELS = "Groundtruth/AllLabels"
_PAGE = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"
_FOLDERS = ("Flickr", "images")
_ITEMS = (
    Item(_LIST, "8 MB", _PAGE),
    Item(_LABELS, "81 files of 0.5 MB", _PAGE),
    Item(_FOLDERS[0], "about 6 GB", f"{_PAGE}, which has a form for them", _FOLDERS[1]),
)
_MOST_BYTES = 16 * IMAGES  # of a file of labels; each line has a digit and the end of a line


def nuswide(concepts: int, root: str | Path | None, lists: str | Path | None, incomplete: bool) -> RetrievalDataset:
    """Load NUS-WIDE with the images that have at least one of its most frequent concepts.

    Ids are the paths in Imagelist.txt, with slashes. The image ``actor/0001_2124494179.jpg`` may be the file
    ``Flickr/actor/0001_2124494179.jpg`` or ``Flickr/0001_2124494179.jpg``, or the same in ``images``.

    Args:
        concepts: Number of most frequent concepts: 21 or 81.
        root: Folder that holds ``ImageList``, ``Groundtruth`` and ``Flickr``; None searches the usual folders.
        lists: Folder with the usual lists, which are then read instead of the official files; None for none.
        incomplete: Whether fewer images than published are accepted.

    Raises:
        DataError: If files are missing or malformed, or the numbers of images are not the published ones.
    """
    name = f"nuswide_{concepts}"
    if lists is not None:
        return from_lists(name, _TITLE, lists, root, ORDERS[concepts], LISTED[concepts], incomplete, "nuswide", "sky")
    folder = find("nuswide", _TITLE, root, _ITEMS, can_download=False)
    paths = [line.strip().replace("\\", "/") for line in lines(folder / _LIST)]
    chosen = [concept for concept in CONCEPTS if concept in ORDERS[concepts][0]]
    labels = np.stack([_read(folder, concept, len(paths)) for concept in chosen], axis=1)
    used = np.flatnonzero(labels.any(axis=1))
    ids = [paths[row] for row in used]
    files, is_there = _files(folder, ids)
    remark = require_counts(
        _TITLE,
        {f"lines of {_LIST}": len(paths), "images": int(is_there.sum())},
        {f"lines of {_LIST}": IMAGES, "images": USED.get(concepts, len(used))},
        incomplete,
    )
    rows = np.flatnonzero(is_there)
    return RetrievalDataset(
        name=name,
        ids=Names(ids[row] for row in rows),
        labels=labels[used[rows]],
        class_names=chosen,
        images=in_memory_if_small(ImageFiles(Names(files[row] for row in rows), folder)),
        reading=(remark,),
        usual=name,
    )


def _read(folder: Path, concept: str, count: int) -> UInt8[np.ndarray, " n"]:
    """Read the file of a concept: a 0 or 1 for each image, each on a line."""
    path = folder / _LABELS / f"Labels_{concept}.txt"
    try:
        content = np.frombuffer(read_bytes(path, _MOST_BYTES), np.uint8)
    except ArtifactError as error:
        raise DataError(f"{error}; {_TITLE} has a file of labels for each of {len(CONCEPTS)} concepts") from error
    found = content[~np.isin(content, np.frombuffer(b" \t\r\n", np.uint8))] - np.uint8(ord("0"))
    if len(found) != count or found.max(initial=0) > 1:
        raise DataError(
            f"{path} must have a 0 or 1 for each of the {count:,} lines of {_LIST}, got {len(found):,} characters"
            f"{'' if found.max(initial=0) <= 1 else ', some of which are neither'}; get both files from {_PAGE}"
        )
    return found


def _files(folder: Path, ids: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the path of each image below ``folder`` in the layout that is there, and which of them exist."""
    layouts = [
        [f"{base}/{name}" for name in names]
        for base in _FOLDERS
        for names in (ids, [identifier.rpartition("/")[2] for identifier in ids])
    ]
    found = [existing(folder, paths) for paths in layouts]
    best = max(range(len(layouts)), key=lambda number: found[number].sum())
    if not found[best].any():
        raise DataError(
            f"{folder} has none of the images that {_LIST} names, such as {layouts[0][0]} or {layouts[-1][0]}; put "
            f"them into {' or '.join(_FOLDERS)}, with or without the folders of the list"
        )
    if len(set(layouts[best])) < len(set(ids)):
        raise DataError(
            f"{_LIST} in {folder} gives two images one name, so they cannot be told apart without the folders of the "
            "list; put the images into these folders"
        )
    return layouts[best], found[best]

"""ImageNet-100: the images of 100 classes of ILSVRC 2012.

Cao, Long, Wang and Yu, 2017, "HashNet: deep learning to hash by continuation", chose the classes at random, and most
papers on hashing after it use the same ones. Their identifiers are in imagenet100_classes.txt.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, multi_hot
from deephash_cli.data.decoding import ENDINGS
from deephash_cli.data.published import Item, find, names_in, require_counts
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.data.text import lines
from deephash_cli.data.usual_lists import from_lists
from deephash_cli.errors import DataError, short
from deephash_cli.names import Names

CLASSES = Path(__file__).with_name("imagenet100_classes.txt")
# Smallest and largest number of images of a class, in each part of ILSVRC 2012.
PER_CLASS = {"train": (732, 1_300), "val": (50, 50)}
LISTED = {"train": (13_000, 10_000), "query": (5_000,)}

_TITLE = "ImageNet-100"
_PARTS = {"database": "train", "query": "val"}
_SOURCES = {
    "train": "https://image-net.org (ILSVRC 2012, after a registration)",
    "val": "https://image-net.org (ILSVRC 2012, after a registration), with the images sorted into folders of classes",
}
_SIZES = {"train": "about 130 MB", "val": "about 6 MB"}
_CLASS = re.compile(r"n\d{8}")


def imagenet100(
    root: str | Path | None, classes: str | Path | None, lists: str | Path | None, incomplete: bool
) -> RetrievalDataset:
    """Load the training and validation images of 100 classes from ``train/<class>/`` and ``val/<class>/``.

    Folders of other classes, such as those of the other 900, are not read. The usual lists name images in ``image/``
    and ``val_image/``.

    Args:
        root: Folder that holds ``train`` and ``val``; None searches the usual folders.
        classes: Text file with the identifier of a class, such as n01440764, on each line; None takes those of HashNet.
        lists: Folder with the usual lists, which are then read instead of the folders; None for none.
        incomplete: Whether fewer images than published are accepted.

    Raises:
        DataError: If files are missing or malformed, or the number of images is not the published one.
    """
    names = _read_classes(CLASSES if classes is None else Path(classes).expanduser())
    if lists is not None:
        numbered = [f"class {number}" for number in range(len(names))]
        data = from_lists("imagenet100", _TITLE, lists, root, [numbered], LISTED, incomplete)
        return dataclasses.replace(data, class_names=_names_in_paths(data) or data.class_names)
    items = [Item(f"{part}/{name}", _SIZES[part], _SOURCES[part]) for part in _PARTS.values() for name in names]
    folder = find("imagenet100", _TITLE, root, items, can_download=False)
    paths: list[str] = []
    numbers: list[int] = []
    rows: dict[str, np.ndarray] = {}
    whole, wanted, wrong = {}, {}, ""
    for role, part in _PARTS.items():
        before = len(paths)
        least, most = PER_CLASS[part]
        kind = f"classes with {least:,}{f' to {most:,}' if most > least else ''} images in {part}"
        wanted[kind], whole[kind] = len(names), 0
        for number, name in enumerate(names):
            found = sorted(file for file in names_in(folder / part / name) if _is_image(Path(file)))
            if least <= len(found) <= most:
                whole[kind] += 1
            else:
                wrong = wrong or f" in {folder}, where {part}/{name} has {len(found):,} images,"
            paths += (f"{part}/{name}/{file}" for file in found)
            numbers += [number] * len(found)
        rows[role] = np.arange(before, len(paths))
    remark = require_counts(_TITLE + wrong, whole, wanted, incomplete)
    files = Names(paths)
    return RetrievalDataset(
        name="imagenet100",
        ids=files,
        labels=multi_hot(np.array(numbers, np.int64), len(names)),
        class_names=names,
        images=in_memory_if_small(ImageFiles(files, folder)),
        official=rows,
        reading=(remark,),
        usual="imagenet100",
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _read_classes(path: Path) -> list[str]:
    names = [line.split()[0] for line in lines(path, f"dataset.classes={path}") if line.strip()]
    wrong = next((name for name in names if not _CLASS.fullmatch(name)), None)
    if wrong is not None or len(set(names)) < len(names) or not names:
        got = "the same one twice" if wrong is None and names else short(repr(wrong)) if names else "an empty file"
        raise DataError(
            f"dataset.classes={path} must have the identifier of a class of ImageNet, such as n01440764, on each line, "
            f"each once, got {got}"
        )
    return sorted(names)


def _names_in_paths(data: RetrievalDataset) -> list[str] | None:
    """Return the identifier that the file names of each class begin with; None if they do not tell."""
    found: list[set[str]] = [set() for _ in data.class_names]
    for identifier, column in zip(data.ids, data.labels.argmax(axis=1).tolist(), strict=True):
        if name := _CLASS.search(identifier):
            found[column].add(name[0])
    names = [next(iter(own)) for own in found if len(own) == 1]
    return names if len(set(names)) == len(found) else None

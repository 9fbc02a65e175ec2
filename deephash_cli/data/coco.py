"""MS-COCO of 2014: photographs of everyday scenes with objects of 80 categories; an image has several.

Lin et al., 2014, "Microsoft COCO: common objects in context". Papers on hashing pool the training and the validation
images, and use those that have at least one object.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.download import Archive
from deephash_cli.data.published import Item, complete, find_or_fetch
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.data.usual_lists import from_lists
from deephash_cli.errors import ArtifactError, DataError, short
from deephash_cli.files import read_bytes
from deephash_cli.names import Names

# In the order of their ids, which have gaps.
CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COUNTS = {"all": 122_218}
LISTED = {"train": (10_000,), "query": (5_000,), "database": (117_218,)}

_TITLE = "MS-COCO 2014"
_PARTS = ("train2014", "val2014")
_ADDRESS = "http://images.cocodataset.org"
_ANNOTATIONS = f"{_ADDRESS}/annotations/annotations_trainval2014.zip"
_ITEMS = (
    Item("annotations/instances_train2014.json", "330 MB", f"{_ANNOTATIONS} (253 MB)"),
    Item("annotations/instances_val2014.json", "160 MB", f"{_ANNOTATIONS} (253 MB)"),
    Item("train2014", "13 GB", f"{_ADDRESS}/zips/train2014.zip"),
    Item("val2014", "6 GB", f"{_ADDRESS}/zips/val2014.zip"),
)
_ARCHIVES = (
    Archive(_ANNOTATIONS, 252_872_794, "0a379cfc70b0e71301e0f377548639bd", 20, 2 * 10**9),
    Archive(_ITEMS[2].source, 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88", 100_000, 20 * 10**9),
    Archive(_ITEMS[3].source, 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3", 50_000, 10 * 10**9),
)
_MOST_BYTES = 2**30  # of a file of annotations
_KEPT = frozenset({"images", "annotations", "categories", "id", "image_id", "category_id", "file_name", "name"})


def coco(root: str | Path | None, lists: str | Path | None, download: bool, incomplete: bool) -> RetrievalDataset:
    """Load the training and validation images of 2014 that have at least one object, as one pool.

    Args:
        root: Folder that holds ``annotations``, ``train2014`` and ``val2014``; None searches the usual folders.
        lists: Folder with the usual lists, which are then read instead of the annotations; None for none.
        download: Whether to download the archives (20 GB), or those of them whose files are missing.
        incomplete: Whether fewer images than published are accepted.

    Raises:
        DataError: If files are missing or malformed, or the number of images is not the published one.
    """
    if lists is not None:
        orders = [CATEGORIES, tuple(sorted(CATEGORIES))]
        return from_lists("coco", _TITLE, lists, root, orders, LISTED, incomplete, most="person")
    folder = find_or_fetch("coco", _TITLE, root, _ITEMS, _ARCHIVES, download)
    names: list[str] = []
    ids, labels = [], []
    for part in _PARTS:
        path = folder / "annotations" / f"instances_{part}.json"
        content = _read(path)
        name_of = {_value(path, entry, "id", int): _value(path, entry, "name", str) for entry in content["categories"]}
        categories = sorted(name_of)
        own = [name_of[category] for category in categories]
        if names and own != names:
            raise DataError(f"{path} has other categories than {_PARTS[0]}; get both files from {_ANNOTATIONS}")
        names = own
        files, of_file = _labels(path, content, categories)
        rows = np.flatnonzero(of_file.any(axis=1))
        ids += [f"{part}/{files[row]}" for row in rows]
        labels.append(of_file[rows])
    used = Names(ids)
    dataset = RetrievalDataset(
        name="coco",
        ids=used,
        labels=np.concatenate(labels),
        class_names=names,
        images=in_memory_if_small(ImageFiles(used, folder)),
        reading=(),
        usual="coco",
    )
    return complete(dataset, _TITLE, COUNTS, incomplete, folder)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a file of annotations without the outlines of the objects, which are nearly all of it."""
    try:
        content = json.loads(read_bytes(path, _MOST_BYTES), object_pairs_hook=_without_outlines)
    except ArtifactError as error:
        raise DataError(f"{error}; get it from {_ANNOTATIONS}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); get it again from {_ANNOTATIONS}") from error
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path} has no list of {name}, as MS-COCO's file has; get it again from {_ANNOTATIONS}")
    return content


def _without_outlines(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    kept = [pair for pair in pairs if pair[0] in _KEPT]
    entry = dict(kept)
    if len(entry) < len(kept):
        raise ValueError("an object has a key twice")
    return entry


def _labels(path: Path, content: Mapping[str, list[dict[str, Any]]], categories: list[int]) -> tuple[list[str], Any]:
    """Return the file names of the images, and their multi-hot labels (n, categories)."""
    files = [_value(path, entry, "file_name", str) for entry in content["images"]]
    strange = next((name for name in files if Path(name).name != name), None)
    if strange is not None:
        raise DataError(f"{path} has the file name {strange!r}, which is a path; get it again from {_ANNOTATIONS}")
    row_of = {_value(path, entry, "id", int): row for row, entry in enumerate(content["images"])}
    if len(row_of) < len(files) or len(categories) < len(content["categories"]):
        raise DataError(f"{path} gives an id to two images or two categories; get it again from {_ANNOTATIONS}")
    column_of = {category: column for column, category in enumerate(categories)}
    labels = np.zeros((len(files), len(categories)), np.uint8)
    for entry in content["annotations"]:
        row = row_of.get(_value(path, entry, "image_id", int))
        column = column_of.get(_value(path, entry, "category_id", int))
        if row is None or column is None:
            raise DataError(
                f"{path} has an object in image {entry['image_id']} of category {entry['category_id']}, but does not "
                f"list both; get it again from {_ANNOTATIONS}"
            )
        labels[row, column] = 1
    return files, labels


def _value(path: Path, entry: Mapping[str, Any], key: str, kind: type) -> Any:
    if type(entry.get(key)) is not kind:
        raise DataError(
            f"{path} has an entry whose {key} is {short(repr(entry.get(key)))}, expected "
            f"{'a text' if kind is str else 'a number'}; get it again from {_ANNOTATIONS}"
        )
    return entry[key]

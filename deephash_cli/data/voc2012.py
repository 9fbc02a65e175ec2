"""PASCAL VOC 2012: 11,540 photographs with objects of twenty classes; an image may have several.

Everingham, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes Challenge 2012".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Int64

from deephash_cli.data import published
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.download import Archive
from deephash_cli.data.text import lines
from deephash_cli.data.usual_lists import from_lists
from deephash_cli.errors import ArtifactError, ConfigError, DataError, short
from deephash_cli.files import read_bytes
from deephash_cli.names import Names

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COUNTS = {"all": 11_540}
LISTED = {"train": (4_000,), "query": (1_000,), "database": (6_540,)}

_TITLE = "PASCAL VOC 2012"
_TOP = "VOCdevkit/VOC2012"
_LISTS = "ImageSets/Main"
_ARCHIVE = Archive(
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    size=1_999_639_040,
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    max_files=100_000,
    max_bytes=4 * 10**9,
)
_SOURCE = f"{_ARCHIVE.url} (2 GB)"
_ITEMS = [
    published.Item(f"{_TOP}/{_LISTS}/trainval.txt", "140 kB", _SOURCE),
    published.Item(f"{_TOP}/JPEGImages", "1.9 GB", _SOURCE),
]
_LABELS = {
    "lists": [published.Item(f"{_TOP}/{_LISTS}/{name}_trainval.txt", "170 kB", _SOURCE) for name in CLASS_NAMES],
    "annotations": [published.Item(f"{_TOP}/Annotations", "40 MB", _SOURCE)],
}
_ABSENT, _DIFFICULT, _PRESENT = -1, 0, 1  # values in the lists; difficult means that all objects of the class are
_MAX_XML_BYTES = 2**20


def voc2012(
    root: str | Path | None, lists: str | Path | None, download: bool, labels: str, difficult: bool, incomplete: bool
) -> RetrievalDataset:
    """Load the training and validation images of the classification task as one pool.

    Args:
        root: Folder that holds ``VOCdevkit``; None searches the usual folders.
        lists: Folder with the usual lists of the field, which are then read instead of the official files; None for
            none.
        download: Whether to download the archive (2 GB) if the files are not found.
        labels: ``lists`` reads the labels from the lists of each class, ``annotations`` from the XML file of each
            image; the official files give the same labels.
        difficult: Whether an image has the label of a class if all of its objects of this class are marked as
            difficult to recognize.
        incomplete: Whether fewer images than published are accepted.

    Raises:
        ConfigError: If ``labels`` is neither of the two, or ``lists`` is given with labels that it does not have.
        DataError: If files are missing or malformed, or the number of images is not the published one.
    """
    published.require_choice("dataset.labels", labels, tuple(_LABELS))
    if lists is not None:
        if difficult or labels != "lists":
            raise ConfigError(
                "dataset.difficult and dataset.labels choose among the official labels, but dataset.lists has labels "
                "of its own: leave out one or the other"
            )
        return from_lists("voc2012", _TITLE, lists, root, [CLASS_NAMES], LISTED, incomplete, most="person")
    items = [*_ITEMS, *_LABELS[labels]]
    folder = published.find_or_fetch("voc2012", _TITLE, root, items, [_ARCHIVE], download) / _TOP
    names = [line.strip() for line in lines(folder / _LISTS / "trainval.txt")]
    found = _from_lists(folder, names) if labels == "lists" else _from_annotations(folder, names)
    unsure = int(((found == _DIFFICULT).any(axis=1) & ~(found == _PRESENT).any(axis=1)).sum())
    paths = [f"JPEGImages/{name}.jpg" for name in names]
    files = Names(paths)
    dataset = RetrievalDataset(
        name="voc2012",
        ids=files,
        labels=(found >= (_DIFFICULT if difficult else _PRESENT)).astype(np.uint8),
        class_names=list(CLASS_NAMES),
        images=ImageFiles(files, folder),
        reading=(f"difficult objects {'count' if difficult else 'do not count'}, images with no others: {unsure:,}",),
        usual="voc2012",
    )
    return published.complete(dataset, _TITLE, COUNTS, incomplete, folder)


def _from_lists(folder: Path, names: Sequence[str]) -> Int64[np.ndarray, "n classes"]:
    """Read whether each image has objects of each class, as the lists say it."""
    row_of = {name: row for row, name in enumerate(names)}
    values = {str(value): value for value in (_ABSENT, _DIFFICULT, _PRESENT)}
    found = np.full((len(names), len(CLASS_NAMES)), _ABSENT)
    for column, name in enumerate(CLASS_NAMES):
        path = folder / _LISTS / f"{name}_trainval.txt"
        rows = set()
        for number, line in enumerate(lines(path), start=1):
            image, _, value = line.strip().partition(" ")
            if image not in row_of or value.strip() not in values:
                raise DataError(
                    f"{path}:{number}: expected an image of trainval.txt and -1, 0 or 1, got {short(line)!r}; get the "
                    "file again"
                )
            if row_of[image] in rows:
                raise DataError(f"{path}:{number}: the image {image} is already in the file; get the file again")
            found[row_of[image], column] = values[value.strip()]
            rows.add(row_of[image])
        if len(rows) != len(names):
            raise DataError(f"{path} lists {len(rows)} images, but trainval.txt has {len(names)}; get both files again")
    return found


def _from_annotations(folder: Path, names: Sequence[str]) -> Int64[np.ndarray, "n classes"]:
    """Read whether each image has objects of each class, from the outlines of its objects."""
    column_of = {name: column for column, name in enumerate(CLASS_NAMES)}
    found = np.full((len(names), len(CLASS_NAMES)), _ABSENT)
    for row, name in enumerate(names):
        path = folder / "Annotations" / f"{name}.xml"
        for item in _read_xml(path).findall("object"):
            column, difficult = column_of.get(item.findtext("name", "")), item.findtext("difficult", "0").strip()
            if column is None or difficult not in ("0", "1"):
                raise DataError(
                    f"{path} has an object {short(item.findtext('name', ''))!r} with difficult={short(difficult)!r}; "
                    "expected one of the twenty classes, and 0 or 1; get the file again"
                )
            found[row, column] = max(found[row, column], _DIFFICULT if difficult == "1" else _PRESENT)
    return found


class _NoDoctype(ElementTree.TreeBuilder):
    """A builder that stops at a document type, because only there entities can be declared, which may grow endless."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        """Refuse the document type.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"it has a document type {short(name)!r}, which no annotation needs")


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(read_bytes(path, _MAX_XML_BYTES), ElementTree.XMLParser(target=_NoDoctype()))
    except ArtifactError as error:
        raise DataError(f"{error}; get it from {_SOURCE}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} cannot be read as XML: {error}; get it from {_SOURCE}") from error
    if root.tag != "annotation":
        raise DataError(f"{path} has the element {short(root.tag)!r}, expected annotation; get it from {_SOURCE}")
    return root

"""Load your own images from a folder: one sub-folder per class, or images without labels."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, multi_hot
from deephash_cli.data.decoding import ENDINGS, HEIF_ENDINGS, HEIF_PACKAGE, endings
from deephash_cli.data.identity import composed, is_same_file
from deephash_cli.data.small_images import in_memory_if_small
from deephash_cli.errors import ConfigError, DataError
from deephash_cli.names import Names

LABELS = ("folders", "none")
HIDDEN = "is hidden"
OURS = "is a folder that deephash wrote"
SAME = "is the same file as"
_RECORDS = ({"run.json", "config.yaml"}, {"encode.json"})  # files by which folders of runs and codes are recognized
_PARTS = {"train", "training", "test", "val", "valid", "validation", "query", "database", "gallery"}
_OF_A_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx"}


class LeftOut(NamedTuple):
    """A file or folder that is not read, with the reason."""

    path: Path
    reason: str


def image_folder(root: str | Path | None) -> RetrievalDataset:
    """Load the images of a folder with a sub-folder for each class; see ``folder_of_images``.

    The configurations of runs that were made before there was a choice of labels name this function.

    Args:
        root: Folder of the images; None is an error.
    """
    return folder_of_images(root, "folders")


def folder_of_images(root: str | Path | None, labels: str) -> RetrievalDataset:
    """Load the images of a folder, at any depth; ids are the paths relative to ``root``.

    Files that are left out are listed in the attribute ``left_out`` of the data set.

    Args:
        root: Folder of the images; None is an error.
        labels: ``folders`` makes each sub-folder of ``root`` a class, and gives no labels if there is no sub-folder;
            ``none`` gives no labels, whatever the sub-folders are.

    Raises:
        ConfigError: If ``labels`` is another word.
        DataError: If there is no root or no image, if a folder cannot be listed, if a class folder has no image, if
            there are images beside class folders, or if the folders are named like parts of a data set (``train``,
            ``test``).
    """
    if labels not in LABELS:
        raise ConfigError(f"dataset.labels of an image folder must be folders or none, got {labels}")
    if root is None:
        raise DataError("an image folder needs dataset.root=<folder>, with one sub-folder of images for each class")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"dataset.root={root} is not a folder; it must hold one sub-folder of images for each class")
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise _unlisted(error) from error
    folders = [path for path in entries if path.is_dir() and not is_hidden(path.name)]
    if labels == "folders" and folders:
        paths, left_out, of_path = _classes(root, folders, [path for path in entries if path not in set(folders)])
        names = sorted(set(of_path))
    else:
        paths, left_out = images_below(root)
        of_path, names = [], []
        if not paths:
            raise DataError(
                f"{root} has no sub-folders and no image ({len(left_out)} other files); it must hold images, or one "
                f"sub-folder of images for each class ({', '.join(sorted(ENDINGS))})"
            )
    paths, of_path, again = _each_file_once(root, paths, of_path)
    left_out += again
    ids = Names(path.relative_to(root).as_posix() for path in paths)
    number_of = {name: number for number, name in enumerate(names)}
    return RetrievalDataset(
        name="image_folder",
        ids=ids,
        labels=multi_hot(np.array([number_of[name] for name in of_path]), len(names))
        if names
        else np.zeros((len(ids), 0), np.uint8),
        class_names=names,
        images=in_memory_if_small(ImageFiles(ids, root)),
        reading=(),
        left_out=[(path.relative_to(root).as_posix(), reason) for path, reason in left_out],
    )


def _classes(root: Path, folders: list[Path], beside: list[Path]) -> tuple[list[Path], list[LeftOut], list[str]]:
    """Read the class folders of ``root``, and refuse folders that cannot be classes.

    Args:
        root: Folder of the class folders.
        folders: The class folders.
        beside: Everything else in ``root``.

    Returns:
        The images, the files that are left out, and the name of the class of each image.
    """
    if {folder.name.lower() for folder in folders} <= _PARTS:
        names = ", ".join(folder.name for folder in folders)
        raise DataError(
            f"{root} holds the folders {names}: these look like parts of a data set, not classes; point dataset.root "
            "at one of them, describe the division in a table with dataset=csv, or set dataset.labels=none to use all "
            "images without labels"
        )
    outside, left_out = _sort_out(beside)
    paths: list[Path] = []
    of_path: list[str] = []
    for folder in folders:
        found, others = images_below(folder)
        if not found and any(reason == OURS for _, reason in others):  # such as runs/ in the current folder
            left_out += others
            continue
        if not found:
            raise DataError(
                f"class folder {folder} holds no image ({len(others)} other files); add images "
                f"({', '.join(sorted(ENDINGS))}), remove the folder, or set dataset.labels=none if the sub-folders "
                "are no classes"
            )
        paths += found
        left_out += others
        # a name in two Unicode forms looks the same in every listing, and is one class
        of_path += [composed(folder.name)] * len(found)
    if outside:
        some = ", ".join(path.name for path in outside[:3])
        raise DataError(
            f"{root} holds {len(outside)} images ({some}{', ...' if len(outside) > 3 else ''}) beside {len(folders)} "
            "sub-folders, so they belong to no class: move them into class folders, or set dataset.labels=none to use "
            "all images without labels"
        )
    return paths, left_out, of_path


def _each_file_once(root: Path, paths: list[Path], of_path: list[str]) -> tuple[list[Path], list[str], list[LeftOut]]:
    """Leave out links to files that are in the folder already: a query would find itself in the database.

    Args:
        root: Folder of the images.
        paths: The images.
        of_path: Name of the class of each image; empty if there are no labels.

    Returns:
        The images, the class of each, and the links that are left out.

    Raises:
        DataError: If one file is in two classes.
    """
    first_of: dict[tuple[int, int], int] = {}
    kept, again = [], []
    for number, path in enumerate(paths):
        try:
            status = path.stat()
        except OSError:  # decoding says what is wrong
            kept.append(number)
            continue
        first = first_of.setdefault((status.st_dev, status.st_ino), number)
        if first == number or not is_same_file(path, paths[first], status):
            kept.append(number)
            continue
        if of_path and of_path[first] != of_path[number]:
            raise DataError(
                f"{paths[first]} and {path} are the same file, in the classes {of_path[first]} and {of_path[number]}: "
                "remove one of the two, or describe images of several classes in a table with dataset=csv"
            )
        again.append(LeftOut(path, f"{SAME} {paths[first].relative_to(root)}"))
    return [paths[number] for number in kept], [of_path[number] for number in kept] if of_path else [], again


def images_below(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """Return the image files below ``folder``, and everything that is not read, both sorted.

    A link to a file that does not exist counts as an image if it has an image's ending: decoding it is an error, as
    with a damaged image.

    Raises:
        DataError: If a folder cannot be listed.
    """
    found: list[Path] = []
    left_out: list[LeftOut] = []
    visited = set()

    def refuse(error: OSError) -> None:
        raise _unlisted(error) from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in visited:  # a link that leads back to a folder already visited
            folders.clear()
            left_out.append(LeftOut(Path(parent), "is a link to a folder that is read already"))
            continue
        if any(record <= set(names) for record in _RECORDS):  # a run folder has pictures of its results
            folders.clear()
            left_out.append(LeftOut(Path(parent), OURS))
            continue
        visited.add(real)
        left_out += [LeftOut(Path(parent, name), HIDDEN) for name in folders if is_hidden(name)]
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        images, others = _sort_out([Path(parent, name) for name in names])
        found += images
        left_out += others
    return sorted(found), sorted(left_out)


def _sort_out(entries: Sequence[Path]) -> tuple[list[Path], list[LeftOut]]:
    """Divide the entries of a folder into image files and everything that is not read."""
    reasons = [(path, _why_left_out(path)) for path in entries]
    images = [path for path, reason in reasons if reason is None]
    return images, [LeftOut(path, reason) for path, reason in reasons if reason is not None]


def _unlisted(error: OSError) -> DataError:
    return DataError(f"folder {error.filename} cannot be listed: {error.strerror}; make it readable, or move it away")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or is one that an operating system adds of itself."""
    return name.startswith(".") or name.lower() in _OF_A_SYSTEM


def _why_left_out(path: Path) -> str | None:
    """Return why a file is left out; None if it is read as an image."""
    if is_hidden(path.name):
        return HIDDEN
    ending = path.suffix.lower()
    if not ending:
        return "has no image ending"
    if ending not in endings():
        if ending in HEIF_ENDINGS:
            return f"is a HEIC image, which needs another package: {HEIF_PACKAGE}"
        return f"has the ending {ending}, which is not that of an image format that is read"
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a broken link, or a file that may not be looked at: decoding says which
        return None
    return None if regular else "is not a file: opening it could wait for ever"


def describe_left_out(left_out: Sequence[tuple[str | Path, str]], place: Path | str | None = None) -> str:
    """Return a sentence that counts the files that are left out, by ending.

    Args:
        left_out: Path of each file, and the reason why it is left out.
        place: File that lists them; None if there is none.
    """
    counts = Counter(_kind(Path(path), reason) for path, reason in left_out)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    files, each = ("file", "it") if len(left_out) == 1 else ("files", "each")
    sentence = f"left out {len(left_out)} {files}: {kinds}" + (f"; {place} names {each}" if place else "")
    needs_package = HEIF_ENDINGS & counts.keys() - endings()
    return f"{sentence}; to read {', '.join(sorted(needs_package))}: {HEIF_PACKAGE}" if needs_package else sentence


def _kind(path: Path, reason: str) -> str:
    if reason.startswith(SAME):
        return "linked twice"
    if reason in (HIDDEN, OURS):
        return "hidden" if reason == HIDDEN else "written by deephash"
    return path.suffix.lower() or "without ending"

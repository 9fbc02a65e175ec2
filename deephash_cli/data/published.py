"""Find the files of a published data set, say what is missing, and check how much is there."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.download import Archive, fetch_archives
from deephash_cli.data.location import candidate_folders, download_folder, listed
from deephash_cli.errors import ConfigError, DataError, hint, short


@dataclass(frozen=True)
class Item:
    """A file or folder of a published data set.

    Attributes:
        path: Path in the data set's folder, such as ``annotations/instances_train2014.json``.
        size: Size as people say it, such as "13 GB".
        source: Where it comes from: the address of its archive, perhaps with the size of the archive behind it, or the
            page with the form.
        or_path: Another path at which it may be; empty if there is none.
    """

    path: str
    size: str
    source: str
    or_path: str = ""

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has the file or folder."""
        return any((folder / path).exists() for path in (self.path, self.or_path) if path)


def find(name: str, title: str, root: str | Path | None, items: Sequence[Item], can_download: bool) -> Path:
    """Return the first of the usual folders that has every item.

    Args:
        name: Name of the data set, as in ``dataset=<name>``.
        title: Name of the data set for people.
        root: Folder that the user gives; None searches the usual folders.
        items: Files and folders that are needed.
        can_download: Whether ``dataset.download=true`` fetches them.

    Raises:
        DataError: If no folder has all of them. It names the first one that is missing in the folder that has most.
    """
    folders = _folders(name, root, items)
    missing = {folder: [item for item in items if not item.is_in(folder)] for folder in folders}
    best = min(folders, key=lambda folder: len(missing[folder]))
    if not missing[best]:
        return best
    first, others = missing[best][0], len(missing[best]) - 1
    place = f"in {listed(folders)}" if len(missing[best]) == len(items) else f"in {best}"
    more = f" and {others} more of its {len(items)} files and folders are" if others else " is"
    fetch = (
        f", or set dataset.download=true to have it fetched into {download_folder(name, root)}" if can_download else ""
    )
    raise DataError(
        f"{first.path} ({first.size}) of {title}{more} not {place}: get it from {first.source}, "
        f"{'unpack' if can_download else 'put'} it there or set dataset.root=<folder>{fetch}"
    )


def find_or_fetch(
    name: str, title: str, root: str | Path | None, items: Sequence[Item], archives: Sequence[Archive], download: bool
) -> Path:
    """Return the first of the usual folders that has every item; if none has, download what is missing if wanted.

    Args:
        name: Name of the data set, as in ``dataset=<name>``.
        title: Name of the data set for people.
        root: Folder that the user gives; None searches the usual folders.
        items: Files and folders that are needed.
        archives: Archives that have all of the items.
        download: Whether to download the archives and unpack them.

    Raises:
        DataError: If no folder has all items and they are not downloaded, or if that fails.
    """
    if download and not any(all(item.is_in(folder) for item in items) for folder in _folders(name, root, items)):
        folder = download_folder(name, root)
        sources = [item.source for item in items if not item.is_in(folder)]
        fetch_archives([part for part in archives if any(source.startswith(part.url) for source in sources)], folder)
    return find(name, title, root, items, can_download=True)


def _folders(name: str, root: str | Path | None, items: Sequence[Item]) -> list[Path]:
    """Return the folders in which items may be: the usual ones, or the user's, which may be one inside the layout."""
    folders = candidate_folders(name, root)
    if root is None:
        return folders
    inner = Path(items[0].path).parts[:-1]
    place = folders[0].absolute()
    above = [place.parents[depth - 1] for depth in range(1, len(inner) + 1) if place.parts[-depth:] == inner[:depth]]
    return folders + above


def require_counts(title: str, found: Mapping[str, int], published: Mapping[str, int], incomplete: bool) -> str:
    """Compare the numbers of images with the published ones.

    Args:
        title: Name of the data set for people.
        found: Number of images of each part.
        published: The published number of each part.
        incomplete: Whether other numbers are accepted.

    Returns:
        A remark for people if the numbers differ; empty if they are the published ones.

    Raises:
        DataError: If the numbers differ and are not accepted.
    """
    differ = [f"{found[part]:,} {part} of {count:,}" for part, count in published.items() if found[part] != count]
    if not differ:
        return ""
    counts = ", ".join(differ)
    if not incomplete:
        raise DataError(
            f"{title} is not complete: found {counts}; get the missing files, or set dataset.incomplete=true to go on "
            "with what is there, which gives numbers that cannot be compared with published ones"
        )
    return f"not complete: {counts}"


def existing(folder: Path, paths: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Return which of many files exist. Each folder is listed once, which is much faster than to look up each file.

    Args:
        folder: Folder that the paths start from.
        paths: Paths of the files (n,), with slashes.

    Raises:
        DataError: If a folder cannot be listed, or a path leads out of ``folder``.
    """
    names: dict[str, frozenset[str]] = {}
    found = np.zeros(len(paths), np.bool_)
    for number, path in enumerate(paths):
        parent, _, name = path.rpartition("/")
        if path.startswith("/") or (parent not in names and ".." in parent.split("/")):
            raise DataError(
                f"a list in {folder} names {short(path)}, which leads out of the folder; get the list again"
            )
        if parent not in names:
            names[parent] = names_in(folder / parent)
        found[number] = name in names[parent]
    return found


def names_in(folder: Path) -> frozenset[str]:
    """Return the names in a folder; none if there is no such folder.

    Raises:
        DataError: If the folder cannot be listed.
    """
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208  a path for each name would take most of the time
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be listed: {error.strerror or error}; change its mode") from error


_PARTS = {"all": "images", "train": "training images", "query": "test images"}


def complete(
    dataset: RetrievalDataset, title: str, counts: Mapping[str, int], incomplete: bool, folder: Path
) -> RetrievalDataset:
    """Compare the images that exist with the published numbers, and leave out those that do not exist.

    Args:
        dataset: Data set whose ids are the paths of its images.
        title: Name of the data set for people.
        counts: Published number of images, under "train" and "query" for the parts of the official division, or under
            "all".
        incomplete: Whether other numbers are accepted.
        folder: Folder that the paths start from.

    Returns:
        The data set of the images that exist; a remark tells if these are not all.

    Raises:
        DataError: If the numbers differ and are not accepted.
    """
    there = existing(folder, list(dataset.ids))
    parts = {"all": np.arange(len(dataset)), **(dataset.official or {})}
    found = {_PARTS[part]: int(there[parts[part]].sum()) for part in counts}
    missing = next((dataset.ids[row] for row in np.flatnonzero(~there).tolist()), None)
    where = f"{title} in {folder}" + (f", where {missing} is missing," if missing else "")
    remark = require_counts(where, found, {_PARTS[part]: count for part, count in counts.items()}, incomplete)
    if not remark:
        return dataset
    reading = (*(dataset.reading or ()), remark)
    return dataclasses.replace(dataset.subset(np.flatnonzero(there)), reading=reading)


def require_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Check the value of a setting.

    Raises:
        ConfigError: If the value is not among the known ones.
    """
    if value not in known:
        raise ConfigError(f"{name} must be {' or '.join(known)}, got {short(str(value))}{hint(str(value), known)}")

"""Find the folders in which a data set's files may be."""

import os
from pathlib import Path

from deephash_cli.cache import cache_folder


def candidate_folders(name: str, root: str | Path | None) -> list[Path]:
    """Return the folders in which data set ``name`` may be, in the order in which they are tried.

    If the user gives a root, it is the only candidate: falling back to another copy would hide a typing error. If
    ``root`` is None, the candidates are ``DEEPHASH_DATA_DIR`` (if it is set), ``data/`` and the cache.
    """
    if root is not None:
        return [Path(root).expanduser()]
    folders = [Path("data") / name, cache_folder() / name]
    if base := os.environ.get("DEEPHASH_DATA_DIR"):
        folders.insert(0, Path(base).expanduser() / name)
    return folders


def download_folder(name: str, root: str | Path | None) -> Path:
    """Return the candidate folder to which data set ``name`` is downloaded: the user's choice, or else the cache."""
    folders = candidate_folders(name, root)
    return folders[0] if os.environ.get("DEEPHASH_DATA_DIR") else folders[-1]


def listed(folders: list[Path]) -> str:
    """Return the folders as one text for an error message."""
    return ", ".join(str(folder) for folder in folders)

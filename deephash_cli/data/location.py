"""Where a data set's files are looked for."""

import os
from pathlib import Path

from deephash_cli.cache import cache_folder


def candidate_folders(name: str, root: str | Path | None) -> list[Path]:
    """The folders in which data set ``name`` may lie, in the order in which they are tried.

    A root that the user names is the only candidate: falling back to another copy would hide his typing error.
    """
    if root is not None:
        return [Path(root).expanduser()]
    folders = [Path("data") / name, cache_folder() / name]
    if base := os.environ.get("DEEPHASH_DATA_DIR"):
        folders.insert(0, Path(base).expanduser() / name)
    return folders


def download_folder(name: str, root: str | Path | None) -> Path:
    """The candidate folder into which data set ``name`` is downloaded: the user's own choice, else the cache."""
    folders = candidate_folders(name, root)
    return folders[0] if os.environ.get("DEEPHASH_DATA_DIR") else folders[-1]


def listed(folders: list[Path]) -> str:
    """The folders as they stand in an error message."""
    return ", ".join(str(folder) for folder in folders)

"""The cache folder: it keeps data between runs that could be computed or downloaded again."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for decoded images, features and downloads, and create it if it does not exist.

    This is ``$DEEPHASH_CACHE_DIR``, ``$XDG_CACHE_HOME/deephash`` or ``~/.cache/deephash``, whichever is set first. If
    it cannot be written (no home, a read-only disk), a private folder in the system's temporary directory takes its
    place: without a lasting cache a run takes longer, but it does not fail.
    """
    folder = _preferred()
    if folder is not None and _writable(folder):
        return folder
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    fallback = Path(tempfile.gettempdir()) / f"deephash-{user}"
    # Another user may have created a folder of this name in the shared directory; its content cannot be trusted.
    if _writable(fallback) and _is_ours(fallback):
        return fallback
    return Path(tempfile.mkdtemp(prefix="deephash-"))


def features_folder(key: str) -> Path:
    """Return the folder of the features with a key, which may not exist yet.

    Args:
        key: Key from `data.features.feature_key`.
    """
    return cache_folder() / "features" / key


def _preferred() -> Path | None:
    if named := os.environ.get("DEEPHASH_CACHE_DIR"):
        return Path(named).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "deephash"
    try:
        return Path.home() / ".cache" / "deephash"
    except RuntimeError:  # HOME is not set, and the system has no entry for this user
        return None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _is_ours(folder: Path) -> bool:
    return not folder.is_symlink() and (not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid())

"""Where things that can be computed or downloaded again are kept between runs."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The folder for decoded images, features and downloads, created if need be.

    ``$DEEPHASH_CACHE_DIR``, else ``$XDG_CACHE_HOME/deephash``, else ``~/.cache/deephash``. Where that cannot be written
    (no home, a read-only disk) a private folder in the system's temporary directory takes its place: a cache that
    cannot be kept costs time, never a run.
    """
    folder = _preferred()
    if folder is not None and _writable(folder):
        return folder
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    fallback = Path(tempfile.gettempdir()) / f"deephash-{user}"
    # Someone else may have made a folder of this name in the shared directory; what lies there is not to be trusted.
    if _writable(fallback) and _is_ours(fallback):
        return fallback
    return Path(tempfile.mkdtemp(prefix="deephash-"))


def _preferred() -> Path | None:
    if named := os.environ.get("DEEPHASH_CACHE_DIR"):
        return Path(named).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "deephash"
    try:
        return Path.home() / ".cache" / "deephash"
    except RuntimeError:  # neither HOME nor an entry for this user
        return None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _is_ours(folder: Path) -> bool:
    return not folder.is_symlink() and (not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid())

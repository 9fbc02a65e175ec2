"""Features of a frozen backbone: computed once, kept on disk as float16, shared by methods, code lengths and seeds."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deephash_cli import npy
from deephash_cli.errors import ArtifactError
from deephash_cli.files import alone, read_sealed, reason, remove_leftovers, sha256_file, sha256_start, write_sealed

_FLUSH_ROWS = 1024  # rows between two records of progress: the most that an interruption can cost


class Features:
    """Rows of a feature file, as float32.

    Args:
        array: Features of all images.
        key: Key of the file, from `feature_key`.
    """

    def __init__(self, array: Float[np.ndarray, "n features"], key: str):
        self.array = array
        self.key = key
        self._pages = npy.Pages(array)

    def __len__(self) -> int:
        return len(self.array)

    def batch(self, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n features"]:
        """Return the features at ``rows`` as float32."""
        found = self.array[rows]
        self._pages.count(rows)
        return torch.from_numpy(found).float().numpy()  # faster than astype


def feature_key(network_digest: str, data_digest: str) -> str:
    """Return the key of a feature file: the same backbone, weights, preprocessing and images give the same key.

    Args:
        network_digest: Digest of the backbone, its weights and its preprocessing.
        data_digest: Digest of the images.
    """
    return hashlib.sha256(f"float16 {network_digest} {data_digest}".encode()).hexdigest()[:32]


def cached_features(
    folder: Path,
    n: int,
    width: int,
    compute: Callable[[int, int], Float[Tensor, "m features"]],
    progress: Callable[[int], None],
) -> Features:
    """Read the features in ``folder``, computing what is missing.

    Args:
        folder: Folder in which ``features.npy`` is or will be; each key needs its own folder.
        n: Number of images.
        width: Length of a feature vector.
        compute: Function that is called with two row numbers and returns the features of the images from the first
            up to, but not including, the second.
        progress: Function that is called with the number of rows computed so far, at the start and after each piece.

    Raises:
        ArtifactError: If the folder cannot be written, or a feature is not finite as float16.
    """
    file, manifest, partial, done_file = (
        folder / name for name in ("features.npy", "manifest.json", "partial.npy", "partial.json")
    )
    size = 2 * n * width
    with _locked(folder):
        if not _complete(file, manifest, n, width):
            start, digest = _rows_done(partial, done_file, n, width)
            if not start:
                _require_room(folder, n, width)
            try:
                mode = "r+" if start else "w+"
                array = np.lib.format.open_memmap(partial, mode=mode, dtype=np.float16, shape=(n, width))
                _reserve(partial)
                if digest is None:
                    digest = sha256_start(partial, array.offset)
                progress(start)
                while start < n:
                    stop = min(start + _FLUSH_ROWS, n)
                    with np.errstate(over="ignore"):  # reported below
                        values = compute(start, stop).cpu().numpy().astype(np.float16)
                    if not np.isfinite(values).all():
                        raise ArtifactError(
                            f"the backbone gives features that float16 cannot hold (images {start} to {stop - 1}): "
                            "use model.frozen=false or other weights"
                        )
                    array[start:stop] = values
                    array.flush()
                    digest.update(np.ascontiguousarray(values).data)  # what was computed, not what the file has now
                    start = stop
                    size = array.offset + start * width * array.itemsize
                    done = {"rows": start, "n": n, "width": width, "bytes": size, "sha256": digest.hexdigest()}
                    write_sealed(done_file, done)
                    progress(start)
                del array
                partial.replace(file)
                done_file.unlink(missing_ok=True)
            except OSError as error:
                raise ArtifactError(f"could not store features in {folder}: {reason(error, folder, size)}") from error
            write_sealed(manifest, {"n": n, "width": width, "sha256": digest.hexdigest()})
    return Features(npy.load(file), folder.name)


def _reserve(file: Path) -> None:
    """Take the space of a file that is written through memory, where a full disk would end the process without a word.

    Raises:
        OSError: If there is not so much space; then the file is removed.
    """
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except (AttributeError, OSError) as error:  # not every system and every file system can
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                file.unlink()
                raise


def _require_room(folder: Path, n: int, width: int) -> None:
    """Check that the disk has room for all features, before the first is computed.

    Raises:
        ArtifactError: If it has not.
    """
    needed, free = 2 * n * width, shutil.disk_usage(folder).free
    if needed > free:
        raise ArtifactError(
            f"the features of {n} images take {needed / 1e9:.1f} GB, but the disk with {folder} has only "
            f"{free / 1e9:.1f} GB left: make room there, or set DEEPHASH_CACHE_DIR to a folder on another disk"
        )


def _complete(file: Path, manifest: Path, n: int, width: int) -> bool:
    """Return whether the file matches its manifest. A damaged file is computed again, which is always possible."""
    if not (file.exists() and manifest.exists()):
        return False
    try:
        expected = read_sealed(manifest)
        return expected == {"n": n, "width": width, "sha256": sha256_file(file)}
    except ArtifactError:
        return False


def _rows_done(partial: Path, done_file: Path, n: int, width: int) -> "tuple[int, hashlib._Hash | None]":
    """Return the number of rows that are done, and the SHA-256 of the file up to them; 0 and None if it is damaged.

    The digest was made of the values before they were written, so that damage of the file does not become a part of the
    finished features. Earlier versions recorded no digest: their rows are computed again.
    """
    if not (partial.exists() and done_file.exists()):
        return 0, None
    with contextlib.suppress(ArtifactError, EOFError, OSError, TypeError, KeyError, ValueError):
        done = read_sealed(done_file)
        shape = npy.load(partial).shape
        if (done["n"], done["width"]) == (n, width) == shape and 0 < done["rows"] <= n:
            digest = sha256_start(partial, done["bytes"])
            if digest.hexdigest() == done["sha256"]:
                return int(done["rows"]), digest
    return 0, None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let only one process compute at a time; the others wait and then find the finished file."""
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"could not store features in {folder}: {reason(error, folder)}") from error
        held.enter_context(alone(folder / "lock"))
        remove_leftovers(folder)
        yield

"""Decode small image files once, cache their pixels, and hold them in memory."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import UInt8

from deephash_cli import npy
from deephash_cli.cache import cache_folder
from deephash_cli.cores import usable_cores
from deephash_cli.data.dataset import ImageArray, ImageFiles
from deephash_cli.data.decoding import ImageError, decode
from deephash_cli.errors import ArtifactError
from deephash_cli.files import atomic_write, read_sealed, sha256_file, write_sealed

MAX_SIDE = 64
MAX_BYTES = 2**30
_SAMPLE = 16
_CHUNK = 512
_VERSION = 1  # version of the decoding; raise it when ``decode`` gives other pixels


def in_memory_if_small(files: ImageFiles) -> ImageArray | ImageFiles:
    """Decode the files into memory if all are squares of one size up to 64 pixels and fit in 1 GiB.

    Opening 60,000 files of 32 x 32 pixels costs far more than reading their pixels. The pixels are therefore kept in
    the cache folder, under a key made of every file's path, size and modification time. Other files are returned
    unchanged, as are files of which one cannot be read: it is reported when it is loaded, as with large images.
    """
    side = _common_side(files)
    if side is None or len(files) * 3 * side * side > MAX_BYTES:
        return files
    shape = (len(files), 3, side, side)
    try:
        key = hashlib.sha256(f"{_VERSION} {PIL.__version__} {shape} {files.digest()}".encode()).hexdigest()
    except ImageError:
        return files
    stored = cache_folder() / "images" / f"{key}.npy"
    pixels = _read(stored, shape)
    if pixels is None:
        pixels = _decode_all(files, shape)
        if pixels is None:
            return files
        _write(stored, pixels)
    return ImageArray(pixels)


def _common_side(files: ImageFiles) -> int | None:
    """Return the side that a sample of the files has in common, or None if they are not small squares of one size."""
    sides = set()
    for index in np.unique(np.linspace(0, len(files) - 1, num=_SAMPLE).astype(int)).tolist():
        try:
            sides.add(decode(files.source(index)).size)
        except ImageError:
            return None
    width, height = sides.pop()
    return width if not sides and width == height <= MAX_SIDE else None


def _decode_all(files: ImageFiles, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n 3 side side"] | None:
    """Decode all images, or return None at the first one that cannot be read or has another size than the sample."""
    pixels = np.empty(shape, dtype=np.uint8)

    def fill(start: int) -> bool:
        for index in range(start, min(start + _CHUNK, len(files))):
            try:
                image = decode(files.source(index))
            except ImageError:
                return False
            if (image.height, image.width) != shape[2:]:
                return False
            pixels[index] = np.asarray(image).transpose(2, 0, 1)
        return True

    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        tasks = [pool.submit(fill, start) for start in range(0, len(files), _CHUNK)]
        try:
            same = all(task.result() for task in tasks)
        finally:
            pool.shutdown(cancel_futures=True)
    return pixels if same else None


def _read(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n 3 side side"] | None:
    """Return the stored pixels, or None if they are missing or not what was written."""
    try:
        if read_sealed(path.with_suffix(".json")) != {"sha256": sha256_file(path)}:
            return None
        pixels = np.array(npy.load(path))
    except (ArtifactError, OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _write(path: Path, pixels: UInt8[np.ndarray, "n 3 side side"]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.save(file, pixels)
        write_sealed(path.with_suffix(".json"), {"sha256": sha256_file(path)})
    except (ArtifactError, OSError):
        return  # a full disk costs the next run some seconds, but must not stop this one

"""Find images and vectors with equal content, and images that look alike, by short digests of each."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from deephash_cli.data.dataset import ImageArray, ImageFiles, Vectors, to_rgb
from deephash_cli.data.decoding import ImageError, Member, decode, why
from deephash_cli.errors import ArtifactError
from deephash_cli.files import open_plain
from deephash_cli.retrieval import ranking

_BYTES = 16  # of the digest of a content
HASH_BITS = 64
_SIDE = 8  # rows of a difference hash, and comparisons in each
_TOGETHER = 4096  # rows that are looked at between two updates of the progress


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Digests of the content of some rows of a data set.

    Attributes:
        rows: Row numbers (m,) in the data set, ascending.
        content: Digests (m, 16): equal for equal pixels of images in memory, equal bytes of files, or equal vectors.
        hashes: Packed difference hashes (m, 8); None if they were not asked for.
        unreadable: Position among ``rows`` of each file that cannot be read, with the reason.
    """

    rows: Int64[np.ndarray, " m"]
    content: UInt8[np.ndarray, "m 16"]
    hashes: UInt8[np.ndarray, "m 8"] | None
    unreadable: list[tuple[int, str]]

    def groups(self) -> Int64[np.ndarray, " m"]:
        """Return a number for each row, which is the same for rows of equal content. Unreadable files have their own.

        The numbers are 0, 1, 2, ... without a gap.
        """
        whole = np.ascontiguousarray(self.content).view(f"V{_BYTES}")[:, 0]
        return np.unique(whole, return_inverse=True)[1].astype(np.int64)

    def near(self, distance: int) -> Iterator[Int64[np.ndarray, " _"]]:
        """Yield, for each row in order, the positions among ``rows`` of the other rows whose hashes are near.

        Args:
            distance: Largest Hamming distance of two hashes.

        Raises:
            ValueError: If there are no hashes.
        """
        if self.hashes is None:
            raise ValueError("near rows need difference hashes, which were not computed")
        readable = np.ones(len(self.rows), bool)
        readable[[position for position, _ in self.unreadable]] = False
        found = ranking.within(self.hashes, self.hashes, HASH_BITS, distance)
        for position, (_, others) in enumerate(found):
            kept = others[readable[others] & (others != position)]
            yield kept if readable[position] else kept[:0]


def difference_hash(image: Image.Image) -> UInt8[np.ndarray, " 8"]:
    """Return 64 bits that say where an image becomes brighter from left to right, packed.

    The image is shrunk to 9 x 8 grey pixels, of which each is compared with the next one in its row. The hash hardly
    changes if the image is scaled or compressed again, or becomes brighter. It changes if it is mirrored, turned or
    cropped.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS))
    return np.packbits(grey[:, 1:] > grey[:, :-1], bitorder="little")


def fingerprints(
    images: ImageArray | ImageFiles | Vectors,
    rows: Int64[np.ndarray, " m"],
    near: bool,
    show: Callable[[int], None] = lambda _: None,
) -> Fingerprints:
    """Read the images at ``rows`` once and digest the content of each.

    Args:
        images: Images or vectors.
        rows: Row numbers, ascending.
        near: Whether to compute difference hashes of images, for which files are decoded.
        show: Called with the number of rows that are done.
    """
    content = np.zeros((len(rows), _BYTES), np.uint8)
    hashes = np.zeros((len(rows), HASH_BITS // 8), np.uint8) if near and not isinstance(images, Vectors) else None
    unreadable = []
    for start in range(0, len(rows), _TOGETHER):
        for position, print_ in enumerate(_look(images, rows[start : start + _TOGETHER], hashes is not None), start):
            if print_.reason is None:
                content[position] = np.frombuffer(print_.content, np.uint8)
                if hashes is not None and print_.hash is not None:
                    hashes[position] = print_.hash
            else:
                unreadable.append((position, print_.reason))
                content[position] = np.frombuffer(_digest(b"unreadable %d" % position), np.uint8)
        show(min(start + _TOGETHER, len(rows)))
    return Fingerprints(rows, content, hashes, unreadable)


class _Print(NamedTuple):
    content: bytes
    hash: UInt8[np.ndarray, " 8"] | None
    reason: str | None


def _look(
    images: ImageArray | ImageFiles | Vectors, rows: Int64[np.ndarray, " b"], near: bool
) -> Sequence[_Print] | Iterator[_Print]:
    if isinstance(images, ImageFiles):
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda row: _of_file(images, int(row), near), rows))
    arrays = np.ascontiguousarray(images.batch(rows))
    prints = [_digest(array.data) for array in arrays]
    if not near:
        return [_Print(digest, None, None) for digest in prints]
    pixels = to_rgb(arrays)
    return [
        _Print(digest, difference_hash(Image.fromarray(own)), None) for digest, own in zip(prints, pixels, strict=True)
    ]


def _of_file(images: ImageFiles, row: int, near: bool) -> _Print:
    source = images.source(row)
    try:
        content = source.read() if isinstance(source, Member) else _content(source)
        hashed = difference_hash(decode(content, at_least=_SIDE + 1)) if near else None
    except ImageError as error:
        return _Print(b"", None, error.reason)
    except (ArtifactError, OSError) as error:
        cause = error.__cause__
        place = source.archive if isinstance(source, Member) else source
        return _Print(b"", None, f"cannot be read: {why(place, cause if isinstance(cause, OSError) else error)}")
    return _Print(_digest(content), hashed, None)


def _content(path: Path) -> bytes:
    with open_plain(path) as file:
        return file.read()


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_BYTES).digest()

"""Retrieval data sets: ids, multi-hot labels, images or vectors and, optionally, the authors' own division."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Integer, UInt8

from deephash_cli.data.decoding import Member, decode, unreadable, why
from deephash_cli.data.identity import alike, composed
from deephash_cli.data.preprocessing import Preprocessing, central_square
from deephash_cli.errors import DataError
from deephash_cli.names import Names
from deephash_cli.npy import Pages, RowNumbers, blocks, ids_at

_ROLES = ("train", "query", "database")

Rows = Integer[np.ndarray, "b"]


class ImageArray:
    """Small images that are held in memory.

    Attributes:
        images: Pixels (n, channels, height, width), uint8; grey images have one channel.
        in_memory: Always True, because ``batch`` only indexes and decodes nothing.
    """

    in_memory = True

    def __init__(self, images: UInt8[np.ndarray, "n channels height width"]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Rows) -> UInt8[np.ndarray, "b channels height width"]:
        """Return the images at ``rows``, in that order and at their own size."""
        return self.images[rows]

    def subset(self, rows: Rows) -> "ImageArray":
        """Return the images at ``rows``, in that order."""
        return ImageArray(self.images[rows])

    def digest(self) -> str:
        """Return the SHA-256 of shape and pixels: equal images have equal digests, wherever they were loaded from."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:  # the runs of a sweep share the images
        digest = hashlib.sha256(f"uint8 {self.images.shape}\n".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


class ImageFiles:
    """Image files that are decoded on demand. Instances can be pickled, for data loader workers.

    Any JPEG, PNG, WebP, BMP, GIF, AVIF, TIFF or HEIC becomes 8-bit RGB: the EXIF rotation is applied, 16-bit values
    keep their upper 8 bits, transparent images are placed on white (as on a white page), grey is repeated in all
    channels, CMYK is converted without a colour profile, and only the first frame or page of a file is read.

    Attributes:
        paths: Paths of the files, absolute or relative to ``root``, as text.
        root: Folder that relative paths start from.
        form: Steps from an image to the square that ``load`` and ``batch`` return if they are called without a size;
            None if each call must give one.
        in_memory: Always False, because ``batch`` reads and decodes files.
    """

    in_memory = False

    def __init__(self, paths: Sequence[str | Path], root: Path, form: Preprocessing | None = None) -> None:
        self.paths = paths if isinstance(paths, Names) else Names(map(str, paths))
        self.root = root
        self.form = form

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> Path:
        """Return the path of the image at ``row``."""
        return self.root / self.paths[row]

    def source(self, row: int) -> Path | Member:
        """Return where the image at ``row`` is, for ``decode``."""
        return self.path(row)

    def subset(self, rows: Rows) -> "ImageFiles":
        """Return the files at ``rows``, in that order."""
        return ImageFiles(self.paths.take(rows), self.root, self.form)

    def prepared(self, form: Preprocessing) -> "ImageFiles":
        """Return the same files, of which ``batch(rows)`` returns what ``form`` makes of them."""
        return ImageFiles(self.paths, self.root, form)

    def load(self, index: int, size: int | None = None) -> UInt8[np.ndarray, "3 size size"]:
        """Load one image, resized and cropped.

        Args:
            index: Row of the image.
            size: Side in pixels of the result, which is the central square, resized (bilinear, antialiased); None does
                what the attribute ``form`` says.

        Raises:
            DataError: If the file is missing, cannot be decoded, or is a decompression bomb.
            ValueError: If there is neither a size nor a form, or the size is less than 1.
        """
        form = self._form(size)
        return form.pixels(decode(self.source(index), at_least=form.resized))

    def batch(self, rows: Rows, size: int | None = None) -> UInt8[np.ndarray, "b 3 size size"]:
        """Load the images at ``rows``, in that order, each as ``load`` returns it.

        Raises:
            DataError: If one of the files is missing, cannot be decoded, or is a decompression bomb.
            ValueError: If there is neither a size nor a form, or the size is less than 1.
        """
        side = self._form(size).size
        pixels = np.empty((len(rows), 3, side, side), dtype=np.uint8)
        for position, row in enumerate(rows.tolist()):
            pixels[position] = self.load(row, size)
        return pixels

    def digest(self) -> str:
        """Return the SHA-256 of each file's path, size and modification time: the key of a cache of these images.

        Raises:
            DataError: If a file is missing.
        """
        digest = hashlib.sha256()
        for path in map(Path, self.paths):
            try:
                status = (self.root / path).stat()
            except OSError as error:
                raise unreadable(self.root / path, why(self.root / path, error)) from error
            digest.update(
                f"{path.as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
        return digest.hexdigest()

    def _form(self, size: int | None) -> Preprocessing:
        if size is None and self.form is not None:
            return self.form
        if size is None or size < 1:
            raise ValueError(f"images from files need a size of at least 1 pixel, got {size}")
        return central_square(size)


class Spread(NamedTuple):
    """Where the values of each column of vectors lie. The deviation of a column is exactly 0 if it is constant."""

    mean: Float64[np.ndarray, " d"]
    deviation: Float64[np.ndarray, " d"]


class Vectors:
    """Feature vectors made by another program, possibly mapped from a file. They are hashed as they are.

    Attributes:
        array: Vectors (n, d), floating point.
        in_memory: Always True, because ``batch`` only indexes and decodes nothing.
    """

    in_memory = True

    def __init__(self, array: Float[np.ndarray, "n d"]) -> None:
        self.array = array
        self._pages = Pages(array)

    def __len__(self) -> int:
        return len(self.array)

    def batch(self, rows: Rows) -> Float32[np.ndarray, "b d"]:
        """Return the vectors at ``rows``, in that order, as float32."""
        found = np.ascontiguousarray(self.array[rows], dtype=np.float32)
        self._pages.count(rows)
        return found

    def subset(self, rows: Rows) -> "Vectors":
        """Return the vectors at ``rows``, in that order."""
        return Vectors(self.array[rows])

    @functools.cached_property
    def spread(self) -> Spread:
        """Mean and standard deviation of each column, computed in float64 from the float32 values, block by block."""
        with np.errstate(over="ignore", invalid="ignore"):  # a value that is not finite makes its column NaN
            first = (
                self.array[0].astype(np.float32).astype(np.float64)
            )  # subtracted first, or a large mean costs digits
            sums, squares = np.zeros((2, self.array.shape[1]))
            for rows in blocks(self.array):
                block = self.array[rows].astype(np.float32) - first
                sums += block.sum(axis=0)
                squares += np.einsum("nd,nd->d", block, block)
                self._pages.count(rows)
            mean = sums / len(self)
            return Spread(first + mean, np.sqrt(np.maximum(squares / len(self) - mean**2, 0)))

    def digest(self) -> str:
        """Return the SHA-256 of shape and float32 values: equal vectors have equal digests, wherever they come from."""
        digest = hashlib.sha256(f"float32 {self.array.shape}\n".encode())
        for rows in blocks(self.array):
            block = np.ascontiguousarray(self.array[rows], dtype="<f4")
            digest.update(block.data)
            self._pages.count(rows)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class RetrievalDataset:
    """A data set of images to search, before it is divided into queries, training set and database.

    Attributes:
        name: Name that the loader gives the data set; it is stored with splits and codes.
        ids: One id for each image: unique, on one line, and the same on every machine that has the same data. They
            become ``Names``, unless they are row numbers.
        labels: Multi-hot labels (n, classes), even if each image has one class. A row of zeros is an image without a
            label. Zero columns mean a data set without labels, for which only unsupervised methods can make codes.
        class_names: One name for each column of ``labels``.
        images: Images in memory or in files; or vectors, to which everything said here about images applies.
        official: The authors' own division: row numbers under "train", "query" and, optionally, "database"; None if
            there is none.
        reading: Remarks on how the user's files were understood, to be shown before training; None for a published
            data set.
        left_out: Files beside the images that are not read, each with its path and a reason.
        unreadable: Ids of image files that cannot be read and were taken out of the data set, each with a reason.
        usual: Name of the protocol that the data set's papers use; None if there is none.

    Raises:
        DataError: If there is no image, lengths differ, ids repeat or span lines, ids or class names look the same
            when printed, a label is not 0 or 1, or ``official`` has an unknown part or row.
    """

    name: str
    ids: Sequence[str]
    labels: UInt8[np.ndarray, "n classes"]
    class_names: list[str]
    images: ImageArray | ImageFiles | Vectors
    official: dict[str, Int64[np.ndarray, "_"]] | None = None
    reading: tuple[str, ...] | None = None
    left_out: Sequence[tuple[str, str]] = ()
    unreadable: Sequence[tuple[str, str]] = ()
    usual: str | None = None

    def __post_init__(self) -> None:
        count = len(self.ids)
        if count == 0:
            raise DataError(f"data set {self.name} has no images; at least one is needed")
        if not count == len(self.labels) == len(self.images):
            raise DataError(
                f"data set {self.name} has {count} ids, {len(self.labels)} rows of labels and {len(self.images)} "
                "images; the three counts must be equal"
            )
        if self.labels.shape[1] != len(self.class_names):
            raise DataError(
                f"data set {self.name} has {self.labels.shape[1]} label columns and {len(self.class_names)} class "
                "names; the two counts must be equal"
            )
        if pair := alike(self.class_names):
            raise DataError(
                f"data set {self.name} has the classes {pair[0]!a} and {pair[1]!a}, which look the same when printed; "
                "give them one name"
            )
        if self.labels.size and self.labels.max() > 1:
            raise DataError(f"data set {self.name} has a label {self.labels.max()}; labels are 0 or 1")
        if not isinstance(self.ids, RowNumbers):
            self._check_ids()
            if not isinstance(self.ids, Names):
                object.__setattr__(self, "ids", Names(self.ids))
        for role, rows in (self.official or {}).items():
            if role not in _ROLES:
                raise DataError(f"data set {self.name} has a part {role!r}; the parts are train, query and database")
            if len(rows) and not 0 <= rows.min() <= rows.max() < count:
                raise DataError(
                    f"data set {self.name} has {count} images, but its {role} part names a row outside these"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_own_division(self) -> bool:
        """Whether ``official`` is a whole division, and not only parts from which the usual protocol draws."""
        return self.official is not None and (self.usual is None or "train" in self.official)

    def subset(self, rows: Int64[np.ndarray, " m"]) -> "RetrievalDataset":
        """Return a data set of some rows, in that order; of the authors' division, the part that is in it.

        Args:
            rows: Row numbers, all different.
        """
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))
        official = self.official
        if official is not None:
            official = {role: place[old][place[old] >= 0] for role, old in official.items()}
        return dataclasses.replace(
            self,
            ids=ids_at(self.ids, rows),
            labels=self.labels[rows],
            images=self.images.subset(rows),
            official=official,
        )

    def _check_ids(self) -> None:
        seen: dict[str, str] = {}
        for identifier in self.ids:
            form = composed(identifier)
            if form in seen:
                both = "twice" if seen[form] == identifier else f"and {seen[form]!a}, which look the same"
                shown = repr(identifier) if both == "twice" else ascii(identifier)
                raise DataError(f"data set {self.name} has the id {shown} {both}; ids must be unique: rename one")
            seen[form] = identifier
            # Ids are stored one per line, so they may contain no character that ends a line for any reader.
            if identifier.splitlines() != [identifier]:
                raise DataError(
                    f"data set {self.name} has the id {identifier!r}, which is empty or spans several lines; rename it"
                )
            if any("\ud800" <= character <= "\udfff" for character in identifier):
                raise DataError(f"data set {self.name} has the id {identifier!a}, which is not valid UTF-8; rename it")


def to_rgb(pixels: UInt8[np.ndarray, "n channels height width"]) -> UInt8[np.ndarray, "n height width 3"]:
    """Return grey or colour images with the channels last, as Pillow takes them; grey is repeated in all channels."""
    n, _, height, width = pixels.shape
    return np.ascontiguousarray(np.broadcast_to(pixels, (n, 3, height, width)).transpose(0, 2, 3, 1))


def multi_hot(classes: Integer[np.ndarray, " n"], count: int) -> UInt8[np.ndarray, "n count"]:
    """Convert one class number per image, (n,), to multi-hot labels, the form that the whole project uses."""
    labels = np.zeros((len(classes), count), dtype=np.uint8)
    labels[np.arange(len(classes)), classes] = 1
    return labels

"""Decode image files of a few formats to 8-bit RGB, with a limit on their size. Imports no torch."""

import functools
import importlib.util
import io
import logging
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from deephash_cli.errors import DataError

# Every decoder is a way in for malformed files, and Pillow has forty of them: only these formats are accepted.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF", "TIFF")
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".avif", ".tif", ".tiff"})
HEIF_ENDINGS = frozenset({".heic", ".heif"})
HEIF_PACKAGE = "pip install 'deephash[heif]'"

# Pillow's own threshold for decompression bombs: a quarter of a GiB as RGB, more than any photograph here needs.
MAX_PIXELS = 89_478_485
_BAND = 2**22  # pixels that are converted to RGB at a time

_ORIENTATION = 0x0112  # EXIF
_PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH = 262, 322, 323  # TIFF
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# Damaged metadata does not matter to the pixels, and what does matter is an error here.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


class ImageError(DataError):
    """An image file that cannot be read.

    Args:
        message: The whole sentence.
        reason: The part of it that says why, as a clause whose subject is the image.

    Attributes:
        reason: Why the image cannot be read.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Member:
    """A file inside an archive that is not compressed.

    Attributes:
        archive: Path of the archive.
        offset: Position of the file's first byte in the archive.
        size: Number of bytes of the file.
        name: Name of the file for messages.
    """

    archive: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """Return the content of the file.

        Raises:
            OSError: If the archive cannot be read.
        """
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@functools.lru_cache(maxsize=1)
def endings() -> frozenset[str]:
    """Return the endings of image files, in lower case; HEIC is among them if its package is installed."""
    return ENDINGS | HEIF_ENDINGS if importlib.util.find_spec("pillow_heif") else ENDINGS


def decode(source: Path | Member | bytes, at_least: int | None = None) -> Image.Image:
    """Read an image file as RGB, rotated upright. The first frame or page stands for a file with several.

    Args:
        source: Path of the file, its place in an archive, or its content as bytes.
        at_least: Length in pixels to which the caller will shrink the shorter side; None decodes at full size. A JPEG
            more than twice as large is then decoded at a half, a quarter or an eighth of its size, which is several
            times faster for photographs.

    Raises:
        ImageError: If the file is missing, cannot be decoded, or has more than ``MAX_PIXELS``.
    """
    path = source if isinstance(source, Path) else str(source) if isinstance(source, Member) else "that was given"
    head = b""
    try:
        with _open(source) as file:
            head = file.read(64)
            file.seek(0)
            with Image.open(file, formats=_formats(path, head)) as image:
                _check(path, image)
                if at_least is not None:
                    image.draft(image.mode, (2 * at_least, 2 * at_least))
                image.load()
                return _to_rgb(_upright(image), inverted=_is_inverted(image))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(path, "too many") from error
    except Image.UnidentifiedImageError as error:
        raise unreadable(path, _why_unidentified(head)) from error
    except Exception as error:  # decoders fail in a dozen ways on damaged files; to the user they all mean the same
        raise unreadable(path, why(path, error)) from error


def _open(source: Path | Member | bytes) -> io.BytesIO | io.BufferedReader:
    """Open a file, but only if it is a regular one: opening a pipe would wait for ever."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, Member):
        return io.BytesIO(source.read())
    kind = stat.S_IFMT(source.stat().st_mode)
    if kind != stat.S_IFREG:
        raise unreadable(source, f"it is {_KINDS.get(kind, 'something else')}, not a file")
    return source.open("rb")


def _formats(path: Path | str, head: bytes) -> tuple[str, ...]:
    """Return the formats to try for a file that starts with ``head``."""
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF or b"avif" in head:
        return FORMATS
    if not _register_heif():
        raise _error(path, f"is a HEIC image, which needs another package: {HEIF_PACKAGE}", "or convert the image")
    return ("HEIF",)


@functools.lru_cache(maxsize=1)
def _register_heif() -> bool:
    """Teach Pillow to open HEIC. Return whether the package for it is installed."""
    try:
        import pillow_heif  # type: ignore[import-not-found]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _check(path: Path | str, image: Image.Image) -> None:
    """Refuse an image that was opened and not yet decoded, if it is too large or has no defined range of values.

    Raises:
        ImageError: If the image is refused.
    """
    if image.width * image.height > MAX_PIXELS:
        raise _bomb(path, f"{image.width} x {image.height}")
    if image.format != "TIFF":
        return
    tile = [image.tag_v2.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH)]  # type: ignore[attr-defined]
    if tile[0] * tile[1] > MAX_PIXELS:  # a small image may claim to be stored in an enormous tile
        raise _bomb(path, f"a tile of {tile[0]} x {tile[1]}")
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise _error(
            path, f"has {kind} values, whose range from black to white is not defined", "convert it to 8 or 16 bits"
        )


def _is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white in 16-bit values. Pillow turns the values of 1 and 8 bits around, but not these."""
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and image.mode.startswith("I") and tags.get(_PHOTOMETRIC) == 0


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # an EXIF block that cannot be parsed says nothing about rotation, and the pixels are sound
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image, inverted: bool) -> Image.Image:
    """Return an image as RGB. A large one is converted band by band, because a conversion makes up to five copies."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        return _band_to_rgb(image, inverted)
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_band_to_rgb(band, inverted), (0, top))
    return result


def _band_to_rgb(image: Image.Image, inverted: bool) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255 instead of scaling them
        values = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray((255 - values if inverted else values).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        visible = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible).convert("RGB")
    return image.convert("RGB")


def _why_unidentified(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.startswith(_TIFF):
        return "it is a damaged TIFF, or its values or bands are of a kind that is not supported"
    if head[4:8] == b"ftyp" and b"avif" in head:
        return "it is a damaged AVIF, or the installed Pillow was built without AVIF"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        return "it is a damaged HEIC"
    return f"it is none of {', '.join(FORMATS)}, whatever its name says"


def why(path: Path | str, error: Exception) -> str:
    """Return why a file cannot be read, from the error that reading it raised."""
    if isinstance(error, FileNotFoundError) and isinstance(path, Path) and path.is_symlink():
        return f"it is a broken link to {path.readlink()}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _error(path: Path | str, reason: str, remedy: str) -> ImageError:
    return ImageError(f"image {path} {reason}; {remedy}", reason)


def _bomb(path: Path | str, pixels: str) -> ImageError:
    return _error(path, f"has {pixels} pixels, more than the {MAX_PIXELS} allowed", "shrink or remove the file")


def unreadable(path: Path | str, reason: str) -> ImageError:
    """Return the error for an image that cannot be read, for the reason given."""
    reason = " ".join(reason.split()).rstrip(".")  # some decoders' messages span lines
    return _error(path, f"cannot be read: {reason}", "replace or remove the file")

"""Decode image files of a few formats to 8-bit RGB, with a limit on their size. Imports no torch."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from deephash_cli.errors import DataError

# Every decoder is a way in for malformed files, and Pillow has forty of them: only these formats are accepted.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})

# Pillow's own threshold for decompression bombs: a quarter of a GiB as RGB, more than any photograph here needs.
MAX_PIXELS = 89_478_485

_ORIENTATION = 0x0112  # EXIF


def decode(source: Path | bytes, at_least: int | None = None) -> Image.Image:
    """Read an image file as RGB, rotated upright.

    Args:
        source: Path of the file, or its content as bytes.
        at_least: Length in pixels to which the caller will shrink the shorter side; None decodes at full size. A JPEG
            more than twice as large is then decoded at a half, a quarter or an eighth of its size, which is several
            times faster for photographs.

    Raises:
        DataError: If the file is missing, cannot be decoded, or has more than ``MAX_PIXELS``.
    """
    path = "that was given" if isinstance(source, bytes) else source
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        with opened as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _bomb(path, f"{image.width} x {image.height}")
            if at_least is not None:
                image.draft(image.mode, (2 * at_least, 2 * at_least))
            image.load()
            return _to_rgb(_upright(image))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(path, "too many") from error
    except Image.UnidentifiedImageError as error:
        empty = not source if isinstance(source, bytes) else source.stat().st_size == 0
        reason = "it is empty" if empty else f"it is none of {', '.join(FORMATS)}, whatever its name says"
        raise unreadable(path, reason) from error
    except Exception as error:  # decoders fail in a dozen ways on damaged files; to the user they all mean the same
        raise unreadable(path, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # an EXIF block that cannot be parsed says nothing about rotation, and the pixels are sound
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255 instead of scaling them
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        visible = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible).convert("RGB")
    return image.convert("RGB")


def _bomb(path: Path | str, pixels: str) -> DataError:
    return DataError(f"image {path} has {pixels} pixels, more than the {MAX_PIXELS} allowed; shrink or remove the file")


def unreadable(path: Path | str, reason: str) -> DataError:
    """Return the error for an image that cannot be read, for the reason given."""
    reason = " ".join(reason.split()).rstrip(".")  # some decoders' messages span lines
    return DataError(f"image {path} cannot be read: {reason}; replace or remove the file")


def square(image: Image.Image, side: int) -> UInt8[np.ndarray, "3 side side"]:
    """Return the central square of an RGB image, resized to ``side`` pixels a side (bilinear, antialiased)."""
    if image.size != (side, side):
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

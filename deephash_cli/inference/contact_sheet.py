"""Contact sheets: one or more rows per query; the query on the left, its results to the right, nearest first."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps

from deephash_cli.errors import ConfigError
from deephash_cli.runs.outputs import SOFTWARE

_SIDE = 128  # pixels of an image
_FRAME = 4  # pixels of the frame around an image
_GAP = 8  # pixels between images
_LINE = 17  # pixels of a line of text
_LEFT = 24  # extra space between the query and its results
_ACROSS = 10  # results in a row
_COLOURS = {True: "#1a9641", False: "#d7191c", None: "#c8c8c8"}  # colours of frames; False is also crossed
_FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True)
class Tile:
    """An image with two lines of text below it.

    Attributes:
        image: Image in RGB; None if it is not available.
        title: First line of text.
        note: Second line of text.
        relevant: Whether the image is relevant to its query, which chooses the frame: True is green, False is red and
            crossed, None, for unknown, is grey.
    """

    image: Image.Image | None
    title: str
    note: str
    relevant: bool | None


def contact_sheet(queries: Sequence[Sequence[Tile]], ending: str) -> bytes:
    """Draw a contact sheet.

    Args:
        queries: Tiles of each query: first the query's own, then those of its results.
        ending: Ending of the file name, which chooses the format: .png, .webp, .jpg or .jpeg.

    Returns:
        Content of the image file.

    Raises:
        ConfigError: If the ending is not one of these.
    """
    form = image_format(ending)
    cell, height = _SIDE + 2 * _FRAME + _GAP, _SIDE + 2 * _FRAME + 2 * _LINE + _GAP
    rows = [
        [tiles[0] if start == 1 else None, *tiles[start : start + _ACROSS]]
        for tiles in queries
        for start in range(1, max(2, len(tiles)), _ACROSS)
    ]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * cell + _GAP + _LEFT, len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            if tile is None:
                continue
            left, top = _GAP + x * cell + (_LEFT if x else 0), _GAP + y * height
            draw.rectangle(
                (left, top, left + _SIDE + 2 * _FRAME - 1, top + _SIDE + 2 * _FRAME - 1), fill=_COLOURS[tile.relevant]
            )
            sheet.paste(_square(tile.image), (left + _FRAME, top + _FRAME))
            if tile.relevant is False:
                draw.line((left, top, left + 24, top + 24), fill=_COLOURS[False], width=_FRAME)
                draw.line((left + 24, top, left, top + 24), fill=_COLOURS[False], width=_FRAME)
            for number, (text, colour) in enumerate(((tile.title, "#000000"), (tile.note, "#555555"))):
                place = (left + _FRAME, top + _SIDE + 2 * _FRAME + number * _LINE)
                draw.text(place, _fitting(text, font), colour, font)
    file = io.BytesIO()
    facts = Image.Exif()
    facts[ExifTags.Base.Software] = SOFTWARE  # by which a later search recognizes its own pictures
    sheet.save(file, form, exif=facts)
    return file.getvalue()


def image_format(ending: str) -> str:
    """Return the format that an ending of a file name chooses, such as ``PNG``.

    Raises:
        ConfigError: If the ending is not .png, .webp, .jpg or .jpeg.
    """
    if ending.lower() not in _FORMATS:
        raise ConfigError(f"picture must end in {', '.join(_FORMATS)}, got {ending or 'no ending'}")
    return _FORMATS[ending.lower()]


def _square(image: Image.Image | None) -> Image.Image:
    if image is None:
        return Image.new("RGB", (_SIDE, _SIDE), "#eeeeee")
    # tiny images are enlarged without smoothing, so that their pixels are visible
    method = Image.Resampling.NEAREST if max(image.size) * 2 <= _SIDE else Image.Resampling.LANCZOS
    return ImageOps.pad(image, (_SIDE, _SIDE), method, color="#eeeeee")


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten a text to the width of an image. The start is cut off, because the end of a long name says most."""
    text = " ".join(text.split())[-200:]
    whole = text
    while text and font.getlength(text if text == whole else f"…{text}") > _SIDE:
        text = text[1:]
    return text if text == whole else f"…{text}"

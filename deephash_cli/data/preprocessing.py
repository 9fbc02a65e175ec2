"""Resize and crop images as the weights of a network expect them. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from deephash_cli.errors import ConfigError, short

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
INTERPOLATIONS = tuple(_FILTERS)
CROP_MODES = ("center", "squash", "square")
_CHANNELS = 3


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image of any size to the input of a network.

    Attributes:
        size: Side in pixels of the square that the network takes.
        crop: Share of the resized image's side that is kept, in (0, 1].
        crop_mode: ``center`` resizes the shorter side to ``resized`` pixels and keeps the central square of ``size``
            pixels. ``squash`` resizes both sides to ``resized`` pixels, whatever the shape, and does the same. Both are
            what timm does. ``square`` cuts out the central square first and resizes that: it is the same up to half a
            pixel, and what earlier versions of deephash did.
        interpolation: Filter that resizes, antialiased: ``bilinear`` or ``bicubic``.
        mean: Values for the red, green and blue channels, subtracted from images scaled to [0, 1].
        std: Values by which the three channels are divided after that.

    Raises:
        ConfigError: If a value is outside its range or is a word that is not supported.
    """

    size: int
    crop: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.crop_mode not in CROP_MODES:
            raise ConfigError(
                f"crop_mode={short(str(self.crop_mode))} is not supported: set model.network.crop_mode to "
                f"{' or '.join(CROP_MODES)}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation={short(str(self.interpolation))} is not supported: set model.network.interpolation to "
                f"{' or '.join(INTERPOLATIONS)}"
            )
        if not _is_number(self.crop) or not 0 < self.crop <= 1:
            raise ConfigError(f"model.network.crop must be above 0 and at most 1, got {short(str(self.crop))}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != _CHANNELS or not all(_is_number(value) for value in values):
                raise ConfigError(f"model.network.{name} must be three numbers, got {short(str(list(values)))}")
        if 0 in self.std:
            raise ConfigError(f"model.network.std must not contain 0, got {list(self.std)}")
        if type(self.size) is not int or self.size < 1:
            raise ConfigError(f"model.image_size must be a whole number of pixels, got {short(str(self.size))}")

    @property
    def resized(self) -> int:
        """Length in pixels to which the shorter side is resized before the crop."""
        return math.floor(self.size / self.crop)

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "3 size size"]:
        """Resize and crop an RGB image of any shape. One that already has the size is returned as it is.

        Only the part that is kept is computed, so memory is bounded for extreme shapes.
        """
        if image.size != (self.size, self.size):
            box = self._box(*image.size)
            image = image.resize((self.size, self.size), _FILTERS[self.interpolation], box=box)
        return to_array(image)

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image that becomes the input: left, top, right and bottom edge in its pixels."""
        shorter = min(width, height)
        if self.crop_mode == "square":
            side = shorter * self.crop
            left, top = ((length - shorter) // 2 + (shorter - side) / 2 for length in (width, height))
            return left, top, left + side, top + side
        squashed = self.crop_mode == "squash"
        edges = []
        for length in (width, height):
            long = self.resized if squashed else int(self.resized * length / shorter)  # rounded as torchvision does
            start = round((long - self.size) / 2)
            edges.append((start * length / long, min((start + self.size) * length / long, length)))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def record(self) -> dict[str, Any]:
        """Return the values as a plain dictionary, in which lists stand for tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Preprocessing":
        """Return the values of a dictionary that ``record`` made.

        Raises:
            ConfigError: If a value is outside its range.
            KeyError: If a value is missing.
            TypeError: If ``mean`` or ``std`` is no list.
        """
        texts = {name: record[name] for name in ("size", "crop", "crop_mode", "interpolation")}
        return cls(**texts, mean=tuple(record["mean"]), std=tuple(record["std"]))

    def __str__(self) -> str:
        shown = {"center": "centre crop", "squash": "squashed, then cropped", "square": "central square"}[
            self.crop_mode
        ]
        channels = f"mean {_list(self.mean)}, std {_list(self.std)}"
        return f"{self.size} px, {self.interpolation}, {shown} of {self.crop:g}, {channels}"


def central_square(size: int) -> Preprocessing:
    """Return the steps to the central square of an image, resized to ``size`` pixels a side, without a network."""
    return Preprocessing(size, 1.0, "square", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def to_array(image: Image.Image) -> UInt8[np.ndarray, "3 height width"]:
    """Return a copy of the pixels of an RGB image, because Pillow's own cannot be written to."""
    return np.array(np.asarray(image).transpose(2, 0, 1), order="C")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)

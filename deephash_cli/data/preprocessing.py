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
_LONG = 8  # ratio of the sides from which an image is not resized as a whole


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
        ConfigError: If a number is outside its range.
    """

    size: int
    crop: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not _is_number(self.crop) or not 0 < self.crop <= 1:
            raise ConfigError(f"model.network.crop must be above 0 and at most 1, got {short(str(self.crop))}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != _CHANNELS or not all(_is_number(value) for value in values):
                raise ConfigError(f"model.network.{name} must be three numbers, got {short(str(list(values)))}")
        if 0 in self.std:
            raise ConfigError(f"model.network.std must not contain 0, got {list(self.std)}")
        if type(self.size) is not int or self.size < 1:
            raise ConfigError(f"model.image_size must be a whole number of pixels, got {short(str(self.size))}")

    def require_supported(self) -> None:
        """Check the two words, which weights may have otherwise until a setting overrides them.

        Raises:
            ConfigError: If one of them is not supported.
        """
        for name, words in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
            if (value := getattr(self, name)) not in words:
                raise ConfigError(f"model.network.{name} must be {' or '.join(words)}, got {short(str(value))}")

    @property
    def resized(self) -> int:
        """Length in pixels to which the shorter side is resized before the crop."""
        return math.floor(self.size / self.crop)

    def resized_sides(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and the width of an image after it was resized and before it is cropped."""
        if self.crop_mode == "squash":
            return self.resized, self.resized
        shorter = min(height, width)
        return int(self.resized * height / shorter), int(self.resized * width / shorter)  # as torchvision rounds

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "3 size size"]:
        """Resize and crop an RGB image of any shape. One that already has the size is returned as it is."""
        if image.size != (self.size, self.size):
            image = self._cut_and_resized(image) if self.crop_mode == "square" else self._resized_and_cropped(image)
        return to_array(image)

    def _cut_and_resized(self, image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        side = shorter * self.crop
        left, top = ((length - shorter) // 2 + (shorter - side) / 2 for length in image.size)
        box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), _FILTERS[self.interpolation], box)

    def _resized_and_cropped(self, image: Image.Image) -> Image.Image:
        size, resample = self.size, _FILTERS[self.interpolation]
        height, width = self.resized_sides(image.height, image.width)
        left, top = round((width - size) / 2), round((height - size) / 2)
        if max(height, width) <= _LONG * min(height, width):
            return image.resize((width, height), resample).crop((left, top, left + size, top + size))
        # Enlarging the whole of an image of 20,000 x 20 pixels would take gigabytes. The part that is kept has the same
        # pixels, except that Pillow may take the two directions in another order, which rounds otherwise.
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
        return image.resize((size, size), resample, box)

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

    @property
    def steps(self) -> str:
        """The steps to the pixels that the network takes, as a clause."""
        size = f"{self.size} x {self.size} pixels"
        if self.crop_mode == "square":
            part = "" if self.crop == 1 else f"{self.crop:g} of "
            return f"{part}the central square, resized to {size} ({self.interpolation}, antialiased)"
        sides = (
            f"both sides resized to {self.resized}" if self.crop_mode == "squash" else f"shorter side to {self.resized}"
        )
        return f"resized ({sides}, {self.interpolation}, antialiased), then the central {size}"

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.steps}, mean {mean}, std {std}"


def central_square(size: int) -> Preprocessing:
    """Return the steps to the central square of an image, resized to ``size`` pixels a side, without a network."""
    return Preprocessing(size, 1.0, "square", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def to_array(image: Image.Image) -> UInt8[np.ndarray, "3 height width"]:
    """Return a copy of the pixels of an RGB image, because Pillow's own cannot be written to."""
    return np.stack([np.asarray(band) for band in image.split()])  # twice as fast as transposing


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

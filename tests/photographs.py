"""The two real photographs that scikit-learn has."""

from pathlib import Path

import sklearn.datasets
from PIL import Image

NAMES = ("china.jpg", "flower.jpg")


def photograph(name: str) -> Image.Image:
    """A photograph of 640 x 427 pixels."""
    return Image.open(Path(sklearn.datasets.__file__).parent / "images" / name).convert("RGB")

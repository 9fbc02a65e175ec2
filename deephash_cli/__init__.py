"""deephash: learn binary codes for images, write them to disk, and measure them the same way every time."""

__version__ = "0.1.0"

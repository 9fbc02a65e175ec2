"""Give memory back to the system after a large picture."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

_LARGE = 4_000_000  # pixels; what smaller pictures leave behind is little, and giving it back takes milliseconds


def give_memory_back(pixels: int) -> None:
    """Give free memory back to the system if a large picture has just been released.

    The C library of Linux (glibc) keeps what a thread has released for the next request of the same thread: with 40
    threads that is the memory of 40 pictures.

    Args:
        pixels: Number of pixels of the picture.
    """
    if pixels > _LARGE:
        _trim()(0)


@functools.lru_cache(maxsize=1)
def _trim() -> Callable[[int], Any]:
    """Return the function of the C library that gives memory back; without such a function, one that does nothing."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc, or not Linux
        return lambda _: 0

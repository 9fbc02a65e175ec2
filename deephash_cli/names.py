"""Hold millions of names in little memory, which worker processes share."""

import mmap
import operator
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import IO, Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Int, Int64, UInt8

_BLOCK = 2**16  # names that are text at the same time


class Names(Sequence[str]):
    """Names in one buffer of bytes: a text is made only when it is asked for.

    A name takes its bytes in UTF-8 and nine more, where a Python string takes sixty more. Any string is kept as it is,
    also a path whose bytes are not valid UTF-8, which Python reads with surrogates. Processes that are forked share
    the buffer, because nothing writes to it; those that are spawned map it.

    Args:
        names: The names, in order.

    >>> Names(["a.png", "b.png"])[1]
    'b.png'
    """

    _errors = "surrogatepass"

    def __init__(self, names: Iterable[str]) -> None:
        content, ends = bytearray(), array("q", [0])
        for name in names:
            content += name.encode("utf-8", self._errors)
            content += b"\n"
            ends.append(len(content))
        self._bytes: UInt8[np.ndarray, " bytes"] = np.frombuffer(bytes(content), np.uint8)
        self._ends: Int64[np.ndarray, " ends"] = np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __eq__(self, other: object) -> bool:
        """Compare with the names of another sequence, as lists are compared."""
        if not isinstance(other, Sequence) or isinstance(other, str) or len(self) != len(other):
            return False
        return all(map(operator.eq, self, other))

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        """Return one name, or a list of names.

        Raises:
            IndexError: If there is no name with this number.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._between(start, stop) if step == 1 else [self[i] for i in range(start, stop, step)]
        row = operator.index(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"name {row} of {len(self)}")
        row %= len(self)
        return self._text(row, row + 1)

    def __iter__(self) -> Iterator[str]:
        """Yield all names in order, of which some are in memory at a time."""
        for start in range(0, len(self), _BLOCK):
            yield from self[start : start + _BLOCK]

    def take(self, rows: Int[np.ndarray, " m"]) -> "Names":
        """Return the names of some rows, in the order of ``rows``."""
        starts = self._ends[:-1][rows]  # negative numbers count from the end, as everywhere
        lengths = self._ends[1:][rows] - starts
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        content = np.empty(ends[-1], np.uint8)
        for first in range(0, len(starts), _BLOCK):  # the number of each byte takes eight times the memory of the bytes
            part = slice(first, first + _BLOCK)
            own = slice(ends[first], ends[min(first + _BLOCK, len(starts))])
            shifts = starts[part] - ends[:-1][part]
            content[own] = self._bytes[np.arange(own.start, own.stop) + np.repeat(shifts, lengths[part])]
        return _of_buffers(content, ends)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the buffers; for a process that is being spawned, only the file that they are moved to."""
        if get_spawning_popen() is None:
            return _of_buffers, (self._bytes, self._ends)
        if not hasattr(self, "_file"):
            self._file = _unnamed_file()
            weakref.finalize(self, self._file.close)
            self._file.write(self._ends.tobytes())
            self._file.write(self._bytes.data)
            self._file.flush()
            self._ends, self._bytes = _mapped_buffers(self._file.fileno(), len(self))
        return _mapped, (DupFd(self._file.fileno()), len(self))

    def _between(self, first: int, last: int) -> list[str]:
        """Return the names from number ``first`` to the one before ``last``."""
        if first >= last:
            return []
        names = self._text(first, last).split("\n")
        if len(names) == last - first:
            return names
        return [self._text(number, number + 1) for number in range(first, last)]  # a name has a line break in it

    def _text(self, first: int, last: int) -> str:
        """Return the names from number ``first`` to the one before ``last`` as one text, one per line."""
        return self._bytes[self._ends[first] : self._ends[last] - 1].tobytes().decode("utf-8", self._errors)


def _of_buffers(content: UInt8[np.ndarray, " bytes"], ends: Int64[np.ndarray, " ends"]) -> Names:
    """Return the names in a buffer, in which a line break ends each, with the positions behind the line breaks."""
    names = Names([])
    names._bytes, names._ends = content, ends
    return names


def _unnamed_file() -> IO[bytes]:
    """Return a file to be mapped by several processes: memory, where a system has that without a limit of /dev/shm."""
    return os.fdopen(os.memfd_create("names"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _mapped(file: Any, count: int) -> Names:
    """Return the names in a file of another process, in a process that this one spawned."""
    descriptor = file.detach()
    ends, content = _mapped_buffers(descriptor, count)
    os.close(descriptor)
    return _of_buffers(content, ends)


def _mapped_buffers(descriptor: int, count: int) -> tuple[Int64[np.ndarray, " ends"], UInt8[np.ndarray, " bytes"]]:
    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    ends = np.frombuffer(mapped, np.int64, count + 1)
    return ends, np.frombuffer(mapped, np.uint8, offset=ends.nbytes)

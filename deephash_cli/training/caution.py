"""Look at vectors before a run starts: whether they can be hashed at all, and whether memory is enough for them."""

from pathlib import Path

import numpy as np

from deephash_cli.console import warn
from deephash_cli.data.dataset import Vectors
from deephash_cli.errors import DataError

# With a mean of 100 times the spread, squared distances are small differences of numbers 10^4 times as large: more than
# half of the seven digits of a float32 are lost.
_FAR = 100
# The layers that learn add 1e-5 to the variance of each feature, so deviations far below its root count as none.
_TINY = 1e-4
_BYTES_PER_ROW = 200  # of its division, its id and its code, with their copies
_CERTAIN_BYTES_PER_ROW = 24  # its row number and its place in the division, and its code
_CERTAIN_COPIES = 8  # the sample as float32, twice: as a batch and centred
_COPIES = 24  # bytes for each value that a classic method is fitted on: as float32, and twice as float64


def look_at(vectors: Vectors, classes: int, fit_rows: int, centred: bool) -> None:
    """Warn of vectors that will not give useful codes, or may need more memory than there is.

    Args:
        vectors: Vectors of a data set.
        classes: Number of classes of their labels.
        fit_rows: Largest number of vectors that a classic method is fitted on; 0 for a method that learns.
        centred: Whether the method subtracts the mean of each column first.

    Raises:
        DataError: If all vectors are the same, or if they cannot fit into the memory of this machine.
    """
    n, d = vectors.array.shape
    sample = d * min(n, fit_rows)
    _require_memory(n, d, _CERTAIN_BYTES_PER_ROW * n + classes * n + _CERTAIN_COPIES * sample)
    needed = (_BYTES_PER_ROW + classes) * n + _COPIES * sample
    available = available_memory()
    if available is not None and needed > available:
        warn(
            f"{n} vectors of length {d} need about {needed / 1e9:.1f} GB of memory, but only {available / 1e9:.1f} GB "
            "are available: the system may end this run without a word; lower fit_rows, or hash a part of the vectors"
        )
    mean, deviation = vectors.spread
    if n == 1:
        return
    spread = float(np.sqrt(np.square(deviation).sum()))
    if not spread:
        raise DataError(
            f"all {n} vectors are the same as float32, so every code would be the same: check the program that made "
            "them; if they differ as float64, subtract their mean before you save them"
        )
    offset = float(np.sqrt(np.square(mean).sum())) / spread
    if offset >= _FAR and not centred:
        warn(
            f"the mean of the vectors is {offset:.0f} times as far from 0 as the vectors are from their mean, so "
            "float32 loses their differences and codes may be the same: subtract the mean in float64 before you save "
            "them (for classic methods module.scaling=standard does so)"
        )
    if spread / np.sqrt(d) < _TINY:
        warn(
            f"the values of the vectors differ by only about {spread / np.sqrt(d):.0e}, which layers that learn take "
            "for none: multiply the vectors by a constant before you save them"
        )
    if constant := int((deviation == 0).sum()):
        warn(f"{constant} of {d} columns have the same value in all {n} vectors and tell nothing apart")


def _require_memory(n: int, d: int, least: int) -> None:
    """Refuse vectors that need more memory than this machine has, swap included, however little else there is.

    Args:
        n: Number of vectors.
        d: Their length.
        least: Bytes that are needed in any case.

    Raises:
        DataError: If there is less.
    """
    total = total_memory()
    if total is not None and least > total:
        raise DataError(
            f"{n} vectors of length {d} need at least {least / 1e9:.1f} GB of memory, but this machine or container "
            f"has {total / 1e9:.1f} GB: lower fit_rows, hash a part of the vectors, or use fewer classes"
        )


def total_memory() -> int | None:
    """Return the bytes of memory and swap that this machine or container has, or None if the system does not say."""
    found = []
    try:
        sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(1024 * sum(int(sizes[name].split()[0]) for name in ("MemTotal", "SwapTotal")))
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        swap = Path("/sys/fs/cgroup/memory.swap.max").read_text().strip()
        if limit != "max" and swap != "max":
            found.append(int(limit) + int(swap))
    except (OSError, ValueError, LookupError):
        pass  # another system, or no container
    return min(found, default=None)


def available_memory() -> int | None:
    """Return the bytes of memory that this process can still take, or None if the system does not say.

    The limit of a container counts as well as the memory of the machine.
    """
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            found.append(max(0, int(limit) - int(used["anon"])))  # cached files give way
    except (OSError, ValueError, LookupError):
        pass  # another system, or no container
    return min(found, default=None)

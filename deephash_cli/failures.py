"""Say in one sentence what libraries and the system report in their own ways: no memory, no device, no space on disk.

The libraries are not imported: an error is known by its type's name and its message.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, first_line

# Texts by which torch and its libraries say that memory ran out, on any device.
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CU\w+_STATUS_ALLOC_FAILED|Unable to allocate", re.IGNORECASE
)
_SIZE = re.compile(r"[Tt]ri(?:ed|es) to allocate ([\d.]+ ?\w+)|Unable to allocate ([\d.]+ \w+)")
_CAPACITY = re.compile(r"GPU (\d+) has a total capacity of ([\d.]+ \w+)")
# What the system says of a device that another program holds, or that the driver cannot use.
_NO_DEVICE = re.compile(
    r"busy or unavailable|no kernel image|driver version is insufficient|No CUDA GPUs are available"
)
# Errors of the system that have no file's name, because they came from an open file.
_OF_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ESTALE)


@contextlib.contextmanager
def explained(lower: str = "") -> Iterator[None]:
    """Raise errors of libraries and of the system as one sentence. An error that is a bug stays as it is.

    Args:
        lower: Setting to lower if memory runs out, such as ``loader.batch_size=128``; "" if there is none.

    Raises:
        ConfigError: If memory ran out, a device cannot be used, or Lightning refuses a setting.
        ArtifactError: If a file cannot be read or written.
    """
    try:
        yield
    except DeephashError:
        raise
    except Exception as error:
        if (known := explain(error, lower)) is None:
            raise
        raise known from error


def explain(error: BaseException, lower: str = "") -> DeephashError | None:
    """Return an error that says in one sentence what another one means; None if that one is a bug.

    Args:
        error: An error that is not one of deephash's own.
        lower: Setting to lower if memory runs out; "" if there is none.
    """
    message, types = str(error), {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in types or isinstance(error, MemoryError):
        return ConfigError(_no_memory(message, lower))
    if isinstance(error, RuntimeError) and _NO_MEMORY.search(message):
        return ConfigError(_no_memory(message, lower))
    if isinstance(error, RuntimeError) and _NO_DEVICE.search(message):
        return ConfigError(f"the GPU cannot be used ({first_line(error)}): free it, or use the CPU")
    if "MisconfigurationException" in types:
        return ConfigError(f"trainer: {first_line(error)}")
    if isinstance(error, OSError):
        return _of_files(error, lower)
    return None


def _no_memory(message: str, lower: str) -> str:
    device, size = _CAPACITY.search(message), _SIZE.search(message)
    if device:
        where = f"GPU {device[1]} (which has {device[2]})"
    else:
        where = next((name for name in ("GPU", "MPS") if re.search(rf"{name}|CU\w+_|CUDA", message)), "this machine")
    needed = next((part for part in size.groups() if part), "") if size else ""
    needed = f" when {_readable(needed)} more were needed" if needed else ""
    remedy = f"lower {lower}, or use" if lower else "use"
    return f"{where} ran out of memory{needed}: {remedy} a smaller model or fewer images, or end other programs"


def _readable(size: str) -> str:
    """Return a number of bytes in GiB; a size with another unit as it is."""
    number, _, unit = size.partition(" ")
    return f"{int(number) / 2**30:.2f} GiB" if unit == "bytes" and number.isdecimal() else size


def _of_files(error: OSError, lower: str) -> DeephashError | None:
    if error.errno == errno.ENOMEM:
        return ConfigError(_no_memory("", lower))
    reason = error.strerror or first_line(error)
    if error.filename is not None and error.errno is not None:
        file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
        return ArtifactError(f"could not read or write {file}: {reason}")
    if error.errno in _OF_FILES:
        return ArtifactError(f"could not read or write a file: {reason}")
    return None

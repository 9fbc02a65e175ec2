"""Faults of the disk for the tests: the n-th rename, flush or write below a folder fails."""

import builtins
import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ERRORS = {"replace": errno.ENOSPC, "fsync": errno.EIO, "write": errno.ENOSPC}


class Fault:
    """Count the calls of one kind below a folder, and let one of them fail.

    Args:
        kind: ``replace``, ``fsync`` or ``write``.
        place: Folder whose files count.
        at: Number of the call that fails, from 1; 0 for none.

    Attributes:
        seen: Number of calls so far.
    """

    def __init__(self, kind: str, place: Path, at: int = 0):
        self.kind, self.place, self.at, self.seen = kind, str(place), at, 0

    def count(self, path: Any) -> None:
        """Count a call, and raise the error of the system if it is the one that fails."""
        if not str(Path(path).absolute()).startswith(self.place):
            return
        self.seen += 1
        if self.seen == self.at:
            number = ERRORS[self.kind]
            raise OSError(number, os.strerror(number), str(path))

    @contextlib.contextmanager
    def armed(self) -> Iterator["Fault"]:
        """Put the fault into the calls of this process."""
        fault = self
        before = {
            (owner, name): getattr(owner, name)
            for owner, name in (
                (os, "replace"),
                (os, "rename"),
                (os, "fsync"),
                (os, "fdopen"),
                (io, "open"),
                (builtins, "open"),
            )
        }

        def moved(name):
            real = before[os, name]

            def move(source, target, **options):
                fault.count(target)
                return real(source, target, **options)

            return move

        def flushed(descriptor):
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            fault.count(Path(f"/proc/self/fd/{number}").readlink())
            return before[os, "fsync"](descriptor)

        def opened(real):
            def open_(file, mode="r", *arguments, **options):
                made = real(file, mode, *arguments, **options)
                if not set(mode) & set("wax+"):
                    return made
                path = str(Path(f"/proc/self/fd/{made.fileno()}").readlink())
                return _Failing(made, path, fault) if path.startswith(fault.place) else made

            return open_

        if self.kind == "replace":
            os.replace, os.rename = moved("replace"), moved("rename")
        elif self.kind == "fsync":
            os.fsync = flushed
        else:
            os.fdopen, io.open = opened(before[os, "fdopen"]), opened(before[io, "open"])
            builtins.open = opened(before[builtins, "open"])
        try:
            yield self
        finally:
            for (owner, name), real in before.items():
                setattr(owner, name, real)


class _Failing:
    """An open file whose writes are counted. The failing one writes half of its bytes, as on a full disk."""

    def __init__(self, file: Any, path: str, fault: Fault):
        self._file, self._path, self._fault = file, path, fault

    def write(self, content: Any) -> int:
        try:
            self._fault.count(self._path)
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> "_Failing":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

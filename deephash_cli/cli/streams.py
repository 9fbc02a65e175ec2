"""Standard streams that cannot be written to: a full disk, a pipe without a reader, a stream that was closed.

None of them may end a command, whose results may be in files. What is lost is told once, at the end.
"""

import errno
import io
import os
import sys

_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}


class _Output(io.FileIO):
    """A stream of this process that takes all text, even if the system takes none."""

    def __init__(self, number: int):
        super().__init__(number, "w", closefd=False)
        self.error: OSError | None = None  # the first one

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        """Write bytes, and note an error instead of raising it."""
        try:
            return super().write(data)  # type: ignore[return-value]  # None if the stream would block, as always
        except OSError as error:
            self.error = self.error or error
            return len(data)


def prepare() -> None:
    """Make the standard streams usable, whatever they are, and let them take every letter.

    A stream that was closed becomes ``/dev/null``. Otherwise the next file that is opened would get its number, and
    whatever a library prints.
    """
    for name, number in _NUMBERS.items():
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        stream = getattr(sys, name)
        if name == "stdin":
            if stream is None:
                sys.stdin = open(number, closefd=False)  # noqa: SIM115  # for as long as the process lives
            continue
        encoding = stream.encoding if stream is not None else "utf-8"
        output = io.BufferedWriter(_Output(number))  # type: ignore[arg-type]
        # A terminal without ± must not cause an error.
        text = io.TextIOWrapper(
            output, encoding, "replace", line_buffering=os.isatty(number) or name == "stderr", write_through=False
        )
        setattr(sys, name, text)


def lost() -> OSError | None:
    """Return the error because of which standard output has lost text; None if nobody misses any.

    Whoever closes a pipe, as ``head`` does, has read enough.
    """
    output = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(output, _Output):
        return None
    sys.stdout.flush()
    return None if output.error is None or output.error.errno == errno.EPIPE else output.error

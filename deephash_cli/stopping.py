"""Stop the process in an orderly way: turn signals from a person or the system into an exception."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from deephash_cli.errors import Stopped


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into ``Stopped``, and ignore SIGPIPE: a broken connection must not end the run."""
    handlers: dict[int, Any] = {
        signal.SIGINT: stopper(130),
        signal.SIGTERM: stopper(143),
        signal.SIGPIPE: signal.SIG_IGN,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopper(exit_code: int) -> Callable[[int, FrameType | None], None]:
    """Make a signal handler that raises ``Stopped`` with this exit code."""

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        raise Stopped(exit_code)

    return stop

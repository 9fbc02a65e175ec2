"""Stop the process in an orderly way: turn signals from a person or the system into an exception, or note them.

Most tasks are stopped at once, by an exception. A task that can save its state asks for more time with ``noting``.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from deephash_cli.errors import Stopped

_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Seconds in which several signals count as one request: `timeout`, torchrun and Slurm send a signal to the process, and
# again to its whole group.
_BURST = 0.5


@dataclass
class Requests:
    """Requests that signals have made to a task, which looks at them between its steps.

    Attributes:
        exit_code: Exit code with which the process is to end; 0 if it may continue.
        save: Whether the task is to save its state and continue.
    """

    exit_code: int = 0
    save: bool = False


class _Handler:
    """Handler of Ctrl-C and SIGTERM: the first one stops the process in order, and a second one ends it at once."""

    def __init__(self):
        self.first: float | None = None  # time of the first signal, on the monotonic clock
        self.requests: Requests | None = None  # where the first signal is noted; None raises ``Stopped``
        self.message: str | None = None  # what a signal that is noted prints

    def __call__(self, number: int, _: FrameType | None) -> None:
        exit_code = _EXIT_CODES[signal.Signals(number)]
        if self.first is None:
            self.first = time.monotonic()
            if self.requests is None:
                raise Stopped(exit_code)
            self.requests.exit_code = exit_code
            if self.message is not None:
                _print(f"{self.message}; a second {'Ctrl-C' if number == signal.SIGINT else 'signal'} stops at once")
        elif time.monotonic() - self.first >= _BURST:
            os._exit(exit_code)  # no file is left half written, because each is renamed when it is complete


_active: _Handler | None = None


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into ``Stopped``, and ignore SIGPIPE: a broken connection must not end the run.

    The first signal raises the exception, unless a task notes it: see ``noting``. A second signal ends the process at
    once, with the exit code of that signal.
    """
    global _active  # a process has one handler of a signal
    handler = _Handler()
    handlers: dict[int, Any] = {signal.SIGINT: handler, signal.SIGTERM: handler, signal.SIGPIPE: signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    outer, _active = _active, handler
    try:
        yield
    finally:
        _active = outer
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def noting(message: str | None) -> Iterator[Requests]:
    """Note signals while the context is open, for a task that stops between its steps instead of at once.

    Ctrl-C and SIGTERM ask the task to stop, SIGUSR1 asks it to save its state. Nothing is noted outside of
    ``stopping``: the signals of a program that calls this package are its own.

    Args:
        message: Start of the line that is printed when the task is asked to stop, such as "stopping after this step";
            None prints nothing.

    Yields:
        The requests, which change when signals arrive.
    """
    requests = Requests()
    if _active is None or threading.current_thread() is not threading.main_thread():
        yield requests
        return
    handler = _active

    def save(*_: Any) -> None:
        requests.save = True

    before = signal.signal(signal.SIGUSR1, save)
    handler.requests, handler.message = requests, message
    try:
        yield requests
    finally:
        handler.requests = None
        signal.signal(signal.SIGUSR1, before)


def _print(message: str) -> None:
    """Print one line to standard error from within a signal handler, which may have interrupted another output."""
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()

"""The time that each phase of a training takes: a stopwatch on which one phase is running at any moment."""

import contextlib
import time
from collections.abc import Iterator

REST = "start"  # imports, checks, building the network, opening loggers: everything that is in no other phase
NAMES = (REST, "data", "features", "training", "codes", "metrics")


class Stopwatch:
    """Seconds of each phase since this moment. Their sum is the whole time, because exactly one phase is running."""

    def __init__(self):
        self._seconds: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self._running = REST
        self._since = time.monotonic()

    def switch(self, phase: str) -> str:
        """Stop the phase that is running and start another one.

        Args:
            phase: One of ``NAMES``.

        Returns:
            The phase that was running.
        """
        before, now = self._running, time.monotonic()
        self._seconds[before] += now - self._since
        self._running, self._since = phase, now
        return before

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase until now, rounded to milliseconds."""
        self.switch(self._running)
        return {name: round(value, 3) for name, value in self._seconds.items()}


_watch = Stopwatch()


def restart() -> None:
    """Set all phases to 0: a run begins in this process."""
    global _watch
    _watch = Stopwatch()


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the time of a block, or of each call of a decorated function, for a phase and for no other.

    Args:
        name: One of ``NAMES``.
    """
    before = _watch.switch(name)
    try:
        yield
    finally:
        _watch.switch(before)


def seconds() -> dict[str, float]:
    """Return the seconds of each phase since the last ``restart``."""
    return _watch.seconds()

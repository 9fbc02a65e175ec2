"""Errors that a user can cause. Each is one sentence (what was expected, what was got, what to do) and an exit code."""

import difflib
from collections.abc import Iterable


class DeephashError(Exception):
    """An error to show as one sentence, without a traceback. ``exit_code`` is the process's status."""

    exit_code = 1


class ConfigError(DeephashError):
    """A command or a setting that cannot work."""

    exit_code = 2


class DataError(DeephashError):
    """Images, labels or splits that are missing or malformed."""

    exit_code = 3


class ArtifactError(DeephashError):
    """A checkpoint, a codes folder or a run folder that is incomplete, corrupt or of another kind."""

    exit_code = 4


class DivergedError(DeephashError):
    """Training that produced a loss or weights that are not finite."""

    exit_code = 5


class SweepError(DeephashError):
    """A sweep of which some jobs failed."""

    exit_code = 6


class Stopped(BaseException):
    """A person or the system asked the process to end. Not an ``Exception``: nothing may take it for a failure."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """What an error says, on one line; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def short(text: str) -> str:
    """Shorten a value's text for a message: one line of at most 80 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def hint(word: str, known: Iterable[str]) -> str:
    """The known word nearest to one that is unknown, as a question to add to a message."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""

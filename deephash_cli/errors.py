"""Errors that users can cause. Each has one sentence (what was expected, what was got, what to do) and an exit code."""

import difflib
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from deephash_cli.hiding import hide


class DeephashError(Exception):
    """An error that is shown as one sentence, without a traceback. ``exit_code`` is the exit status of the process.

    Its text has no secrets, so that it can be printed and written to files.
    """

    exit_code = 1

    def __str__(self) -> str:
        return hide(super().__str__())


class ConfigError(DeephashError):
    """A command or a setting that cannot work."""

    exit_code = 2


class DataError(DeephashError):
    """Images, labels or splits that are missing or malformed."""

    exit_code = 3


class ArtifactError(DeephashError):
    """A checkpoint, codes folder or run folder that is incomplete, corrupt or of the wrong kind."""

    exit_code = 4


class DivergedError(DeephashError):
    """Training that produced a loss or weights that are not finite."""

    exit_code = 5


class SweepError(DeephashError):
    """A sweep in which some jobs failed."""

    exit_code = 6


class Stopped(BaseException):
    """A request to end the process, by a person or the system.

    It is not an ``Exception``, so that no handler treats it as a failure.

    Attributes:
        exit_code: Exit code of the process.
        saved: Whether everything up to the last finished training step is in a checkpoint.
    """

    def __init__(self, exit_code: int, saved: bool = False):
        super().__init__(exit_code)
        self.exit_code = exit_code
        self.saved = saved


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without secrets; the name of its type if the message is empty."""
    return hide((str(error).strip() or type(error).__name__).splitlines()[0])


def short(text: str) -> str:
    """Shorten a value's text for a message: one line of at most 80 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def hint(word: str, known: Iterable[str]) -> str:
    """Suggest the known word closest to an unknown one, as a question to append to a message; "" if none is close."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(text: str) -> str:
    """Return a text on one line, with every control character escaped as Python does.

    Names of files and values that users type may contain line breaks, or commands to the terminal.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def command(*words: str | Path) -> str:
    """Return a command, or a part of one, as it is typed into a shell: with quotes where the shell needs them.

    Args:
        *words: Words of the command, such as ``"deephash"`` and ``"run=my run"``. A path that starts with ``-`` becomes
            one that no command takes for an option.
    """
    texts = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return " ".join(map(_in_quotes, texts))


def _in_quotes(word: str) -> str:
    """Return a word with quotes for bash and zsh; a message prints it in one line, even if it has line breaks."""
    if word.isprintable():
        return shlex.quote(word)
    letters = (
        letter
        if letter.isprintable() and letter not in "'\\"
        else "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))
        for letter in word
    )
    return f"$'{''.join(letters)}'"


def print_error(error: DeephashError) -> None:
    """Show an error on the screen as one sentence."""
    sys.stderr.write(f"error: {one_line(str(error))}\n")

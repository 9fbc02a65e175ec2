"""Read text files that people wrote or exported from a spreadsheet."""

import re
from pathlib import Path

from deephash_cli.errors import DataError

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, name: str | None = None) -> str:
    """Read a text file as UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        name: How messages name the file, such as ``dataset.file=table.csv``; None means the path.

    Raises:
        DataError: If the file cannot be read, or is not UTF-8 text.
    """
    name = name or str(path)
    try:
        content = path.read_bytes()
        if content.startswith(_UTF_16):
            raise DataError(f"{name} is UTF-16 text, expected UTF-8: save it as UTF-8 (in Excel: CSV UTF-8)")
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; correct the path") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}; give a text file") from error
    except UnicodeDecodeError as error:
        line = len(split_lines(error.object[: error.start].decode("utf-8-sig")))
        raise DataError(f"{name}:{line}: not UTF-8 text; save the file as UTF-8") from error
    except ValueError as error:  # a path with a NUL character
        raise DataError(f"{name!r} cannot be read: {error}; correct the path") from error
    if "\0" in text:
        line = len(split_lines(text[: text.index("\0")]))
        raise DataError(f"{name}:{line}: holds a NUL byte, which text has not; save the file as UTF-8 text")
    return text


def split_lines(text: str) -> list[str]:
    """Split text at line ends of any system. Unlike ``str.splitlines``, characters such as U+2028 end no line."""
    return re.split("\r*\n|\r", text)


def lines(path: Path, name: str | None = None) -> list[str]:
    """Return the lines of a text file, without the empty ones at its end.

    Args:
        path: The file.
        name: How messages name the file; None means the path.

    Raises:
        DataError: If the file cannot be read, or is not UTF-8 text.
    """
    text = read_text(path, name).rstrip()
    return split_lines(text) if text else []

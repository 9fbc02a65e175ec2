"""Tell what is the same: one image under several paths, one name in several spellings."""

import contextlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from deephash_cli.data.leniency import is_lenient, refuse
from deephash_cli.data.text import lines
from deephash_cli.errors import DataError, short


def composed(name: str) -> str:
    """Return a name in composed Unicode (NFC); file names of macOS are decomposed."""
    return unicodedata.normalize("NFC", name)


def shown(name: str) -> str:
    """Return a name as it is stored and printed: composed Unicode (NFC), with single spaces and none at its ends."""
    return " ".join(composed(name).split())


def canonical(name: str) -> str:
    """Return the text that all spellings of a name have in common, if they look the same when printed.

    It is the name as ``shown``, without characters that take no space, such as U+200B. Upper and lower case differ.
    """
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return shown(visible)


def joined(names: Iterable[str]) -> dict[str, str]:
    """Return, for the ``canonical`` form of each name, the spelling that stands for all: the first one, as ``shown``.

    Args:
        names: Names in the order in which they are found.
    """
    spellings: dict[str, str] = {}
    for name in names:
        spellings.setdefault(canonical(name), shown(name))
    return spellings


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two names that are the same or look the same when printed; None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        if canonical(name) in seen:
            return seen[canonical(name)], name
        seen[canonical(name)] = name
    return None


def is_same_file(one: Path, other: Path, status: os.stat_result) -> bool:
    """Whether two paths with the same device and number lead to one file.

    Some network file systems give a number to two files, so that an equal number alone proves nothing.

    Args:
        one: A path.
        other: Another path.
        status: Status of the file at one of the paths.
    """
    return status.st_nlink > 1 or os.path.realpath(one) == os.path.realpath(other)


_KEPT: ContextVar[bool] = ContextVar("missing_images_kept", default=False)


@contextlib.contextmanager
def missing_images_kept() -> Iterator[None]:
    """Let tables and lists name files that do not exist; they are images that cannot be read."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


class ImageNames:
    """The image files that a table or lists name. A file is one image, even if its path is spelled in several ways.

    The spellings ``a.png``, ``./a.png``, ``sub/../a.png``, an absolute path, a link, and the composed and decomposed
    forms of an accent lead to the same file.

    Attributes:
        ids: For each image, its path relative to the root, or its absolute path if it lies elsewhere.
        missing: Paths of the files that do not exist, as they were written.

    Args:
        root: Folder that relative paths start from.
        strict: Whether a path that cannot be opened, such as a folder, is an error; otherwise it counts as missing.
    """

    def __init__(self, root: Path, strict: bool = True) -> None:
        self.root = root
        self.ids: list[str] = []
        self.missing: list[str] = []
        self._strict = strict
        self._first_missing = ""
        self._bases = [Path(os.path.normpath(root.absolute())), Path(os.path.realpath(root))]
        self._row_of_path: dict[str, int] = {}
        self._row_of_file: dict[tuple[int, int], int] = {}

    def rows(self, paths: Sequence[str], places: Sequence[str], remedy: str) -> list[int]:
        """Return the rows of the images that one list names; a new image gets the next row.

        Args:
            paths: Paths as they are written, absolute or relative to the root.
            places: File and line of each path, for messages.
            remedy: What to do about an image that the list names twice, for messages.

        Raises:
            DataError: If an image is named twice, or a path is not that of a file that can be read. A file that does
                not exist is not an error yet: see ``require_all``.
        """
        rows = [self._row(path, place) for path, place in zip(paths, places, strict=True)]
        first: dict[int, int] = {}  # the position in the list at which each row is named
        again: list[tuple[int, int]] = []
        for position, row in enumerate(rows):
            before = first.setdefault(row, position)
            if before != position:
                again.append((before, position))
        if again:
            before, position = again[0]
            line = places[before].rpartition(":")[2]
            same = "" if paths[before] == paths[position] else f", where it is called {short(paths[before])}"
            more = f" ({len(again) - 1} more lines name an image again)" if len(again) > 1 else ""
            refuse(
                DataError(
                    f"{places[position]}: {short(paths[position])} is already in line {line}{same}; {remedy}{more}"
                )
            )
        return rows

    def _row(self, path: str, place: str) -> int:
        if path in self._row_of_path:
            return self._row_of_path[path]
        if self._strict and len(path.splitlines()) > 1:
            raise DataError(f"{place}: the path {short(path)!r} has a line break in it; correct the table")
        written, status = self._find(path, place)
        identifier = self._identifier(written, status)
        row = self._row_of_path.get(identifier)
        if row is None and status is not None:
            row = self._linked(identifier, status)
        if row is None:
            row = len(self.ids)
            self.ids.append(identifier)
            self._row_of_path[identifier] = row
            if status is None:
                self.missing.append(path)
                self._first_missing = self._first_missing or place
            else:
                self._row_of_file[status.st_dev, status.st_ino] = row
        self._row_of_path[path] = row
        return row

    def require_all(self, source: str, hint: str = "") -> None:
        """Check that all files exist, or that some do where those that do not are left out later.

        Args:
            source: The table or lists that name them, for messages.
            hint: What else may be wrong, to be added to the message.

        Raises:
            DataError: If some do not exist; within ``missing_images_kept`` if none exists.
        """
        if not self.missing or is_lenient() or (_KEPT.get() and len(self.missing) < len(self.ids)):
            return  # an audit names them when it reads the images
        some = ", ".join(short(path) for path in self.missing[:5]) + (", ..." if len(self.missing) > 5 else "")
        hint = f" (the first is in {self._first_missing}){hint}"
        count = f"{source}: {len(self.missing)} of the images named do not exist"
        if all(Path(path).is_absolute() for path in self.missing):
            raise DataError(f"{count}: {some}; correct the paths{hint}")
        if not self.root.is_dir():
            raise DataError(f"dataset.root={self.root} is not a folder; set it to the folder that the paths start from")
        raise DataError(
            f"{count} under {self.root}: {some}; set dataset.root to the folder that the paths start from, or "
            f"bad_images=skip to leave them out{hint}"
        )

    def _find(self, path: str, place: str) -> tuple[str, os.stat_result | None]:
        """Return the spelling of a path under which a file exists, and its status; None if there is no such file."""
        for written in _spellings(path):
            file = self.root / written
            try:
                status = file.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:
                if not self._strict:
                    break
                reason = getattr(error, "strerror", None) or str(error)
                raise DataError(f"{place}: the path {short(path)!r} cannot be opened: {reason}; correct it") from error
            if self._strict and not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
                raise DataError(f"{place}: {short(path)} is {kind}, expected an image file; correct the path")
            if self._strict and not os.access(file, os.R_OK):
                raise DataError(f"{place}: {short(path)} cannot be read: you have no permission; change its mode")
            return written, status
        return path, None

    def _identifier(self, written: str, status: os.stat_result | None) -> str:
        """Return the shortest path of a file relative to the root; the path as written if that leads elsewhere."""
        path = os.path.normpath(written)
        if Path(path).is_absolute() or path.startswith(os.pardir):
            path = self._below_root(path)
        if path == written or status is None:
            return path
        try:
            found = (self.root / path).stat()
        except OSError:
            return written
        return path if os.path.samestat(found, status) else written  # "link/.." need not be the folder of the link

    def _below_root(self, path: str) -> str:
        absolute = Path(os.path.normpath(self._bases[0] / path))
        for candidate in (absolute, Path(os.path.realpath(absolute.parent)) / absolute.name):
            for base in self._bases:
                if candidate.is_relative_to(base):
                    return str(candidate.relative_to(base))
        return path

    def _linked(self, identifier: str, status: os.stat_result) -> int | None:
        """Return the row of the same file under another path; None if there is none."""
        row = self._row_of_file.get((status.st_dev, status.st_ino))
        if row is None or is_same_file(self.root / identifier, self.root / self.ids[row], status):
            return row
        return None


def _spellings(path: str) -> Iterator[str]:
    """Yield a path as it is written, and then as other systems write it: other forms of accents, and backslashes."""
    yield path
    if not path.isascii():
        yield from (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    if "\\" in path:
        yield path.replace("\\", "/")


def listed(file: Path, root: Path) -> ImageNames:
    """Return the images that a text file lists, one path per line. Files that do not exist are kept as images, too.

    Args:
        file: The text file.
        root: Folder that relative paths start from.

    Raises:
        DataError: If the file cannot be read, or names an image twice.
    """
    images = ImageNames(root, strict=False)
    found = [(line.strip(), f"{file}:{number}") for number, line in enumerate(lines(file), start=1) if line.strip()]
    images.rows([path for path, _ in found], [place for _, place in found], "remove one of the two")
    return images

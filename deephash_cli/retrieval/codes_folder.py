"""Write and read codes folders. A folder that is incomplete or damaged is refused."""

import contextlib
import json
import mmap
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from deephash_cli.errors import ArtifactError, short
from deephash_cli.files import atomic_write, read_sealed, sha256_file, write_sealed
from deephash_cli.names import Names
from deephash_cli.npy import map_array, read_header
from deephash_cli.retrieval.codes import (
    BITS_LIMIT,
    RANK_LIMIT,
    CodeSet,
    is_count,
    packed_width,
    require_comparable,
    require_valid,
)

FORMAT = 1
MANIFEST = "manifest.json"
PLAN = "encode.json"  # what deephash encode was started with; it and the next two are only in its folders
SHARDS = "shards"
SKIPPED = "skipped.csv"
_OWN_KEYS = ("format", "bits", "bit_order", "query", "database", "files")
_SIDES = ("query", "database")
# The names are fixed, so that a manifest from another person cannot make us open other files.
_FILES = {side: (f"{side}.npy", f"{side}_labels.npy", f"{side}_ids.txt") for side in _SIDES}
_CONTINUOUS = {side: f"{side}_u.npy" for side in _SIDES}  # only in folders whose continuous codes were kept
_FEATURE_ROWS = "feature_rows.npy"  # only in folders of runs with a frozen backbone
FILES = {
    MANIFEST, PLAN, SHARDS, SKIPPED, *(name for names in _FILES.values() for name in names), *_CONTINUOUS.values(),
    _FEATURE_ROWS,
}  # fmt: skip
_BYTES = np.dtype("u1")
_MANIFEST_LIMIT = 2**20
_BLOCK = 2**24  # bytes of a text file that are searched at a time
_LINES = 2**16  # lines of a text file that are read at a time


def save_codes(
    folder: Path,
    query: CodeSet,
    database: CodeSet,
    provenance: Mapping[str, Any],
    feature_rows: tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " n"]] | None = None,
) -> None:
    """Write both sides into ``folder``, the manifest last: a folder without one is incomplete and is refused later.

    Args:
        folder: Codes folder, which is made if it does not exist. Codes in it are replaced.
        query: The queries, with ids and multi-hot labels.
        database: The database, with ids and multi-hot labels.
        provenance: Origin of the codes (method, model, dataset, ...), added to the manifest unchanged.
        feature_rows: Rows of the queries and of the database in the file of features whose key ``provenance`` has;
            None if there is no such file.

    Raises:
        ArtifactError: If the two sides do not match, or if the folder cannot be written to.
        ValueError: If a side has no ids or no multi-hot labels, or if ``provenance`` uses one of the manifest's own
            keys or cannot be written as JSON.
    """
    require_comparable(query, database)
    more = {} if feature_rows is None else {_FEATURE_ROWS: np.concatenate(feature_rows).astype("<i8")}
    _save(Path(folder), {"query": query, "database": database}, provenance, more=more)


def save_database(folder: Path, database: CodeSet, provenance: Mapping[str, Any], beside: Sequence[str] = ()) -> None:
    """Write a codes folder that has only a database side. Files and errors are those of `save_codes`.

    Args:
        folder: Codes folder, as for `save_codes`.
        database: The database, with ids and multi-hot labels.
        provenance: Origin of the codes, as for `save_codes`.
        beside: Names of other files in the folder, whose digests the manifest gets, too.
    """
    _save(Path(folder), {"database": database}, provenance, beside)


def join_databases(
    folder: Path, parts: Sequence[Path], provenance: Mapping[str, Any], beside: Sequence[str] = ()
) -> None:
    """Join the databases of several codes folders into one folder, in their order. One part is read at a time.

    Args:
        folder: Codes folder, which is made if it does not exist. Codes in it are replaced.
        parts: Folders that `save_database` wrote, all with the same code length and number of classes.
        provenance: Origin of the codes, as for `save_codes`.
        beside: Names of other files in the folder, as for `save_database`.

    Raises:
        ArtifactError: If a part is damaged, or if the folder cannot be written to.
    """
    manifests = [read_manifest(part, ("database",)) for part in parts]
    bits, classes = manifests[0]["bits"], manifests[0]["database"]["classes"]
    count = sum(manifest["database"]["count"] for manifest in manifests)
    _begin(folder)
    names = _FILES["database"]
    with contextlib.ExitStack() as files:
        codes, labels, ids = (files.enter_context(atomic_write(folder / name)) for name in names)
        for file, width in ((codes, packed_width(bits)), (labels, classes)):
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, width)}
            np.lib.format.write_array_header_1_0(file, header)
        for part in parts:  # one at a time: a process can have only so many open files
            side = open_side(part)
            codes.write(np.ascontiguousarray(side.packed).data)
            labels.write(np.ascontiguousarray(side.labels).data)
            ids.write((part / names[2]).read_bytes())
    _write_manifest(folder, bits, {"database": (count, classes)}, provenance, beside)


def _save(
    folder: Path,
    sides: Mapping[str, CodeSet],
    provenance: Mapping[str, Any],
    beside: Sequence[str] = (),
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write sides, arrays ``more`` by their names, and the manifest, which names files ``beside`` these as well."""
    for side, codes in sides.items():
        if codes.ids is None or codes.labels.ndim != 2:
            raise ValueError(f"a codes folder needs ids and multi-hot labels, got a {side} side without them")
    if taken := sorted(set(provenance) & set(_OWN_KEYS)):
        raise ValueError(f"provenance must not use the manifest's own keys, got {', '.join(taken)}")
    try:
        json.dumps(dict(provenance), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be JSON, got something else: {error}") from error
    _begin(folder)
    optional = {_CONTINUOUS[side]: codes.u for side, codes in sides.items() if codes.u is not None} | dict(more or {})
    for side, codes in sides.items():
        codes_name, labels_name, ids_name = _FILES[side]
        _save_array(folder / codes_name, codes.packed)
        _save_array(folder / labels_name, codes.labels)
        with atomic_write(folder / ids_name) as file:
            file.writelines(f"{name}\n".encode() for name in codes.ids or ())
    for name, array in optional.items():
        _save_array(folder / name, array)
    counts = {side: (codes.n, codes.labels.shape[1]) for side, codes in sides.items()}
    _write_manifest(folder, next(iter(sides.values())).bits, counts, provenance, [*optional, *beside])


def _save_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path, array.nbytes) as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def _begin(folder: Path) -> None:
    """Make the folder, and remove its manifest, and the files that the new codes may lack.

    After a crash an old manifest beside new files would make the folder look damaged. Without a manifest it is
    recognized as incomplete.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (MANIFEST, *_CONTINUOUS.values(), _FEATURE_ROWS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"could not write to {folder}: {error.strerror or error}") from error


def _write_manifest(
    folder: Path,
    bits: int,
    counts: Mapping[str, tuple[int, int]],
    provenance: Mapping[str, Any],
    beside: Sequence[str],
) -> None:
    """Write the manifest, which completes a folder. ``counts`` has the numbers of images and classes of each side."""
    names = [*(name for side in counts for name in _FILES[side]), *beside]
    manifest = {
        "format": FORMAT,
        "bits": bits,
        "bit_order": "little",
        **{side: {"count": count, "classes": classes} for side, (count, classes) in counts.items()},
        "files": {
            name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size} for name in names
        },
        **provenance,
    }
    write_sealed(folder / MANIFEST, manifest)


def load_codes(folder: Path) -> tuple[CodeSet, CodeSet, dict[str, Any]]:
    """Open a folder that `save_codes` wrote. Arrays and ids are memory-mapped, read-only, and stay on disk until used.

    Returns:
        The query side, the database side and the manifest.

    Raises:
        ArtifactError: If the folder is incomplete, damaged, of a newer format, or not a codes folder.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, _SIDES)
    query, database = (_load_side(folder, side, manifest) for side in _SIDES)
    require_comparable(query, database)
    return query, database, manifest


@dataclass(frozen=True, eq=False)
class Database:
    """One side of a codes folder, opened for search. Its arrays and ids stay on disk until they are used.

    Attributes:
        packed: Codes (n, bytes) uint8, as `pack` returns them.
        bits: Code length.
        labels: Multi-hot labels (n, classes) uint8, with no columns if there are no labels.
        ids: Names of the images, one per code.
        manifest: Manifest of the folder.
    """

    packed: np.ndarray
    bits: int
    labels: np.ndarray
    ids: "Lines"
    manifest: dict[str, Any]

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.packed)


def open_side(folder: Path, side: str = "database") -> Database:
    """Open one side of a folder that `save_codes` or `save_database` wrote, without loading its ids.

    Codes, labels and ids are checked as `load_codes` checks them, in blocks: ids take 16 bytes each for that time.

    Raises:
        ArtifactError: If the folder is incomplete, damaged, of a newer format, or not a codes folder, or if its ids are
            not unique or its labels not 0 and 1.
    """
    folder = Path(folder)
    found = _open(folder, side, read_manifest(folder, (side,)))
    with _named(folder, side):
        require_valid(found.packed, found.bits, found.labels, found.ids)
    return found


class Lines(Names):
    """The lines of a text file, by number. A line is read only when it is asked for; memory holds 8 bytes per line.

    Args:
        path: Text file in UTF-8.
        count: Number of lines that the file must have.

    Raises:
        ArtifactError: If the file has another number of lines, is not UTF-8, or cannot be read.
    """

    _errors = "strict"

    def __init__(self, path: Path, count: int):
        self._path = path
        ends = [np.zeros(1, np.int64)]
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise ArtifactError(f"could not read {path}: {error.strerror or error}") from error
        self._bytes = np.frombuffer(mapped, np.uint8)
        ends += (
            np.flatnonzero(self._bytes[start : start + _BLOCK] == ord("\n")) + (start + 1)
            for start in range(0, size, _BLOCK)
        )
        self._ends = np.concatenate(ends)
        if len(self) != count or self._ends[-1] != size:
            raise ArtifactError(f"{path} must have {count} complete lines, one for each code, got {len(self)}")
        for start in range(0, count, _LINES):
            self._text(start, min(start + _LINES, count))  # so that no line is an error later

    def _text(self, first: int, last: int) -> str:
        try:
            return super()._text(first, last)
        except UnicodeDecodeError as error:
            line = first + error.object.count(b"\n", 0, error.start)
            raise ArtifactError(f"{self._path} is not UTF-8 text: {error.reason} in line {line + 1}") from error


def read_manifest(folder: Path, sides: Sequence[str] = _SIDES) -> dict[str, Any]:
    """Read the manifest of a codes folder, without checking the other files.

    Raises:
        ArtifactError: If the manifest is missing, damaged or of a newer format, or if it lacks one of ``sides``.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST}: the codes are incomplete or this is not a codes folder")
    manifest = read_sealed(path, limit=_MANIFEST_LIMIT)
    if not is_count(manifest.get("format")):
        raise ArtifactError(f"{path} has no format number: it was damaged or is not the manifest of a codes folder")
    version = manifest["format"]
    if version > FORMAT:
        raise ArtifactError(
            f"{path} has format {version}, written by a newer deephash; this one reads format {FORMAT}: update it"
        )
    if version != FORMAT:
        raise ArtifactError(f"{path} has format {version}, expected {FORMAT}: it was damaged or edited by hand")
    if not is_count(manifest.get("bits")) or not 1 <= manifest["bits"] <= BITS_LIMIT:
        raise ArtifactError(
            f"{path} must give bits between 1 and {BITS_LIMIT}, got {short(repr(manifest.get('bits')))}"
        )
    if manifest.get("bit_order") != "little":
        raise ArtifactError(f"{path} must have bit_order 'little', got {short(repr(manifest.get('bit_order')))}")
    for side in sides:
        part = manifest.get(side)
        if not isinstance(part, dict) or not all(is_count(part.get(key)) for key in ("count", "classes")):
            raise ArtifactError(f"{path} must give count and classes of the {side}, got {short(repr(part))}")
    _check_origin(path, manifest, sides)
    files = manifest.get("files")
    for name in (name for side in sides for name in _FILES[side]):
        _checked_entry(path, name, files.get(name) if isinstance(files, dict) else None)
    return manifest


def _checked_entry(path: Path, name: str, entry: Any) -> dict[str, Any]:
    """Return the entry of a file in the manifest at ``path``.

    Raises:
        ArtifactError: If it does not give the size and the digest of the file.
    """
    if not isinstance(entry, dict) or not is_count(entry.get("bytes")) or not isinstance(entry.get("sha256"), str):
        raise ArtifactError(f"{path} must give bytes and sha256 of {name}, got {short(repr(entry))}")
    return entry


# Kinds of values of a manifest's entries: words for messages, and a test.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "text or null": lambda value: value is None or isinstance(value, str),
    "a whole number of at least 0": is_count,
    "a whole number of at least 0 or null": lambda value: value is None or is_count(value),
    "an object": lambda value: isinstance(value, dict),
    "an object or null": lambda value: value is None or isinstance(value, dict),
    "a list of whole numbers from 1": lambda value: (
        isinstance(value, list) and all(is_count(rank) and 1 <= rank < RANK_LIMIT for rank in value)
    ),
    "a list of whole numbers from 0": lambda value: isinstance(value, list) and all(map(is_count, value)),
    "a list of different names": lambda value: (
        isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)
    ),
    "zero or skip": lambda value: value in ("zero", "skip"),
    "one or all": lambda value: value in ("one", "all"),
}
# Kind of each entry that a command reads. Every entry may be missing here; a command says which ones it needs.
_ENTRIES = {
    "provenance": "an object",
    "provenance.method": "text",
    "provenance.module": "an object",
    "provenance.model": "text",
    "provenance.dataset": "text",
    "provenance.encoded": "text",
    "provenance.run": "text or null",
    "provenance.split": "an object",
    "provenance.split.name": "text",
    "provenance.split.sha256": "text",
    "provenance.features": "an object",
    "provenance.features.key": "text",
    "provenance.seed": "a whole number of at least 0",
    "provenance.epochs": "a whole number of at least 0",
    "provenance.class_names": "a list of different names",
    "provenance.validation": "an object or null",
    "provenance.checkpoint": "an object",
    "provenance.checkpoint.file": "text",
    "provenance.checkpoint.sha256": "text",
    "provenance.versions": "an object",
    "evaluation": "an object",
    "evaluation.ks": "a list of whole numbers from 1",
    "evaluation.map_at": "a list of whole numbers from 1",
    "evaluation.radius": "a whole number of at least 0",
    "evaluation.zero_hits": "zero or skip",
    "evaluation.similar": "one or all",
    "evaluation.nested": "a list of whole numbers from 1",
    "evaluation.unseen": "a list of whole numbers from 0",
    "source": "an object",
    "source.root": "text",
    "source.dataset": "an object",
    "skipped": "a whole number of at least 0",
}


_MISSING = object()


def require_entries(folder: Path, manifest: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that a manifest has entries that a command needs.

    Args:
        folder: Codes folder, for the message.
        manifest: Manifest of the folder, from `read_manifest`.
        names: Names of the entries; those in an inner object have dots, such as ``provenance.method``.

    Raises:
        ArtifactError: If an entry is missing.
    """
    if missing := [name for name in names if _entry(manifest, name) is _MISSING]:
        raise ArtifactError(
            f"{Path(folder) / MANIFEST} must give {', '.join(missing)}, got none: another program wrote it, or it was "
            "edited by hand"
        )


def _entry(manifest: Mapping[str, Any], name: str) -> Any:
    """Return the entry with a dotted name, or ``_MISSING``."""
    part: Any = manifest
    for key in name.split("."):
        part = part.get(key, _MISSING) if isinstance(part, Mapping) else _MISSING
    return part


def _check_origin(path: Path, manifest: dict[str, Any], sides: Sequence[str]) -> None:
    """Check the entries of a manifest that describe where its codes come from and how they are evaluated.

    Raises:
        ArtifactError: If one of them is of the wrong kind, or if the class names do not fit the label columns.
    """
    for name, kind in _ENTRIES.items():
        value = _entry(manifest, name)
        if value is not _MISSING and not _KINDS[kind](value):
            raise ArtifactError(f"{path} must give {kind} as {name}, got {short(repr(value))}: it was edited by hand")
    names = manifest.get("provenance", {}).get("class_names")
    if names is None:
        return
    for side in sides:
        columns = manifest[side]["classes"]
        if columns != len(names):
            raise ArtifactError(
                f"{path} must give a class name for each of the {columns} label columns of the {side}, "
                f"got {len(names)} names: it was edited by hand"
            )


def require_skipped_intact(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the list of skipped images with its digest in the manifest; earlier versions recorded none.

    Raises:
        ArtifactError: If the list is missing or damaged.
    """
    _verify_optional(folder, SKIPPED, manifest)


def _verify_optional(folder: Path, name: str, manifest: Mapping[str, Any]) -> bool:
    """Return whether the manifest names a file, after comparing the file with its digest there.

    Raises:
        ArtifactError: If the file is missing or damaged.
    """
    entry = manifest["files"].get(name)
    if entry is not None:
        _verify(folder / name, _checked_entry(folder / MANIFEST, name, entry))
    return entry is not None


def damages(folder: Path) -> list[tuple[Path, str]]:
    """Compare every file of a codes folder with the manifest, and return what is wrong.

    Returns:
        The damaged files, each with a sentence; empty if the folder is intact.
    """
    try:
        manifest = read_manifest(folder, ())
        sides = [side for side in _SIDES if side in manifest]
        read_manifest(folder, sides)
    except ArtifactError as error:
        return [(folder / MANIFEST, str(error))]
    found = []
    for name in [*(name for side in sides for name in _FILES[side]), *_CONTINUOUS.values(), SKIPPED, _FEATURE_ROWS]:
        try:
            _verify_optional(folder, name, manifest)
        except ArtifactError as error:
            found.append((folder / name, str(error)))
    return found


def _load_side(folder: Path, side: str, manifest: dict[str, Any]) -> CodeSet:
    found = _open(folder, side, manifest)
    u = open_continuous(folder, side, manifest)
    with _named(folder, side):
        return CodeSet(packed=found.packed, bits=found.bits, labels=found.labels, ids=found.ids, u=u)


def feature_rows(folder: Path, manifest: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the rows of the queries and of the database in the file of features that the codes were made from.

    Args:
        folder: Codes folder.
        manifest: Manifest of the folder, from `read_manifest`.

    Returns:
        Row numbers (q,) and (n,); None if the codes were not made from features that are kept.

    Raises:
        ArtifactError: If the file is missing or damaged.
    """
    if not _verify_optional(folder, _FEATURE_ROWS, manifest):
        return None
    count = manifest["query"]["count"]
    rows = _open_array(folder / _FEATURE_ROWS, (count + manifest["database"]["count"],), np.dtype("<i8"))
    return rows[:count], rows[count:]


def open_continuous(folder: Path, side: str, manifest: Mapping[str, Any]) -> np.ndarray | None:
    """Memory-map the continuous codes of one side, after checking their digest and shape, but not yet their values.

    Args:
        folder: Codes folder.
        side: ``query`` or ``database``.
        manifest: Manifest of the folder, from `read_manifest`.

    Returns:
        Continuous codes (n, bits) float16; None if the folder has none.

    Raises:
        ArtifactError: If the file is missing or damaged.
    """
    name = _CONTINUOUS[side]
    if not _verify_optional(folder, name, manifest):
        return None
    return _open_array(folder / name, (manifest[side]["count"], manifest["bits"]), np.dtype("<f2"))


def _open(folder: Path, side: str, manifest: dict[str, Any]) -> Database:
    """Open one side of a folder after checking the digests of its files, but not yet what they hold."""
    codes_name, labels_name, ids_name = _FILES[side]
    for name in _FILES[side]:
        _verify(folder / name, manifest["files"][name])
    count, classes, bits = manifest[side]["count"], manifest[side]["classes"], manifest["bits"]
    packed = _open_array(folder / codes_name, (count, packed_width(bits)))
    labels = _open_array(folder / labels_name, (count, classes))
    return Database(packed, bits, labels, Lines(folder / ids_name, count), manifest)


@contextlib.contextmanager
def _named(folder: Path, side: str) -> Iterator[None]:
    """Say in an error about codes, labels or ids whose they are."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{folder}, {side} side: {error}") from error


def _verify(path: Path, entry: dict[str, Any]) -> None:
    try:
        status = path.stat()
        # Reading a pipe or a device could block forever.
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path} is not a plain file")
        if status.st_size != entry["bytes"]:
            raise ArtifactError(
                f"{path} has {status.st_size} bytes but {MANIFEST} says {entry['bytes']}: it was truncated or replaced"
            )
        digest = sha256_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist: the codes are incomplete") from error
    except OSError as error:
        raise ArtifactError(f"could not read {path}: {error.strerror or error}") from error
    if digest != entry["sha256"]:
        raise ArtifactError(f"{path} does not match its SHA-256 in {MANIFEST}: it was damaged or replaced")


def _open_array(path: Path, expected: tuple[int, ...], dtype: np.dtype = _BYTES) -> np.ndarray:
    """Memory-map an array, after checking that its header is exactly as expected."""
    header = read_header(path)
    if header.version != (1, 0):
        raise ArtifactError(f"{path} has .npy version {header.version[0]}.{header.version[1]}, expected 1.0")
    if header.dtype != dtype:
        words = "unsigned bytes" if dtype == _BYTES else dtype.name
        raise ArtifactError(f"{path} must hold {words} ({dtype.str}), got {short(repr(header.dtype.str))}")
    if header.fortran_order:
        raise ArtifactError(f"{path} must be in C order, got Fortran order")
    if header.shape != expected:
        raise ArtifactError(f"{path} has shape {short(repr(header.shape))} but {MANIFEST} says {expected}")
    return map_array(path, header)

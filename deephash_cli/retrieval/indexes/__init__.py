"""Search in codes, exactly or with one of the binary indexes of faiss, through one interface.

Every search returns results by distance, ties by position in the database. faiss itself promises no order of ties, and
marks missing results with its own values; this module hides both differences. faiss also compares codes of 48 bits
five times slower than codes of 64 bits, so all codes are padded to whole machine words with zeros, which add no
distance.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from deephash_cli import __version__
from deephash_cli.choices import modules
from deephash_cli.errors import ArtifactError, ConfigError, command, first_line, hint, short
from deephash_cli.files import atomic_write, read_sealed, sha256_file, write_bytes, write_sealed
from deephash_cli.retrieval import ranking
from deephash_cli.retrieval.codes import packed_width
from deephash_cli.retrieval.codes_folder import Database
from deephash_cli.retrieval.threads import usable_threads

FORMAT = 1
KINDS = ("exact", *modules("retrieval/indexes"))
MISSING = -1  # distance and position of a result that an index did not find

_CODES = "database.npy"  # the file in a codes folder whose codes are indexed
_RECORD = {"kind": str, "settings": dict, "bits": int, "count": int, "sha256": str, "bytes": int, "codes_sha256": str}
_RECORD_LIMIT = 2**20
_WORD = 8  # bytes
_TOGETHER = 64  # queries that a radius search passes to faiss at a time

Found = tuple[Int64[np.ndarray, " hits"], Int64[np.ndarray, " hits"]]


class Exact:
    """Exact search: compares every code, needs no faiss and no time to build.

    Codes of whole machine words stay on disk if they are memory-mapped.

    Args:
        packed: Packed codes of the database.
        bits: Code length.
    """

    kind = "exact"

    def __init__(self, packed: UInt8[np.ndarray, "n bytes"], bits: int):
        ranking.check_side("database", packed, bits)
        self.bits = bits
        self._codes = _whole_words(packed)  # done once here: `ranking` would do it for each search

    @property
    def n(self) -> int:
        """Number of codes."""
        return len(self._codes)

    def nearest(
        self, queries: UInt8[np.ndarray, "q bytes"], k: int
    ) -> tuple[Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
        """Find the ``k`` nearest items of each query: see `ranking.nearest`. No result is ever missing."""
        ranking.check_side("query", queries, self.bits)
        return ranking.nearest(_whole_words(queries), self._codes, 8 * self._codes.shape[1], k)

    def within(self, queries: UInt8[np.ndarray, "q bytes"], radius: int) -> Iterator[Found]:
        """Find all items at most ``radius`` away from each query: see `ranking.within`."""
        ranking.check_side("query", queries, self.bits)
        return ranking.within(_whole_words(queries), self._codes, 8 * self._codes.shape[1], radius)


class Faiss:
    """A binary index of faiss. It uses as many threads as ``ranking``.

    Args:
        kind: Kind of index: one of ``KINDS``, but not ``exact``.
        bits: Code length.
        settings: Settings that the index was built with; empty if its kind has none.
        inner: The faiss index, filled with codes padded to whole machine words.
    """

    def __init__(self, kind: str, bits: int, settings: Mapping[str, Any], inner: Any):
        self.kind = kind
        self.bits = bits
        self.settings = settings
        self.inner = inner

    @property
    def n(self) -> int:
        """Number of codes."""
        return self.inner.ntotal

    def nearest(
        self, queries: UInt8[np.ndarray, "q bytes"], k: int
    ) -> tuple[Int64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
        """Find the ``k`` nearest items of each query, or those of them that the index finds.

        The result of ``flat`` equals that of the exact search. For this, faiss must keep the items that come first in
        the database when several tie for the last place. It does so without promising it; a test would fail if that
        changed.

        Args:
            queries: Packed codes of the queries.
            k: Number of items to find for each query; if the database has fewer, all of them.

        Returns:
            Distances and positions in the database, sorted by distance, ties by position. Missing results come last,
            with ``MISSING`` as distance and position.

        Raises:
            ValueError: If the codes do not match the index, or if ``k`` is below 1.
        """
        ranking.check_side("query", queries, self.bits)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        _load_faiss()
        distances, positions = self.inner.search(_whole_words(queries), min(k, self.n))
        distances = distances.astype(np.int64)
        distances[positions < 0] = np.iinfo(np.int64).max  # last in order
        order = np.lexsort((positions, distances))
        distances, positions = (np.take_along_axis(side, order, axis=1) for side in (distances, positions))
        missing = positions < 0
        distances[missing] = positions[missing] = MISSING
        return distances, positions

    def within(self, queries: UInt8[np.ndarray, "q bytes"], radius: int) -> Iterator[Found]:
        """Find the items at most ``radius`` away from each query, or those of them that the index finds.

        Args:
            queries: Packed codes of the queries.
            radius: Largest distance, in bits, of an item to find.

        Returns:
            For each query in order, distances and positions in the database, sorted by distance, ties by position.

        Raises:
            ConfigError: If this kind of index has no radius search.
            ValueError: If the codes do not match the index, or if ``radius`` is below 0. Both errors are raised at the
                call, not with the first result.
        """
        ranking.check_side("query", queries, self.bits)
        if radius < 0:
            raise ValueError(f"radius must be at least 0, got {radius}")
        if not has_radius(self.kind):
            raise ConfigError(
                f"an index of kind {self.kind} finds the nearest items only, not all within a radius: "
                f"use {', '.join(kind for kind in KINDS if has_radius(kind))}"
            )
        return self._within(queries, min(radius, self.bits))

    def _within(self, queries: UInt8[np.ndarray, "q bytes"], radius: int) -> Iterator[Found]:
        for start in range(0, len(queries), _TOGETHER):
            _load_faiss()
            # faiss finds items nearer than its radius, and returns distances as floating-point numbers.
            some = _whole_words(queries[start : start + _TOGETHER])
            limits, distances, positions = self.inner.range_search(some, radius + 1)
            for first, last in pairwise(limits.tolist()):
                order = np.lexsort((positions[first:last], distances[first:last]))
                yield distances[first:last][order].astype(np.int64), positions[first:last][order]


Index = Exact | Faiss


def without(
    own: Int64[np.ndarray, " q"], distances: Int64[np.ndarray, "q found"], positions: Int64[np.ndarray, "q found"]
) -> tuple[Int64[np.ndarray, "q others"], Int64[np.ndarray, "q others"]]:
    """Return the results without the query itself; a query that did not find itself loses its last result."""
    order = np.argsort(positions == own[:, None], axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(positions, order, axis=1)


def has_radius(kind: str) -> bool:
    """Return whether indexes of a kind can find all items within a radius."""
    return kind == Exact.kind or kind_of(kind).HAS_RADIUS


def kind_of(name: str) -> ModuleType:
    """Return the module of a kind of index. A kind is one module in this package and needs no other code.

    Each module has ``FAISS_CLASS``, the name of the class in faiss; ``HAS_RADIUS``, whether it can find all items
    within a radius; ``RANGES``, the smallest and largest values of its settings in ``conf/_index.yaml``; and
    ``build(faiss, codes, bits, settings)``. That function takes ``codes`` (n, bytes) uint8 in whole machine words,
    their length in bits, and the settings. It returns the faiss index and the settings that were used: numbers left
    open are filled in, and too large ones are reduced.
    """
    return importlib.import_module(f"{__name__}.{name}")


def open_or_build(what: str, database: Database, settings: Mapping[str, Mapping[str, Any]]) -> Index:
    """Build an index of a database in memory, or open the index in a file.

    Args:
        what: One of ``KINDS``, or the path of a file that `save` wrote.
        database: Database side of a codes folder.
        settings: Settings of each kind of index that has some, by the name of the kind.

    Raises:
        ArtifactError: If the file is damaged, or is an index of other codes.
        ConfigError: If ``what`` is neither a kind nor a file, settings do not suit the codes, or faiss is missing.
    """
    if what == Exact.kind:
        return Exact(database.packed, database.bits)
    if what in KINDS:
        return build(what, database.packed, database.bits, settings.get(what, {}))
    if not Path(what).exists():
        raise ConfigError(
            f"an index is one of {', '.join(KINDS)}, or a file that deephash index wrote, got {what!r}, "
            f"which does not exist{hint(what, KINDS)}"
        )
    return load(Path(what), database)


def build(kind: str, packed: UInt8[np.ndarray, "n bytes"], bits: int, settings: Mapping[str, Any]) -> Faiss:
    """Build an index of codes in memory.

    Args:
        kind: Kind of index: one of ``KINDS``, but not ``exact``.
        packed: Packed codes of the database.
        bits: Code length.
        settings: Settings of this kind, with the names in ``conf/_index.yaml``.

    Raises:
        ConfigError: If there are no codes, if the settings do not suit them, or if faiss is missing.
        ValueError: If rows have another width, or padding that is not zero.
    """
    ranking.check_side("database", packed, bits)
    if not len(packed):
        raise ConfigError(f"an index of kind {kind} needs codes, got a database without any: use exact")
    inner, used = kind_of(kind).build(_load_faiss(), _whole_words(packed), bits, settings)
    return Faiss(kind, bits, used, inner)


def _whole_words(packed: UInt8[np.ndarray, "n bytes"]) -> UInt8[np.ndarray, "n padded"]:
    n, width = packed.shape
    if width % _WORD == 0:
        return np.ascontiguousarray(packed)
    padded = np.zeros((n, -(-width // _WORD) * _WORD), np.uint8)
    padded[:, :width] = packed
    return padded


def save(index: Faiss, path: Path, database: Database) -> dict[str, Any]:
    """Write an index, and beside it ``<path>.json``, which describes it.

    The description holds its kind and settings, the digest of its codes, and the digest of the index file.

    Args:
        index: Index built from ``database``.
        path: Path of the index file. An existing file is replaced; a symbolic link is kept and its file replaced.
        database: Database side of a codes folder.

    Returns:
        The content of ``<path>.json``.

    Raises:
        ArtifactError: If the files cannot be written.
    """
    faiss = _load_faiss()
    place = record_path(path).resolve()
    before = place.read_bytes() if place.is_file() else None
    try:
        with atomic_write(path.resolve()) as file:
            written = _Written(file.write)
            try:
                faiss.write_index_binary(index.inner, faiss.PyCallbackIOWriter(written.write))
            except RuntimeError as error:  # faiss turns every exception of Python's write into this
                raise written.error or ArtifactError(f"could not write {path}: {first_line(error)}") from error
            record = {
                "format": FORMAT,
                "kind": index.kind,
                "settings": dict(index.settings),
                "bits": index.bits,
                "count": index.n,
                "sha256": written.digest.hexdigest(),
                "bytes": written.bytes,
                "codes_sha256": _digest_of(database),
                "versions": {"deephash": __version__, "faiss": faiss.__version__},
            }
            write_sealed(place, record)  # before the index appears, so that both are new or both are old
    except ArtifactError:
        if before is not None:
            write_bytes(place, before)
        else:
            place.unlink(missing_ok=True)
        raise
    return record


class _Written:
    """Pass bytes on to a file; keep their digest and number, and the error of the system if there is one."""

    def __init__(self, write: Callable[[bytes], Any]):
        self._write = write
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write bytes after those written before, and return their number."""
        try:
            self._write(content)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(content)
        self.bytes += len(content)
        return len(content)


def load(path: Path, database: Database) -> Faiss:
    """Open an index that `save` wrote.

    The digest is checked before faiss reads the file, because a damaged file could make faiss misbehave. This protects
    against damage only: whoever can change the index can change the digest too, so open only indexes from people whom
    you trust.

    Args:
        path: Path of the index file.
        database: Database side of the codes folder that the index must be built from.

    Raises:
        ArtifactError: If the index is damaged, incomplete, of another format, or of other codes.
        ConfigError: If faiss is missing.
    """
    record = _read_record(path)
    if record["codes_sha256"] != _digest_of(database):
        raise ArtifactError(
            f"{path} is an index of other codes ({short(str(record['count']))} codes of {short(str(record['bits']))} "
            f"bits), not of those given ({database.n} codes of {database.bits} bits): build it again with "
            f"deephash index {command(f'output={path}')} and the same run= or codes="
        )
    _require_intact(path, record)
    faiss = _load_faiss()
    # No array of an index has more bytes than its file. Without the limit, faiss makes room for what the file claims.
    getattr(faiss, "set_deserialization_vector_byte_limit", lambda _: None)(record["bytes"])
    try:
        inner = faiss.read_index_binary(str(path))
    except (RuntimeError, MemoryError) as error:
        raise ArtifactError(f"{path} cannot be read by faiss {faiss.__version__}: build it again") from error
    found = type(inner).__name__, inner.d, inner.ntotal
    if found != (kind_of(record["kind"]).FAISS_CLASS, -(-packed_width(database.bits) // _WORD) * 8 * _WORD, database.n):
        raise ArtifactError(f"{path} is not the index that {record_path(path).name} describes: it was edited by hand")
    return Faiss(record["kind"], database.bits, record["settings"], inner)


def verify(path: Path) -> None:
    """Compare the file of an index with its description. It needs no faiss.

    Raises:
        ArtifactError: If one of the two files is missing or damaged.
    """
    _require_intact(path, _read_record(path))


def _require_intact(path: Path, record: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        # Reading a pipe or a device could block forever.
        intact = path.is_file() and size == record["bytes"] and sha256_file(path) == record["sha256"]
    except OSError as error:
        raise ArtifactError(f"could not read {path}: {error.strerror or error}") from error
    if not intact:
        raise ArtifactError(f"{path} does not match {record_path(path).name}: it was damaged or replaced")


def _read_record(path: Path) -> dict[str, Any]:
    file = record_path(path)
    if not file.is_file():
        raise ArtifactError(
            f"{path} has no {file.name} beside it: it is incomplete, or was not written by deephash index"
        )
    record = read_sealed(file, _RECORD_LIMIT)
    if type(record.get("format")) is not int:
        raise ArtifactError(f"{file} has no format number: it was damaged, or does not describe an index")
    if record["format"] != FORMAT:
        raise ArtifactError(
            f"{file} has format {short(str(record['format']))}, but this deephash reads {FORMAT}: build the index again"
        )
    wrong = [name for name, kind in _RECORD.items() if type(record.get(name)) is not kind]
    if not wrong and record["kind"] not in KINDS[1:]:
        wrong = ["kind"]
    if wrong:
        raise ArtifactError(f"{file} must give {', '.join(wrong)}, got something else: it was edited by hand")
    return record


def record_path(path: Path) -> Path:
    """Return the path of the file that describes the index in ``path``."""
    return path.with_name(f"{path.name}.json")


def _digest_of(database: Database) -> str:
    return database.manifest["files"][_CODES]["sha256"]


def _load_faiss() -> ModuleType:
    """Import faiss and set its number of threads."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("an index other than exact needs faiss: pip install 'deephash[faiss]'") from error
    faiss.omp_set_num_threads(usable_threads())
    return faiss

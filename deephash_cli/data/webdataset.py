"""Load images from shards in the form of WebDataset: plain tar archives, read by position and never unpacked.

The files of one sample follow each other and share a key, the name up to the first dot: ``000017.jpg``, ``000017.cls``.
Each archive is looked through once; the positions of its files are kept in the cache folder.
"""

import hashlib
import json
import posixpath
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from deephash_cli.cache import cache_folder
from deephash_cli.data import labels as reading
from deephash_cli.data.archives import fault_at_end
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.decoding import Member, endings, unreadable, why
from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.errors import ArtifactError, ConfigError, DataError, short
from deephash_cli.files import read_sealed, write_sealed
from deephash_cli.names import Names

LABELS = ("cls", "json", "txt", "none")
_VERSION = 2  # of what is kept of an archive; raise it when another version would understand it wrongly
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SHARDS = 100_000  # more of them are a typing error
_LARGEST_IMAGE = 2**28  # bytes of an image's file
_LARGEST_LABEL = 2**20


class ImageShards(ImageFiles):
    """Images in tar archives, which are decoded on demand as files are.

    Args:
        paths: Path of each image below ``root``: that of its archive, and its name in the archive.
        root: Folder that the archives' paths start from.
        archives: Paths of the archives below ``root``.
        places: For each image the number of its archive, and position and size of its file there in bytes (n, 3).
        form: As for ``ImageFiles``.
    """

    def __init__(
        self,
        paths: Names,
        root: Path,
        archives: list[str],
        places: Int64[np.ndarray, "n 3"],
        form: Preprocessing | None = None,
    ) -> None:
        super().__init__(paths, root, form)
        self.archives = archives
        self.places = places

    def source(self, row: int) -> Member:
        """Return the place of the image at ``row``."""
        number, offset, size = self.places[row].tolist()
        return Member(self.root / self.archives[number], offset, size, str(self.root / self.paths[row]))

    def subset(self, rows: Int[np.ndarray, "b"]) -> "ImageShards":
        """Return the images at ``rows``, in that order."""
        return ImageShards(self.paths.take(rows), self.root, self.archives, self.places[rows], self.form)

    def prepared(self, form: Preprocessing) -> "ImageShards":
        """Return the same images, of which ``batch(rows)`` returns what ``form`` makes of them."""
        return ImageShards(self.paths, self.root, self.archives, self.places, form)

    def digest(self) -> str:
        """Return the SHA-256 of each image's path and place, and of each archive's size and modification time.

        Raises:
            DataError: If an archive is missing.
        """
        digest = hashlib.sha256()
        for number in np.unique(self.places[:, 0]).tolist():
            archive = self.root / self.archives[number]
            try:
                status = archive.stat()
            except OSError as error:
                raise unreadable(archive, why(archive, error)) from error
            digest.update(f"{self.archives[number]}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        for path, place in zip(self.paths, self.places, strict=True):
            digest.update(f"{path}\0{place[1]}\0{place[2]}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()


def webdataset(root: str | Path | None, shards: str | None, labels: str) -> RetrievalDataset:
    """Load the images of tar archives, one for each sample; ids are ``<archive>/<key>``.

    Args:
        root: Folder that the paths of the archives start from; None for the current folder.
        shards: Path of the archives, in which ``{000000..000009}`` stands for the numbers in this range; None is an
            error.
        labels: The file of a sample that has its label: ``cls``, the number of the class; ``json``, with a class or a
            list of classes under ``label`` or ``labels``; ``txt``, names of classes separated by ``;``; or ``none``.

    Raises:
        ConfigError: If ``labels`` is another word.
        DataError: If an archive is missing or damaged, has links, or has a file twice; or if a sample has no image, or
            no label where all must have one.
    """
    if labels not in LABELS:
        raise ConfigError(f"dataset.labels of shards must be {' or '.join(LABELS)}, got {short(labels)}")
    if shards is None:
        raise DataError("shards need dataset.shards=<archives>, such as dataset.shards='train-{000000..000009}.tar'")
    folder = Path() if root is None else Path(root).expanduser()
    archives = expanded(shards)
    ids, paths, places, cells, sources = [], [], [], [], []
    for number, archive in enumerate(archives):
        contents = _contents(folder / archive, labels)
        shown = Path(archive).name if Path(archive).is_absolute() else posixpath.normpath(archive)
        for key, name, offset, size, label in contents:
            ids.append(f"{shown}/{key}")
            paths.append(f"{archive}/{name}")
            places.append((number, offset, size))
            cells.append(label)
            sources.append(f"{folder / archive}/{key}.{labels}")
    if not ids:
        raise DataError(f"dataset.shards={short(shards)} has no image; give archives of samples with an image each")
    read = _read_labels(labels, cells, sources)
    return RetrievalDataset(
        name="webdataset",
        ids=ids,
        labels=read.labels,
        class_names=read.class_names,
        images=ImageShards(Names(paths), folder, archives, np.array(places, np.int64)),
        reading=(read.how,),
    )


def expanded(pattern: str) -> list[str]:
    """Return the paths that a pattern stands for, in which ``{08..11}`` is each of 08, 09, 10 and 11.

    Raises:
        DataError: If a range is empty, or the pattern stands for too many paths.
    """
    found = _RANGE.search(pattern)
    if found is None:
        if "://" in pattern or pattern.startswith("pipe:"):
            raise DataError(f"dataset.shards must be files on this machine, got {short(pattern)}: download them first")
        return [pattern]
    first, last = map(int, found.groups())
    if not 0 <= last - first < _SHARDS:
        raise DataError(
            f"dataset.shards has the range {found[0]}, which must go up and have at most {_SHARDS} numbers; correct it"
        )
    width = len(found[1])
    rest = expanded(pattern[found.end() :])
    paths = [f"{pattern[: found.start()]}{number:0{width}d}{end}" for number in range(first, last + 1) for end in rest]
    if len(paths) > _SHARDS:
        raise DataError(f"dataset.shards stands for more than {_SHARDS} archives; correct the ranges")
    return paths


_Content = list[tuple[str, str, int, int, str]]  # of each sample the key; name, position and size of its image; label


def _contents(archive: Path, labels: str) -> _Content:
    """Return what an archive holds, from the cache if it was looked through before and is the same."""
    try:
        status = archive.stat()
    except OSError as error:
        raise DataError(
            f"shard {archive} cannot be read: {error.strerror or error}; correct dataset.shards or dataset.root"
        ) from error
    if not archive.is_file():
        raise DataError(f"shard {archive} is not a file; expected a tar archive")
    text = f"{_VERSION} {archive.absolute()} {status.st_size} {status.st_mtime_ns} {labels} {sorted(endings())}"
    kept = cache_folder() / "shards" / f"{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}.json"
    try:
        return [tuple(sample) for sample in read_sealed(kept)["samples"]]
    except (ArtifactError, KeyError, TypeError):
        pass
    contents = _look_through(archive, status.st_size, labels)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(kept, {"shard": archive.name, "samples": contents})
    except (ArtifactError, OSError, UnicodeError):
        pass  # the archive is looked through again next time
    return contents


@dataclass
class _Sample:
    endings: set[str] = field(default_factory=set)
    image: tuple[str, int, int] | None = None
    label: str = ""


def _look_through(archive: Path, size: int, labels: str) -> _Content:
    """Read the headers of an archive and the labels in it."""
    samples: dict[str, _Sample] = {}
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isdir():
                    _add(samples, archive, size, tar, member, labels)
            file.seek(tar.offset)
            if fault := fault_at_end(file.read(tarfile.BLOCKSIZE), file.read, tar.offset):
                raise DataError(f"shard {archive} cannot be used: {fault}; download or write it again")
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"shard {archive} cannot be read as a tar archive that is not compressed: {error or 'it ends too early'}; "
            "unpack it, or download or write it again"
        ) from error
    without = [key for key, sample in samples.items() if sample.image is None]
    if without:
        raise DataError(
            f"shard {archive} has {len(without)} samples without an image, such as {short(without[0])}; an image ends "
            f"in {', '.join(sorted(endings()))}"
        )
    return [(key, *sample.image, sample.label) for key, sample in samples.items() if sample.image]


def _add(
    samples: dict[str, _Sample], archive: Path, size: int, tar: tarfile.TarFile, member: tarfile.TarInfo, labels: str
) -> None:
    """Add a file of an archive to the sample that it belongs to."""
    place = f"shard {archive}: {short(member.name)}"
    if not member.isreg() or member.issparse():
        raise DataError(f"{place} is a link or a special file; a shard must have ordinary files alone")
    if member.offset_data + member.size > size:
        raise DataError(f"{place} goes beyond the end of the shard; download or write it again")
    folder, slash, name = member.name.rpartition("/")
    if name.startswith((".", "__")):  # hidden, or about the shard itself
        return
    start, _, ending = name.partition(".")
    ending = ending.lower()
    sample = samples.setdefault(f"{folder}{slash}{start}", _Sample())
    if ending in sample.endings:
        raise DataError(f"{place} is in the shard twice; write it again with keys that are all different")
    sample.endings.add(ending)
    if f".{ending}" in endings():
        if sample.image is not None:
            raise DataError(f"{place} is a second image of its sample; give one image to each key")
        if member.size > _LARGEST_IMAGE:
            raise DataError(f"{place} has {member.size} bytes, more than the {_LARGEST_IMAGE} allowed for an image")
        sample.image = member.name, member.offset_data, member.size
    elif ending == labels:
        if member.size > _LARGEST_LABEL:
            raise DataError(f"{place} has {member.size} bytes, more than the {_LARGEST_LABEL} allowed for a label")
        file = tar.extractfile(member)
        assert file is not None  # it is an ordinary file
        try:
            sample.label = file.read().decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{place} is not UTF-8 text; write it again as UTF-8") from error


def _read_labels(kind: str, cells: list[str], places: list[str]) -> reading.Labels:
    """Make multi-hot labels of the text of each label file, which is empty if there is none."""
    if kind == "none":
        return reading.Labels(np.zeros((len(cells), 0), np.uint8), [], "")
    if not any(cells):
        raise DataError(
            f"none of the {len(cells)} samples has a label in a file .{kind}; set dataset.labels to "
            f"{', '.join(word for word in LABELS if word not in (kind, 'none'))}, or to none for images without labels"
        )
    if kind == "json":
        values = [_value(cell, place) for cell, place in zip(cells, places, strict=True)]
        if not all(isinstance(value, int) for value in values):
            return reading.from_cells(
                [_names(value, place) for value, place in zip(values, places, strict=True)], places
            )
        cells = list(map(str, values))
    elif kind == "txt":
        return reading.from_cells(cells, places)
    if "" in cells:
        raise DataError(
            f"{places[cells.index('')]} is missing or empty; give each sample the number of its class, -1 for none"
        )
    return reading.from_columns([[cell] for cell in cells], places, None)


def _value(cell: str, place: str) -> Any:
    """Return the value of ``label`` or ``labels`` in a JSON object; an empty list if there is none."""
    try:
        content = json.loads(cell, object_pairs_hook=_unique) if cell else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}; write it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{place} must be a JSON object with the key label or labels, got {short(cell)}")
    if "label" in content and "labels" in content:
        raise DataError(f"{place} has both label and labels; keep the one that is meant")
    return content.get("label", content.get("labels", []))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is there twice")
    return content


def _names(value: Any, place: str) -> str:
    """Return names of classes in the form that ``labels.from_cells`` reads."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{place} must have a class number in every sample, or a name or a list of names, got {short(str(value))}"
        )
    return str(names)

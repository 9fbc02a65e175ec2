"""Retrieval protocols: which images are queries, which are trained on, which are searched.

Results are comparable only if these three sets are the same. A division is therefore a value of its own: it is made by
a named and versioned generator, identified by a digest of its ids, stored with every run, and checked for what is known
to distort results.

    s1            100 queries and 500 training images per class; the database is everything except the queries, so it
                  contains the training images
    s1_disjoint   the same queries and training images; the database is all other images
    s1_validation the same training images and 100 other queries per class; the queries of s1 are in no part. It is
                  for choosing settings: as in the test, nothing was trained on its queries, but it is not the test
    s2            1000 queries per class; all other images are trained on and searched
    official      the data set's own division
    holdout       a tenth of each class are queries, or a tenth of all images if there are no labels; all other images
                  are trained on and searched
    nuswide_21    class by class 100 new queries, then class by class 500 new training images; the database is
                  everything except the queries, so it contains the training images
    nuswide_81    5,000 queries and 10,000 training images at random; the database is everything except the queries
    coco          the numbers of nuswide_81
    mirflickr     1,000 queries and 4,000 training images at random; the database is all other images
    voc2012       the numbers of mirflickr
    imagenet100   the queries are the official validation images, and 130 images of each class are trained on; the
                  database is the whole official training part, so it contains the training images
    imagenet100_10k  the same with 100 training images of each class
    auto          official if the data set has a division of its own, otherwise the protocol that its papers use, if
                  there is one, otherwise holdout; a split has the name of the one that was taken
"""

import difflib
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from deephash_cli.data.changes import is_record, unseen_classes
from deephash_cli.data.dataset import ImageArray, RetrievalDataset
from deephash_cli.data.drawing import evenly, permutation
from deephash_cli.data.identity import composed
from deephash_cli.data.leniency import is_lenient, refuse
from deephash_cli.errors import ArtifactError, ConfigError, DataError, short
from deephash_cli.files import atomic_write, open_plain, read_json
from deephash_cli.npy import RowNumbers, ids_at

_FORMAT = "deephash-split"
_FORMAT_VERSION = 1
_ROLES = ("query", "train", "database")
_VALIDATION, _SAMPLE = 1, 2  # make the random numbers of these choices differ from those of the protocol
_BLOCK = 2**16  # ids that are written at a time
_HEAD = 2**16  # bytes at the beginning of a split file that are enough for all but the ids
_LIMIT = 2**32  # bytes of a split file: a hundred million ids
_LEAST_LIMIT = 8 * 2**20  # bytes that a split file may have, even for a small data set
_AUTO = "auto"
_Rows = Int64[np.ndarray, "_"]
_HINT = "use dataset.protocol=holdout, which takes a tenth of each class as queries"


@dataclass(frozen=True, eq=False)
class Split:
    """A data set's division into queries, training set and database.

    Attributes:
        name: Name of the protocol.
        version: Version of the generator, raised whenever the same seed would give other rows.
        seed: Seed of the generator; None if nothing was drawn at random.
        query: Row numbers (q,) of the queries in the data set, ascending.
        train: Row numbers (t,) of the images whose labels a method may see, ascending.
        database: Row numbers (d,) of the images that are searched, ascending.
        sha256: Digest of the three lists of ids: two runs can be compared if their digests are equal.
        flags: Facts that a reader of the results must know: ``database_contains_train``, ``query_in_database`` (the
            number of queries in the database), ``unlabelled_rows`` (a number for each part), ``duplicate_images`` (the
            number of used rows that repeat the pixels of an earlier one; None unless images are held in memory),
            ``label_kind`` ("single", "multi" or "none").
        changes: What was changed of the training part after it was divided, as `data.changes` records it; empty if
            nothing was.
    """

    name: str
    version: int
    seed: int | None
    query: Int64[np.ndarray, " q"]
    train: Int64[np.ndarray, " t"]
    database: Int64[np.ndarray, " d"]
    sha256: str
    flags: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Split):
            return NotImplemented
        return (
            (self.name, self.version, self.seed, self.sha256, self.flags, self.changes)
            == (other.name, other.version, other.seed, other.sha256, other.flags, other.changes)
        ) and all(np.array_equal(getattr(self, role), getattr(other, role)) for role in _ROLES)

    def __hash__(self) -> int:
        return hash(self.sha256)


def make_split(protocol: str, dataset: RetrievalDataset, seed: int) -> Split:
    """Divide a data set by a named protocol. The same arguments give the same rows on every machine.

    Args:
        protocol: Name of the protocol, such as ``s1``; ``auto`` chooses one for the data set.
        dataset: Data set to divide.
        seed: Seed of the generator, at least 0; ``official`` does not use it.

    Raises:
        ConfigError: If there is no such protocol, or the seed is negative.
        DataError: If the data set does not suit the protocol: a class is too small, or it has no division of its own.
    """
    if protocol == _AUTO:
        protocol = "official" if dataset.has_own_division else dataset.usual or "holdout"
    if protocol not in _PROTOCOLS:
        known = [*_PROTOCOLS, _AUTO]
        near = difflib.get_close_matches(protocol, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"dataset.protocol={protocol} does not exist; choose from {', '.join(known)}{hint}")
    if seed < 0:
        raise ConfigError(f"dataset.split_seed must be 0 or more, got {seed}")
    generator = _PROTOCOLS[protocol]
    order = permutation(len(dataset), seed, generator.version)
    query, train, database = generator.divide(dataset, order, protocol)
    return split_of(dataset, protocol, generator.version, seed if generator.draws else None, query, train, database)


def save_split(path: Path, split: Split, dataset: RetrievalDataset) -> None:
    """Write a division as JSON with the ids of each part, so that it can be read without this project.

    Raises:
        ArtifactError: If the file cannot be written.
    """
    head = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "dataset": dataset.name,
        "name": split.name,
        "version": split.version,
        "seed": split.seed,
        "sha256": split.sha256,
        "flags": split.flags,
        "counts": {role: len(getattr(split, role)) for role in _ROLES},
        **({"changes": split.changes} if split.changes else {}),
    }
    # The ids are written a block at a time, in the form of write_json: millions of them would be copied several times.
    with atomic_write(path) as file:
        file.write(json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}").encode())
        for role in _ROLES:
            file.write(f',\n  "{role}": ['.encode())
            rows = getattr(split, role)
            for start in range(0, len(rows), _BLOCK):
                names = list(ids_at(dataset.ids, rows[start : start + _BLOCK]))
                text = json.dumps(names, ensure_ascii=False, separators=(",\n    ", ""))
                file.write(f"{',' if start else ''}\n    {text[1:-1]}".encode())
            file.write(b"\n  ]")
        file.write(b"\n}\n")


def training_size(path: Path) -> int:
    """Return the number of training images in a division that ``save_split`` wrote, without reading the ids.

    Raises:
        ArtifactError: If the file is missing or damaged.
    """
    with open_plain(path) as file:
        head = file.read(_HEAD)
    found = re.search(rb'"counts": \{[^{}]*"train": (\d{1,18})\b', head)
    if found is None:
        raise ArtifactError(f"{path} does not give the number of training images: it was damaged or edited by hand")
    return int(found[1])


def load_split(path: Path, dataset: RetrievalDataset) -> Split:
    """Read a division that ``save_split`` wrote and find its rows in ``dataset``. The flags are computed again.

    Raises:
        DataError: If the file is missing, damaged or for another data set, names unknown ids, or trains on queries.
    """
    content = _read_content(path, _limit(dataset))
    if content["dataset"] != dataset.name:
        raise DataError(
            f"{path} divides the data set {short(content['dataset'])}, not {dataset.name}; choose the split file or "
            "the data set that matches the other"
        )
    split = split_of_ids(path, dataset, content["name"], content["version"], content["seed"], content)
    _check_digest(path, content)
    return replace(split, changes=_changes_in(path, content, dataset, split.train))


def split_of_ids(
    path: Path, dataset: RetrievalDataset, name: str, version: int, seed: int | None, ids: Mapping[str, Sequence[str]]
) -> Split:
    """Make a split of ids that a file or folder names.

    Args:
        path: The file or folder, for messages.
        dataset: The data set.
        name: Name of the division.
        version: Version of what drew it.
        seed: Seed that it was drawn with; None if nothing was drawn.
        ids: Ids of the query, train and database part.

    Raises:
        DataError: If the data set lacks one of the ids, or the parts are refused by ``split_of``.
    """
    row_of = _row_finder(dataset.ids)
    found = {name: row_of(name) for role in _ROLES for name in ids[role]}
    unknown = [name for name, row in found.items() if row is None]
    if unknown:
        raise DataError(
            f"{path} names {len(unknown)} ids that the data set {dataset.name} does not have: {_some(unknown)}; "
            "it was made from other data, or images are missing"
        )
    rows = [np.array([found[name] for name in ids[role]], dtype=np.int64) for role in _ROLES]
    return split_of(dataset, name, version, seed, *rows)


def read_split(path: Path) -> dict[str, Any]:
    """Read a division that ``save_split`` wrote, without the data set that it divides.

    Returns:
        The content of the file; ``query``, ``train`` and ``database`` are lists of ids.

    Raises:
        DataError: If the file is missing or damaged.
    """
    content = _read_content(path, _LIMIT)
    _check_digest(path, content)
    return content


def _read_content(path: Path, limit: int) -> dict[str, Any]:
    try:
        content = read_json(path, limit)
    except ArtifactError as error:
        raise DataError(f"dataset.split_file: {error}") from error
    _check_content(path, content)
    return content


def _check_digest(path: Path, content: Mapping[str, Any]) -> None:
    ids = {role: content[role] for role in _ROLES}
    if content["sha256"] not in (_digest(ids), _digest(ids, as_written=True)):
        refuse(
            DataError(
                f"{path} was damaged or edited: its ids have the SHA-256 {_digest(ids)}, not {short(content['sha256'])}"
            )
        )


def _changes_in(path: Path, content: Mapping[str, Any], dataset: RetrievalDataset, train: _Rows) -> dict[str, Any]:
    """Return the changes that a split file records, empty for most; its training part must fit them."""
    changes = content.get("changes", {})
    if not is_record(changes):
        raise DataError(f"{path} has no valid 'changes'; it was damaged or edited by hand")
    names = unseen_classes(changes)
    if unknown := [name for name in names if name not in dataset.class_names]:
        raise DataError(f"{path} has unseen classes that the data set {dataset.name} does not have: {_some(unknown)}")
    columns = [dataset.class_names.index(name) for name in names]
    if dataset.labels[train][:, columns].any():
        raise DataError(f"{path} trains on images of its unseen classes: it was edited, or the labels changed")
    return changes


def _limit(dataset: RetrievalDataset) -> int:
    """Return the largest number of bytes of a file that divides a data set: each id is in each of the parts once.

    A much larger file is for other data, or has no ids at all, and would take many times its size of memory.
    """
    names = 0 if isinstance(dataset.ids, RowNumbers) else sum(map(len, dataset.ids))
    characters = names + 32 * len(dataset)  # with quotes, a comma and an indent; a number has at most 18 digits
    return min(_LIMIT, _LEAST_LIMIT + len(_ROLES) * 6 * characters)  # one character takes six bytes at most


def hold_out_validation(
    split: Split, dataset: RetrievalDataset, n: int, seed: int
) -> tuple[Int64[np.ndarray, " t"], Int64[np.ndarray, " v"]]:
    """Take ``n`` images out of the training set as validation queries, as evenly over the classes as possible.

    A model may be chosen by how well these queries find the remaining training images; the test queries stay
    untouched. Every class keeps at least one training image. Images without labels are not taken.

    Args:
        split: Division whose training set is used.
        dataset: Data set that ``split`` divides.
        n: Number of validation queries, at least 0.
        seed: Random seed of the choice, at least 0.

    Returns:
        The remaining training rows and the validation queries, both ascending.

    Raises:
        ConfigError: If ``n`` or ``seed`` is negative, or there are no labels to validate with.
        DataError: If the training set cannot give ``n`` images.
    """
    if n < 0:
        raise ConfigError(f"the number of validation queries must be 0 or more, got {n}")
    if seed < 0:
        raise ConfigError(f"the seed must be 0 or more, got {seed}")
    if n and not dataset.class_names:
        raise ConfigError(
            f"validation.queries={n} needs labels, and data set {dataset.name} has none: omit it, or provide labels"
        )
    rows = split.train[permutation(len(split.train), seed, split.version, _VALIDATION)]
    chosen = evenly(dataset.labels[rows], n, left_of_each=1)
    if (count := int(chosen.sum())) < n:
        raise DataError(
            f"{n} validation queries were asked for, but the training set of {len(rows)} images can give only {count} "
            "and keep one of every class; ask for fewer"
        )
    return np.sort(rows[~chosen]), np.sort(rows[chosen])


def fitting_sample(rows: Int64[np.ndarray, " t"], most: int, seed: int, version: int) -> Int64[np.ndarray, " s"]:
    """Return the rows that a method is fitted on: all training rows, or ``most`` of them drawn at random, ascending.

    Args:
        rows: Training rows, ascending.
        most: Largest number of rows to fit on.
        seed: Random seed of the choice, at least 0.
        version: Version of the protocol's generator.
    """
    return rows if len(rows) <= most else np.sort(rows[permutation(len(rows), seed, version, _SAMPLE)[:most]])


# ``divide`` gets the data set, its rows in random order, and the protocol's name; it returns query, train, database.
_Divide = Callable[[RetrievalDataset, np.ndarray, str], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _Protocol:
    version: int
    divide: _Divide
    draws: bool = True


def _s1(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:
    takes = f"protocol {name} takes 100 queries and 500 training images per class"
    _check_class_sizes(dataset, 600, takes)
    free = np.ones(len(dataset), dtype=bool)
    query = _draw(dataset, order, [100] * len(dataset.class_names), free, takes)
    train = _draw(dataset, order, [500] * len(dataset.class_names), ~query, takes)
    return np.flatnonzero(query), np.flatnonzero(train), np.flatnonzero(~query)


def _s1_disjoint(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:
    query, train, rest = _s1(dataset, order, name)
    return query, train, np.setdiff1d(rest, train, assume_unique=True)


def _s1_validation(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:
    takes = f"protocol {name} takes 100 queries and 500 training images per class, and leaves 100 test queries unused"
    _check_class_sizes(dataset, 700, takes)
    _, train, unseen = _s1_disjoint(dataset, order, name)
    free = np.zeros(len(dataset), dtype=bool)
    free[unseen] = True
    query = _draw(dataset, order, [100] * len(dataset.class_names), free, takes)
    free[train] = True
    return np.flatnonzero(query), train, np.flatnonzero(free & ~query)


def _s2(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:
    takes = f"protocol {name} takes 1000 queries per class and trains on the rest"
    _check_class_sizes(dataset, 1001, takes)
    free = np.ones(len(dataset), dtype=bool)
    query = _draw(dataset, order, [1000] * len(dataset.class_names), free, takes)
    return np.flatnonzero(query), np.flatnonzero(~query), np.flatnonzero(~query)


def _holdout(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:
    if not dataset.class_names:
        some = -(-len(order) // 10)
        return np.sort(order[:some]), np.sort(order[some:]), np.sort(order[some:])
    sizes = dataset.labels.sum(axis=0, dtype=np.int64)
    quotas = [-(-size // 10) if size > 1 else 0 for size in sizes.tolist()]  # no class loses its only image
    free = np.ones(len(dataset), dtype=bool)
    query = _draw(dataset, order, quotas, free, f"protocol {name} takes a tenth of each class as queries")
    if not query.any():
        raise DataError(
            f"data set {dataset.name} has no class with two images, so protocol {name} finds no query; add images"
        )
    return np.flatnonzero(query), np.flatnonzero(~query), np.flatnonzero(~query)


def _official(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:  # noqa: ARG001
    parts = dataset.official
    hint = f"use dataset.protocol={dataset.usual}" if dataset.usual else _HINT
    if parts is None:
        raise DataError(
            f"data set {dataset.name} has no division of its own, so protocol {name} cannot be used; {hint}"
        )
    for role in ("query", "train"):
        if role not in parts:
            raise DataError(
                f"data set {dataset.name} names no {role} images, so protocol {name} cannot be used; {hint}"
            )
    return parts["query"], parts["train"], parts.get("database", parts["train"])


def _new_of_each_class(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:
    takes = f"protocol {name} takes 100 new queries and 500 new training images per class"
    _check_class_sizes(dataset, 600, takes)
    free = np.ones(len(dataset), dtype=bool)
    query = _draw(dataset, order, [100] * len(dataset.class_names), free, takes, each_new=True)
    train = _draw(dataset, order, [500] * len(dataset.class_names), ~query, takes, each_new=True)
    return np.flatnonzero(query), np.flatnonzero(train), np.flatnonzero(~query)


def _at_random(queries: int, training: int, apart: bool) -> _Divide:
    """Return a protocol that takes images at random, whatever their labels are.

    Args:
        queries: Number of queries.
        training: Number of training images.
        apart: Whether the training images are left out of the database.
    """

    def divide(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:
        if len(order) < queries + training + apart:
            raise DataError(
                f"data set {dataset.name} has {len(order):,} images but protocol {name} takes {queries:,} queries and "
                f"{training:,} training images{' beside the database' if apart else ''}; {_HINT}"
            )
        query, train, rest = np.split(order, [queries, queries + training])
        return np.sort(query), np.sort(train), np.sort(rest if apart else order[queries:])

    return divide


def _of_official_parts(per_class: int) -> _Divide:
    """Return a protocol whose queries and database are official parts, with training images drawn from the latter."""

    def divide(dataset: RetrievalDataset, order: _Rows, name: str) -> tuple[_Rows, _Rows, _Rows]:
        parts = dataset.official or {}
        searched = parts.get("database", parts.get("train"))
        if "query" not in parts or searched is None:
            raise DataError(
                f"protocol {name} takes the official validation images as queries and trains on images of the "
                f"official training part, but data set {dataset.name} does not have both; {_HINT}"
            )
        takes = f"protocol {name} takes {per_class} training images per class"
        _check_class_sizes(dataset, per_class, takes, searched)
        free = np.zeros(len(dataset), dtype=bool)
        free[searched] = True
        free[parts["query"]] = False
        train = _draw(dataset, order, [per_class] * len(dataset.class_names), free, takes)
        return parts["query"], np.flatnonzero(train), searched

    return divide


_PROTOCOLS = {
    "s1": _Protocol(1, _s1),
    "s1_disjoint": _Protocol(1, _s1_disjoint),
    "s1_validation": _Protocol(1, _s1_validation),
    "s2": _Protocol(1, _s2),
    "official": _Protocol(1, _official, draws=False),
    "holdout": _Protocol(1, _holdout),
    "nuswide_21": _Protocol(1, _new_of_each_class),
    "nuswide_81": _Protocol(1, _at_random(5_000, 10_000, apart=False)),
    "coco": _Protocol(1, _at_random(5_000, 10_000, apart=False)),
    "mirflickr": _Protocol(1, _at_random(1_000, 4_000, apart=True)),
    "voc2012": _Protocol(1, _at_random(1_000, 4_000, apart=True)),
    "imagenet100": _Protocol(1, _of_official_parts(130)),
    "imagenet100_10k": _Protocol(1, _of_official_parts(100)),
}


def _check_class_sizes(dataset: RetrievalDataset, needed: int, takes: str, among: _Rows | None = None) -> None:
    """Check that each class has the images that a protocol needs, in the whole data set or among some rows."""
    if not dataset.class_names:
        raise DataError(
            f"data set {dataset.name} has no labels but {takes}; use dataset.protocol=holdout, which then takes a "
            "tenth of all images as queries"
        )
    labels, images = (dataset.labels, "images") if among is None else (dataset.labels[among], "images to train on")
    for name, size in zip(dataset.class_names, labels.sum(axis=0, dtype=np.int64).tolist(), strict=True):
        if size < needed:
            raise DataError(f"class {name!r} has {size} {images} but {takes}; {_HINT}")


def _draw(
    dataset: RetrievalDataset,
    order: _Rows,
    quotas: list[int],
    free: Bool[np.ndarray, " n"],
    takes: str,
    each_new: bool = False,
) -> Bool[np.ndarray, " n"]:
    """Choose among the free rows so that each class reaches its quota, class by class in ``order``.

    A row with several labels counts for each of them, so a class may get more than its quota, but never less. With
    ``each_new`` a row counts only for the class that it was chosen for, so the quotas add up to the number of rows.
    """
    labels = dataset.labels.astype(bool)
    chosen = np.zeros(len(order), dtype=bool)
    for column, quota in enumerate(quotas):
        needed = quota if each_new else quota - int(labels[chosen, column].sum())
        if needed <= 0:
            continue
        candidates = order[(labels[:, column] & free & ~chosen)[order]]
        if len(candidates) < needed:
            raise DataError(
                f"class {dataset.class_names[column]!r} has only {len(candidates)} images left of {needed} still "
                f"needed, because others were taken for their other labels, but {takes}; {_HINT}"
            )
        chosen[candidates[:needed]] = True
    return chosen


def split_of(
    dataset: RetrievalDataset, name: str, version: int, seed: int | None, query: _Rows, train: _Rows, database: _Rows
) -> Split:
    """Make a split of given rows: check its parts, compute its flags, and identify it by a digest.

    Args:
        dataset: The data set.
        name: Name of the division.
        version: Version of what draws it.
        seed: Seed that it was drawn with; None if nothing was drawn.
        query: Rows of the queries.
        train: Rows of the training set.
        database: Rows that are searched.

    Raises:
        DataError: If a part is empty, lists a row twice, or if a query is in the training set.
    """
    parts = {}
    for role, rows in zip(_ROLES, (query, train, database), strict=True):
        parts[role] = rows if (rows[1:] > rows[:-1]).all() else np.unique(rows)
        if len(rows) == 0:
            raise DataError(f"protocol {name} leaves no {role} images in data set {dataset.name}; add images")
        if len(parts[role]) < len(rows):
            refuse(
                DataError(f"the {role} images of {name} list {len(rows) - len(parts[role])} rows twice; list each once")
            )
    both = parts["query"][np.isin(parts["query"], parts["train"])]
    if len(both) and not is_lenient():  # an audit counts them itself
        some = _some(ids_at(dataset.ids, both[:6]))
        raise DataError(
            f"{len(both)} images of data set {dataset.name} are both query and training image: {some}; a method must "
            "not see the labels of its queries, so remove them from one of the two"
        )
    is_used = np.zeros(len(dataset), np.bool_)
    for rows in parts.values():
        is_used[rows] = True
    used = np.flatnonzero(is_used)
    flags = {
        "database_contains_train": bool(np.isin(parts["train"], parts["database"]).all()),
        "query_in_database": int(np.isin(parts["query"], parts["database"]).sum()),
        "unlabelled_rows": {role: int((~dataset.labels[rows].any(axis=1)).sum()) for role, rows in parts.items()},
        "duplicate_images": _duplicates(dataset.images, used) if isinstance(dataset.images, ImageArray) else None,
        "label_kind": _label_kind(dataset.labels[used]),
    }
    digest = _digest({role: ids_at(dataset.ids, rows) for role, rows in parts.items()})
    return Split(name, version, seed, parts["query"], parts["train"], parts["database"], digest, flags)


def _label_kind(labels: UInt8[np.ndarray, "n classes"]) -> str:
    if not labels.shape[1]:
        return "none"
    return "multi" if labels.sum(axis=1).max(initial=0) > 1 else "single"


def _digest(ids: Mapping[str, Sequence[str]], as_written: bool = False) -> str:
    """Return the SHA-256 of a text that lists the ids of the three parts.

    The text is the line ``query 1000``, then the ids of the queries in byte order, one per line; then the same for
    ``train``, and then for ``database``. Ids are in composed Unicode (NFC), unless they are taken as written, which is
    how earlier versions made the digest; macOS and Linux may store the same file name in different forms. The order of
    rows in the data set does not matter: the division is the same if the same images are in the same parts.
    """
    digest = hashlib.sha256()
    for role in _ROLES:
        digest.update(f"{role} {len(ids[role])}\n".encode())
        lines = _in_byte_order(ids[role], as_written)
        for start in range(0, len(lines), _BLOCK):
            digest.update(b"".join(line + b"\n" for line in lines[start : start + _BLOCK]))
    return digest.hexdigest()


def _in_byte_order(ids: Sequence[str], as_written: bool) -> list[bytes] | np.ndarray:
    if isinstance(ids, RowNumbers) and len(ids):
        lines = ids.rows.astype(f"S{len(str(ids.rows.max()))}")  # a tenth of the memory that Python's objects take
        lines.sort()
        return lines
    return sorted((name if as_written else composed(name)).encode("utf-8") for name in ids)


def _row_finder(ids: Sequence[str]) -> Callable[[str], int | None]:
    """Return a function that gives the row of an id of a data set, or None if there is no such id.

    The id may be a path in another spelling.
    """
    if not isinstance(ids, RowNumbers):
        known = {composed(identifier): row for row, identifier in enumerate(ids)}

        def row_of_path(name: str) -> int | None:
            name = composed(name)
            return known.get(name, known.get(posixpath.normpath(name)))

        return row_of_path

    def row_of(name: str) -> int | None:
        # The row numbers of a data set are all numbers from 0, so a number is its own row.
        row = int(name) if name.isascii() and name.isdigit() and len(name) <= 18 else len(ids)
        return row if row < len(ids) and str(row) == name else None

    return row_of


def _duplicates(images: ImageArray, rows: _Rows) -> int:
    pixels = np.ascontiguousarray(images.images)
    distinct = {hashlib.blake2b(pixels[row].data, digest_size=16).digest() for row in rows}
    return len(rows) - len(distinct)


def _check_content(path: Path, content: object) -> None:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{path} is not a split file; expected the split.json of a run folder")
    if content.get("format_version") != _FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {short(repr(content.get('format_version')))}, but this program reads "
            f"{_FORMAT_VERSION}; update the program"
        )
    kinds = {
        "dataset": str,
        "name": str,
        "version": int,
        "seed": int | None,
        "sha256": str,
        **dict.fromkeys(_ROLES, list),
    }
    for key, kind in kinds.items():
        if key not in content or not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise DataError(f"{path} has no valid {key!r}; it was damaged or edited by hand")
    if not all(isinstance(name, str) for role in _ROLES for name in content[role]):
        raise DataError(f"{path} has ids that are not text; it was damaged or edited by hand")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(short, names[:5])) + (", ..." if len(names) > 5 else "")

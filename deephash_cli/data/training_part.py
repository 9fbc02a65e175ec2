"""Reduce the training part of a division: leave classes out, make a long tail, or keep few labelled images.

Queries and database stay those of the protocol, so that what a method finds is measured on the same items.

    unseen     no training image has one of these classes, so a method meets them only when it is searched with them
    imbalance  class c of C keeps n * factor^(-c / (C - 1)) images, in the order of the class list (Cao et al., Learning
               Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019)
    labelled   so many images are kept, as evenly over the classes as possible; a method sees no other
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from deephash_cli.data.changes import Changes, in_words
from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.drawing import evenly, permutation
from deephash_cli.data.protocol import Split, load_split, make_split, split_of
from deephash_cli.errors import ConfigError, DataError, hint, short

_UNSEEN, _IMBALANCE, _LABELLED = 3, 4, 5  # make the random numbers of these choices differ from those of the protocol

_Rows = Int64[np.ndarray, "_"]


def divide(dataset: RetrievalDataset, protocol: str, seed: int, split_file: str | None, changes: Changes) -> Split:
    """Divide a data set by a file or a protocol, and reduce the training part.

    Args:
        dataset: Data set to divide.
        protocol: Name of the protocol; not used if there is a file.
        seed: Seed of what is drawn at random, at least 0.
        split_file: File of a division that was saved; None for the protocol.
        changes: Wanted changes of the training part.

    Raises:
        ConfigError: If the file has changes of its own and others are wanted, or the changes do not suit the data set.
        DataError: If the data set does not suit the file, the protocol or the changes.
    """
    if split_file is None:
        return reduce_training(make_split(protocol, dataset, seed), dataset, changes, seed)
    split = load_split(Path(split_file).expanduser(), dataset)
    if split.changes and changes.typed:
        raise ConfigError(
            f"{split_file} has a changed training part ({'; '.join(in_words(split.changes))}): leave out "
            f"{' and '.join(changes.typed)}, or the file"
        )
    return reduce_training(split, dataset, changes, seed)


def reduce_training(split: Split, dataset: RetrievalDataset, changes: Changes, seed: int) -> Split:
    """Return a division whose training part is reduced, with a record of how.

    Args:
        split: Division of the data set.
        dataset: Data set that ``split`` divides.
        changes: Wanted changes, applied in the order unseen, imbalance, labelled.
        seed: Seed of what is drawn at random, at least 0.

    Raises:
        ConfigError: If the changes do not suit the data set: it has no labels, not these classes, or several labels for
            an image where one is needed.
        DataError: If nothing is left to train on or to measure, or there are fewer images than are wanted.
    """
    if not changes.typed:
        return split
    if not dataset.class_names:
        raise ConfigError(
            f"{changes.typed[0]} needs labels, and data set {dataset.name} has none: leave it out, or provide labels"
        )
    train, record = split.train, dict[str, Any]()
    if changes.unseen is not None:
        columns = _unseen(changes.unseen, dataset, seed)
        record["unseen"] = {"classes": [dataset.class_names[column] for column in columns]}
        train = _without(columns, split, dataset)
    if changes.imbalance is not None:
        record["imbalance"] = changes.imbalance
        train = _long_tail(train, dataset, changes.imbalance, seed)
    if changes.labelled is not None:
        record["labelled"] = changes.labelled
        train = _few(train, dataset, changes.labelled, seed)
    is_drawn = isinstance(changes.unseen, float) or changes.imbalance is not None or changes.labelled is not None
    drawn_with = seed if split.seed is None and is_drawn else split.seed
    reduced = split_of(dataset, split.name, split.version, drawn_with, split.query, train, split.database)
    return replace(reduced, changes=record)


def _unseen(wanted: float | tuple[str, ...], dataset: RetrievalDataset, seed: int) -> list[int]:
    """Return the numbers of the unseen classes, ascending: the named ones, or a share of all, at least one."""
    names = dataset.class_names
    if not isinstance(wanted, tuple):
        if len(names) < 2:
            raise ConfigError(f"dataset.unseen={wanted} needs at least two classes, and {dataset.name} has one")
        count = min(max(1, int(wanted * len(names) + 0.5)), len(names) - 1)
        return sorted(permutation(len(names), seed, _UNSEEN)[:count].tolist())
    for name in wanted:
        if name not in names:
            near = hint(name, names) or f"; its classes are {', '.join(map(short, names[:10]))}"
            raise ConfigError(f"dataset.unseen has {short(name)}, which data set {dataset.name} does not have{near}")
    columns = sorted({names.index(name) for name in wanted})
    if len(columns) < len(wanted):
        raise ConfigError(f"dataset.unseen must have each class once, got {short(', '.join(wanted))}")
    if len(columns) == len(names):
        raise ConfigError(f"dataset.unseen has all {len(names)} classes of {dataset.name}: leave one to train on")
    return columns


def _without(columns: list[int], split: Split, dataset: RetrievalDataset) -> _Rows:
    """Return the training rows that have none of some classes, which must be among queries and database."""
    names = short(", ".join(dataset.class_names[column] for column in columns))
    for what, rows in (("query", split.query), ("item of the database", split.database)):
        if not dataset.labels[rows][:, columns].any():
            raise DataError(f"no {what} has one of the unseen classes {names}: choose other classes for dataset.unseen")
    train = split.train[~dataset.labels[split.train][:, columns].any(axis=1)]
    if not len(train):
        raise DataError(f"every training image has one of the unseen classes {names}: lower or shorten dataset.unseen")
    return train


def _long_tail(train: _Rows, dataset: RetrievalDataset, factor: int, seed: int) -> _Rows:
    """Return the rows of an exponential profile over the classes, as large as the images of each class allow."""
    labels = dataset.labels[train]
    if labels.sum(axis=1).max() > 1:
        raise ConfigError(
            f"dataset.imbalance={factor} needs images of one class each, but training images of {dataset.name} have "
            "several: leave it out"
        )
    sizes = labels.sum(axis=0, dtype=np.int64)
    classes = np.flatnonzero(sizes)
    if len(classes) < 2:
        raise ConfigError(f"dataset.imbalance={factor} needs training images of at least two classes")
    shares = float(factor) ** (-np.arange(len(classes)) / (len(classes) - 1))
    wanted = np.floor((sizes[classes] / shares).min() * shares + 1e-9).astype(np.int64)
    if wanted[-1] < 1:
        raise DataError(
            f"dataset.imbalance={factor} leaves the class {short(dataset.class_names[classes[-1]])} without a training "
            f"image, because the largest class has {wanted[0]}: choose a factor of at most {wanted[0]}"
        )
    order = permutation(len(train), seed, _IMBALANCE)
    kept = [order[labels[order, column] > 0][:count] for column, count in zip(classes, wanted, strict=True)]
    return np.sort(train[np.concatenate(kept)])


def _few(train: _Rows, dataset: RetrievalDataset, count: int, seed: int) -> _Rows:
    """Return so many rows, as evenly over the classes as possible."""
    rows = train[permutation(len(train), seed, _LABELLED)]
    chosen = evenly(dataset.labels[rows], count)
    if (found := int(chosen.sum())) < count:
        raise DataError(
            f"dataset.labelled={count} is more than the {found} training images with a label: choose at most {found}"
        )
    return np.sort(rows[chosen])

"""Batches of images or features: shuffled by (seed, epoch) for training, in order for encoding."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deephash_cli import processes
from deephash_cli.errors import ConfigError, DataError


class Batch(NamedTuple):
    """What a method gets to see."""

    inputs: Tensor  # (n, c, h, w) uint8 images, or (n, features) float backbone features
    labels: Float[Tensor, "n classes"]
    indices: Int[Tensor, "n"]  # positions in the set that the loader goes over


@runtime_checkable
class Inputs(Protocol):
    """Rows of a data set by number: images, or features computed from them."""

    def batch(self, rows: Int[np.ndarray, "n"]) -> Tensor:
        """The rows' images (n, c, h, w) or features (n, d)."""
        ...


class Rows(Dataset[Batch]):
    """Some rows of a data set, a batch at a time: ``rows[positions]`` is a ``Batch``."""

    def __init__(self, inputs: Inputs, labels: Float[Tensor, "m classes"], rows: Int[np.ndarray, "n"]):
        self.inputs = inputs
        self.labels = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        rows = self.rows[np.asarray(positions)]
        return Batch(self.inputs.batch(rows), self.labels[torch.from_numpy(rows)], torch.as_tensor(positions))


class EpochSampler(Sampler[list[int]]):
    """Batches of positions in an order that depends on ``(seed, epoch)`` alone, so that a resumed run repeats it.

    A last batch of one image is joined to the one before it: batch normalization and pairs need two. Of several
    processes each gets a part of every batch, one after the other as they are in it; a last batch of fewer than two
    images for each is joined as well. No image comes twice.

    Args:
        n: Number of images.
        batch_size: Of all parts together.
        seed: Of the order.
        part: Number of the process, from 0.
        parts: How many there are.

    Raises:
        DataError: If there are too few images to make a pair.
        ConfigError: If a batch has no pair for each process.
    """

    def __init__(self, n: int, batch_size: int, seed: int, part: int = 0, parts: int = 1):
        if n < 2:
            raise DataError(f"the training set has {n} image(s) but pairs need at least two")
        if min(batch_size, n) < 2 * parts:
            raise ConfigError(
                f"each of {parts} devices needs 2 images of a batch, got batches of {min(batch_size, n)}: raise "
                "loader.batch_size or lower trainer.devices"
            )
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self.parts = parts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches, rest = divmod(self.n, self.batch_size)
        return max(1, batches + (rest >= 2 * self.parts))

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n).tolist()
        for i in range(len(self)):
            last = i == len(self) - 1
            batch = order[i * self.batch_size : None if last else (i + 1) * self.batch_size]
            yield processes.share(batch, self.part, self.parts)


def train_loader(rows: Rows, batch_size: int, seed: int, num_workers: int, pin_memory: bool) -> "DataLoader[Batch]":
    """Shuffled batches for training; the part of this process, if there are several."""
    sampler = EpochSampler(len(rows), batch_size, seed, processes.rank(), processes.count())
    return _loader(rows, sampler, num_workers, pin_memory)


def encode_loader(rows: Rows, batch_size: int, num_workers: int, pin_memory: bool) -> "DataLoader[Batch]":
    """All rows in order."""
    batches = [list(range(i, min(i + batch_size, len(rows)))) for i in range(0, len(rows), batch_size)]
    return _loader(rows, batches, num_workers, pin_memory)


def _loader(rows: Rows, batches, num_workers: int, pin_memory: bool) -> "DataLoader[Batch]":
    # batch_size=None: a "sample" is a whole batch already, which is one indexing operation for images in memory
    return DataLoader(
        rows,
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )

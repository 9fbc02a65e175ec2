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
    """One batch of inputs and labels, as a method receives it."""

    inputs: Tensor  # (n, c, h, w) uint8 images, or (n, features) float backbone features
    labels: Float[Tensor, "n classes"]
    indices: Int[Tensor, "n"]  # positions in the set that the loader iterates over


@runtime_checkable
class Inputs(Protocol):
    """Rows of a data set by number: images, or features computed from them."""

    def batch(self, rows: Int[np.ndarray, "n"]) -> np.ndarray:
        """Return the images (n, c, h, w) or features (n, d) at ``rows``."""
        ...


class Rows(Dataset[Batch]):
    """Selected rows of a data set, read in batches: ``rows[positions]`` is a ``Batch``."""

    def __init__(self, inputs: Inputs, labels: Float[Tensor, "m classes"], rows: Int[np.ndarray, "n"]):
        self.inputs = inputs
        self.labels = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        indices = np.asarray(positions)
        rows = self.rows[indices]
        inputs = torch.from_numpy(self.inputs.batch(rows))
        return Batch(inputs, self.labels[torch.from_numpy(rows)], torch.from_numpy(indices))


class EpochSampler(Sampler[list[int]]):
    """Batches of positions in an order that depends on ``(seed, epoch)`` alone, so that a resumed run repeats it.

    A last batch of one image is joined to the one before it, because batch normalization and pairs need two images.
    With several processes, every batch is cut into consecutive parts, one for each process, and a last batch of fewer
    than two images per process is joined to the one before it as well. No image occurs twice.

    Args:
        n: Number of images.
        batch_size: Number of images in a batch, summed over all processes.
        seed: Random seed of the order.
        part: Index of this process, from 0.
        parts: Number of processes.

    Raises:
        DataError: If there are fewer than two images, too few for a pair.
        ConfigError: If a batch is too small to give each process a pair.
    """

    def __init__(self, n: int, batch_size: int, seed: int, part: int = 0, parts: int = 1):
        if n < 2:
            raise DataError(f"the training set has {n} image(s) but pairs need at least two")
        if min(batch_size, n) < 2 * parts:
            raise ConfigError(
                f"each of {parts} devices needs 2 images per batch, got batches of {min(batch_size, n)}: raise "
                "loader.batch_size or lower trainer.devices"
            )
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self.parts = parts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches, rest = divmod(self.n, self.batch_size)
        return max(1, batches + (rest >= 2 * self.parts))

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        for i in range(len(self)):
            last = i == len(self) - 1
            batch = order[i * self.batch_size : None if last else (i + 1) * self.batch_size]
            yield processes.share(batch.tolist(), self.part, self.parts)


def train_loader(rows: Rows, batch_size: int, seed: int, num_workers: int, pin_memory: bool) -> "DataLoader[Batch]":
    """Return a loader of shuffled batches for training; with several processes, of this process's parts."""
    sampler = EpochSampler(len(rows), batch_size, seed, processes.rank(), processes.count())
    return _loader(rows, sampler, num_workers, pin_memory)


def encode_loader(rows: Rows, batch_size: int, num_workers: int, pin_memory: bool) -> "DataLoader[Batch]":
    """Return a loader of all rows, in order."""
    batches = [range(i, min(i + batch_size, len(rows))) for i in range(0, len(rows), batch_size)]
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

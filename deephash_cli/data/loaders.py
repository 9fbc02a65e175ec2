"""Batches of images or features: shuffled by (seed, epoch) for training, in order for encoding."""

import contextlib
import functools
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from deephash_cli import console, processes
from deephash_cli.cores import usable_cores
from deephash_cli.data.dataset import ImageFiles
from deephash_cli.errors import ConfigError, DataError, DeephashError

PATIENCE = 600  # seconds; how long to wait for a batch, so that no wait is without an end
_SHARED = "/dev/shm"  # where Linux keeps the memory that processes share
_END = object()
_FLOAT = 4  # bytes
_MOST_WORKERS = 16  # more of them rarely decode faster, and each takes memory
_PREFETCHED = 2  # batches that each worker prepares in advance


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

    def __init__(self, inputs: Inputs, labels: Shaped[Tensor, "m classes"], rows: Int[np.ndarray, "n"]):
        self.inputs = inputs
        self.labels = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch_bytes(self, n: int) -> int:
        """Return the size in bytes of a batch of ``n`` decoded image files; 0 if nothing is decoded."""
        if not isinstance(self.inputs, ImageFiles) or self.inputs.form is None:
            return 0
        return n * (3 * self.inputs.form.size**2 + self.labels.shape[1] * _FLOAT)

    def __getitem__(self, positions: Sequence[int] | Int[np.ndarray, "n"]) -> Batch:
        indices = np.asarray(positions)
        rows = self.rows[indices]
        inputs = torch.from_numpy(self.inputs.batch(rows))
        return Batch(inputs, self.labels[torch.from_numpy(rows)].float(), torch.from_numpy(indices))


@dataclass(frozen=True)
class Held:
    """Selected rows of a data set in the memory of the device that trains, so that no batch is copied there.

    Attributes:
        inputs: Images (n, c, h, w) uint8 or features (n, d) float32.
        labels: Labels (n, classes) float32.
    """

    inputs: Shaped[Tensor, "n ..."]
    labels: Float[Tensor, "n classes"]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Iterable[Sequence[int] | Int[np.ndarray, "n"]]) -> Iterator[Batch]:
        """Yield the batches with these positions, which are copied to the device once for all of them."""
        parts = [np.asarray(positions) for positions in order]
        if parts:
            positions = torch.from_numpy(np.concatenate(parts)).to(self.inputs.device)
            for part in positions.split([len(part) for part in parts]):
                yield Batch(self.inputs[part], self.labels[part], part)


class EpochSampler(Sampler[np.ndarray]):
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
        sample: Number of images of an epoch, drawn at random, and number of epochs for which a draw is kept; None for
            all images in each epoch.

    Attributes:
        n: Number of images of an epoch.

    Raises:
        DataError: If there are fewer than two images, too few for a pair.
        ConfigError: If a batch is too small to give each process a pair.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        part: int = 0,
        parts: int = 1,
        sample: tuple[int, int] | None = None,
    ):
        self._all, self._kept_for = n, sample[1] if sample else 1
        n = min(n, sample[0]) if sample else n
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
        self._done = (0, 0)  # an epoch, and the number of its batches that need not be made

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; Lightning calls this."""
        self.epoch = epoch

    def continue_at(self, epoch: int, batches: int) -> None:
        """Leave out the first batches of an epoch, because an interrupted run has trained on them already.

        Args:
            epoch: The epoch, counted from 0. Others are not changed.
            batches: Number of batches to leave out. It does not change the length of the epoch.
        """
        self._done = (epoch, batches)

    def __len__(self) -> int:
        batches, rest = divmod(self.n, self.batch_size)
        return max(1, batches + (rest >= 2 * self.parts))

    def __iter__(self) -> Iterator[Int[np.ndarray, "b"]]:
        drawn: Any = self.n
        if self.n < self._all:
            draw = np.random.default_rng([self.seed, self.epoch // self._kept_for, self._all])
            drawn = draw.choice(self._all, self.n, replace=False)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(drawn)
        epoch, done = self._done
        for i in range(done if self.epoch == epoch else 0, len(self)):
            last = i == len(self) - 1
            batch = order[i * self.batch_size : None if last else (i + 1) * self.batch_size]
            yield processes.share(batch, self.part, self.parts)


def worker_count(setting: int | str) -> int:
    """Return the number of worker processes that a setting stands for.

    Args:
        setting: The number; or ``auto`` for one worker on each core that this process may use, up to 16. The cores are
            divided among the processes that train on this machine together.
    """
    return min(_MOST_WORKERS, max(1, usable_cores() // processes.count_here())) if setting == "auto" else int(setting)


@contextlib.contextmanager
def lost_workers_explained(setting: str) -> Iterator[None]:
    """Explain the errors of torch about worker processes that are killed or hang.

    A killed worker is noticed by a signal handler, which raises its error wherever this process happens to be.

    Args:
        setting: Name of the setting of the number of workers.

    Raises:
        ConfigError: If a worker was killed or gave no batch.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if message.startswith("DataLoader worker") and ("exited unexpectedly" in message or "killed" in message):
            raise ConfigError(
                f"a worker process that decodes images was killed, often because memory ran out: lower {setting} or "
                "the batch size"
            ) from error
        if message.startswith("DataLoader timed out"):
            raise ConfigError(
                f"the worker processes that decode images gave no batch for {PATIENCE} seconds: check the disk with "
                f"the images, or set {setting}=0"
            ) from error
        raise


class Loader(DataLoader[Any]):
    """Batches of a data set, made by worker processes, with errors that a user can act on.

    An error in a worker is raised here as it is, not wrapped in the text of a traceback. Workers send batches through
    shared memory, which is small in many containers: if it has no room for the batches of all workers, fewer workers
    are started; if it is full nevertheless, this process makes the batch itself. A worker that is killed, or gives no
    batch within ``PATIENCE``, is an error.

    Args:
        dataset: Data set whose elements are whole batches.
        sampler: What to index the data set with, one value for each batch.
        num_workers: Number of worker processes.
        setting: Name of the setting of ``num_workers``, for messages.
        batch_bytes: Size in bytes of a batch.
        pin_memory: Whether batches are copied to memory that a GPU can read directly.
    """

    def __init__(
        self, dataset: Dataset[Any], sampler: Any, num_workers: int, setting: str, batch_bytes: int, pin_memory: bool
    ):
        self.setting = setting
        self.batch_bytes = batch_bytes
        self.whole = dataset
        workers, prefetched = _that_fit(num_workers, batch_bytes)
        if workers < num_workers:
            _warn_of_shared_memory(num_workers, workers, batch_bytes, setting)
        super().__init__(
            _Guarded(dataset),
            sampler=sampler,
            batch_size=None,  # a "sample" is a whole batch: for images in memory that is one indexing operation
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            timeout=PATIENCE if workers else 0,
            prefetch_factor=prefetched if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_outlive_signals,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Return an iterator over the batches.

        Raises:
            ConfigError: If a worker is killed or gives no batch.
            DeephashError: If making a batch raised it.
        """
        return self._checked(super().__iter__())

    def _checked(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            with lost_workers_explained(self.setting):
                batch = next(batches, _END)
            if batch is _END:
                return
            if isinstance(batch, _Failure):
                raise batch.error
            if isinstance(batch, _NoRoom):
                _warn_once(
                    f"shared memory ({_SHARED}) is full, so batches are made without worker processes, which is "
                    f"slower: lower {self.setting}, or give the container more (docker run --shm-size=8g)"
                )
                batch = self.whole[batch.key]
            yield batch

    def again(self) -> "Loader":
        """Return a new loader of the same batches: persistent workers would treat a second pass as the next epoch."""
        return Loader(
            self.whole, self.sampler, self.num_workers, self.setting, self.batch_bytes, pin_memory=self.pin_memory
        )


class DirectLoader:
    """Batches that this process makes itself, one when it is asked for, as a ``Loader`` without workers would.

    On cached features the machinery of torch's loader takes as long as the batch.

    Args:
        rows: Where the batches come from.
        sampler: Positions of each batch.
    """

    batch_sampler = None  # Lightning asks whatever has a sampler for it

    def __init__(self, rows: Rows | Held, sampler: Any):
        self.rows = rows
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Return an iterator over the batches."""
        if isinstance(self.rows, Held):
            return self.rows.batches(self.sampler)
        return (self.rows[positions] for positions in self.sampler)

    def again(self) -> "DirectLoader":
        """Return a loader of the same batches: this one, because nothing outlives a pass."""
        return self


class _Guarded(Dataset[Any]):
    """The elements of a data set; in a worker process, an error or a lack of shared memory becomes an element."""

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        if get_worker_info() is None:
            return self.dataset[key]
        try:
            batch = self.dataset[key]
        except DeephashError as error:
            return _Failure(error)
        try:
            # torch would do this later, in a thread whose errors nobody sees
            for part in batch:
                for tensor in part if isinstance(part, list) else [part]:
                    if isinstance(tensor, Tensor):
                        tensor.share_memory_()
        except (RuntimeError, OSError):
            return _NoRoom(key)
        return batch


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker process."""

    error: DeephashError


@dataclass(frozen=True)
class _NoRoom:
    """The index of a batch for which shared memory had no room."""

    key: Any


def _outlive_signals(_: int) -> None:
    """Let a worker process live on when a signal is sent to a whole group, so that the training can finish a step.

    SIGTERM still ends a worker, because that is how the process that started it does so.
    """
    with contextlib.suppress(OSError):
        os.setsid()  # signals to the group of the main process do not arrive here
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    """Return a batch unchanged; the default function of torch would convert its parts."""
    return batch


def _that_fit(workers: int, batch_bytes: int) -> tuple[int, int]:
    """Return how many workers shared memory has room for, up to ``workers``, and how many batches each may prepare."""
    try:
        space = os.statvfs(_SHARED)
    except OSError:  # this system shares memory in another way
        return workers, _PREFETCHED
    free = space.f_bavail * space.f_frsize / processes.count()
    for number in range(workers, 0, -1):
        for prefetched in range(_PREFETCHED, 0, -1):
            # two more: one that is in use, and one that is being made
            if (number * prefetched + 2) * batch_bytes <= free:
                return number, prefetched
    return 0, _PREFETCHED


def _warn_of_shared_memory(wanted: int, workers: int, batch_bytes: int, setting: str) -> None:
    left = {0: "no worker decodes", 1: "1 worker decodes"}.get(workers, f"{workers} workers decode")
    _warn_once(
        f"shared memory ({_SHARED}) has no room for batches of {batch_bytes / 2**20:.0f} MiB from {setting}={wanted} "
        f"workers, so {left} images, which is slower: lower the batch size, or give the container more "
        "(docker run --shm-size=8g)"
    )


@functools.cache
def _warn_once(message: str) -> None:
    console.warn(message)


def train_loader(
    rows: Rows | Held,
    batch_size: int,
    seed: int,
    num_workers: int,
    pin_memory: bool,
    sample: tuple[int, int] | None = None,
) -> Loader | DirectLoader:
    """Return a loader of shuffled batches for training; with several processes, of this process's parts."""
    sampler = EpochSampler(len(rows), batch_size, seed, processes.rank(), processes.count(), sample)
    return _loader(rows, sampler, num_workers, pin_memory, -(-batch_size // processes.count()))


def encode_loader(rows: Rows | Held, batch_size: int, num_workers: int, pin_memory: bool) -> Loader | DirectLoader:
    """Return a loader of all rows, in order."""
    batches = [range(i, min(i + batch_size, len(rows))) for i in range(0, len(rows), batch_size)]
    return _loader(rows, batches, num_workers, pin_memory, batch_size)


def _loader(rows: Rows | Held, sampler: Any, num_workers: int, pin_memory: bool, largest: int) -> Loader | DirectLoader:
    if isinstance(rows, Held) or not (num_workers or pin_memory):
        return DirectLoader(rows, sampler)
    return Loader(rows, sampler, num_workers, "loader.num_workers", rows.batch_bytes(largest), pin_memory)

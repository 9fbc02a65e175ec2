"""Feed images, features or vectors to a network in batches, and collect its binary codes."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from deephash_cli import processes
from deephash_cli.cache import features_folder
from deephash_cli.console import progress, warn, with_speed
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, Vectors
from deephash_cli.data.features import Features, cached_features, feature_key
from deephash_cli.data.loaders import (
    DirectLoader,
    EpochSampler,
    Held,
    Inputs,
    Loader,
    Rows,
    encode_loader,
    train_loader,
    worker_count,
)
from deephash_cli.errors import short
from deephash_cli.failures import explained
from deephash_cli.models import (
    PRECISIONS,
    Backbone,
    HashingNetwork,
    computed_features,
    packed_codes,
    warn_if_slower,
)
from deephash_cli.npy import ids_at
from deephash_cli.phases import phase
from deephash_cli.retrieval.codes import CodeSet, pack, packed_width, rounded


@dataclass(frozen=True)
class Loading:
    """Settings of how batches are made.

    Attributes:
        batch_size: Number of images in a training step, summed over all processes.
        eval_batch_size: Number of images that each process passes through the network at once when nothing is learned.
        num_workers: Number of worker processes that decode image files, or ``auto`` for ``loaders.worker_count``.
            Images and features in memory need no workers and get none.
        pin_memory: Whether batches are copied to memory that a GPU can read directly.
    """

    batch_size: int
    eval_batch_size: int
    num_workers: int | str
    pin_memory: bool


@dataclass(frozen=True)
class Computing:
    """Settings of how the features of a frozen backbone are computed, before they are kept.

    Attributes:
        precision: Arithmetic of the backbone, a key of ``models.PRECISIONS``.
        batch_size: Number of images that each process passes through the backbone at once; None for ``batch_for``.
    """

    precision: str
    batch_size: int | None


_MOST = 512  # images that pass through a backbone at once; more are hardly faster
_FEWEST = 16
# Bytes that the layers of a backbone hold for a pixel: VGG has 64 channels of 4 bytes at full size, several times.
_BYTES_OF_PIXEL = 1024
_SHARE_OF_GPU = 1 / 8  # of its free memory, for the inputs of a data set; what is trained on is held once more
_CONVERTED = 2**28  # bytes of features that are held in the memory of the CPU while a network trains on them
_FETCHED_EVERY = 0.2  # seconds between two times that outputs are copied from the device that computes them
_BLOCK = 8192  # rows that are read at once where they are collected


def batch_for(device: torch.device, image_size: int, usual: int) -> int:
    """Return how many images to pass through a backbone at once where no number is set.

    On a CPU a larger batch is not faster. On a GPU it is, so half of its free memory is used.

    Args:
        device: Device that computes.
        image_size: Side of the images in pixels.
        usual: Number of images on a device other than a CUDA GPU.
    """
    if device.type != "cuda":
        return usual
    fitting = torch.cuda.mem_get_info(device)[0] // 2 // (_BYTES_OF_PIXEL * image_size**2)
    return min(_MOST, max(_FEWEST, 2 ** (fitting.bit_length() - 1)))


class Source:
    """The rows of a data set as the network takes them: images, features of its frozen backbone, or vectors.

    Features are computed when a source is created, unless they are on disk from an earlier run.

    Args:
        dataset: Images or vectors, with their labels.
        network: Network that the rows are for; its preprocessing and its backbone decide what it takes.
        device: Device that computes features and codes.
        loading: Settings of how batches are made.
        computing: Settings of how features are computed.
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        network: HashingNetwork,
        device: torch.device,
        loading: Loading,
        computing: Computing,
    ):
        images = dataset.images
        self.images: Inputs = images.prepared(network.preprocessing) if isinstance(images, ImageFiles) else images
        self.labels = torch.from_numpy(dataset.labels)  # made float batch by batch, in a quarter of the memory
        self.dataset = dataset
        self.network = network
        self.device = device
        self.loading = loading
        self.computing = computing
        self._workers = 0 if images.in_memory else worker_count(loading.num_workers)
        self._moved: tuple[Inputs | None, Tensor | None] = None, None  # inputs, and the same on the GPU
        self.inputs = self.images
        if network.frozen and not isinstance(images, Vectors):  # vectors are features already
            self.inputs = self._features(np.arange(len(dataset)))
            self._workers = 0

    def shuffled(
        self,
        rows: Int[np.ndarray, "n"],
        seed: int,
        done: tuple[int, int] = (0, 0),
        sample: tuple[int, int] | None = None,
    ) -> Loader | DirectLoader:
        """Make training batches of some rows, in a different order in each epoch.

        Args:
            rows: Rows of the data set.
            seed: Random seed of the orders.
            done: An epoch, counted from 0, and the number of its batches to leave out.
            sample: Number of rows of an epoch, drawn at random, and number of epochs for which a draw is kept; None for
                all rows in each epoch.

        Raises:
            DataError: If there are fewer than two rows.
            ConfigError: If a batch is too small for the number of processes.
        """
        subset = self._trained_on(rows)
        loader = train_loader(subset, self.loading.batch_size, seed, self._workers, self.loading.pin_memory, sample)
        cast(EpochSampler, loader.sampler).continue_at(*done)
        return loader

    def shuffled_features(
        self, rows: Int[np.ndarray, "n"], batch_size: int, seed: int, sample: tuple[int, int] | None = None
    ) -> Loader | DirectLoader:
        """Make training batches of the features that the backbone gives now for some rows, although it is not frozen.

        Args:
            rows: Rows of the data set.
            batch_size: Number of rows in a batch, summed over all processes.
            seed: Random seed of the orders.
            sample: What an epoch is drawn from, as for ``shuffled``.

        Raises:
            DataError: If there are fewer than two rows, or an image cannot be read.
            ConfigError: If a batch is too small for the number of processes.
        """
        subset = Rows(self._features(rows), self.labels[rows], np.arange(len(rows)))
        return train_loader(subset, batch_size, seed, 0, self.loading.pin_memory, sample)

    def in_order(self, rows: Int[np.ndarray, "n"], size: int | None = None) -> Loader | DirectLoader:
        """Make batches that have each of these rows once, in the given order.

        Args:
            rows: Rows of the data set.
            size: Number of rows in a batch; None for ``eval_batch_size``.
        """
        size = size or self.loading.eval_batch_size
        return encode_loader(self._subset(rows), size, self._workers, self.loading.pin_memory)

    def at_once(self, rows: Int[np.ndarray, "n"]) -> Loader | DirectLoader:
        """Make a single batch of all these rows, in the given order."""
        return encode_loader(Rows(self.inputs, self.labels, rows), len(rows), 0, pin_memory=False)

    def codes(
        self,
        rows: Int[np.ndarray, "n"],
        precision: Callable[[], AbstractContextManager[None]],
        most_continuous: float = math.inf,
    ) -> CodeSet:
        """Compute the codes of some rows. With several processes, each encodes a part and all get the whole.

        Args:
            rows: Rows of the data set.
            precision: Function that returns a context manager, which sets the precision of the arithmetic.
            most_continuous: Number of bytes that the continuous codes may take; if they take more, they are not kept.

        Returns:
            Codes, labels and ids in the order of ``rows``.

        Raises:
            DataError: If an image cannot be read.
            DivergedError: If an output of the network is NaN.
        """
        self._make_ready()
        own, bits, is_kept = processes.own_share(rows), self.network.bits, False
        # Filled batch by batch: the outputs for all rows would take 32 times the memory of their codes.
        codes, continuous = np.empty((len(own), packed_width(bits)), np.uint8), np.empty((0, bits), np.float16)
        bad = np.zeros((2, len(own)), np.bool_)  # whether a row has a NaN, and whether it has an infinite value
        done = 0
        with progress("encoding, images", len(rows)) as show, precision(), torch.inference_mode():
            for u in self._outputs(self.network, own, show):
                part = slice(done, done + len(u))
                if not done:  # only the output tells the number of bits, because a method can replace the hash layer
                    bits = u.shape[1]
                    codes = np.empty((len(own), packed_width(bits)), np.uint8)
                    is_kept = len(rows) * bits * continuous.itemsize <= most_continuous
                    continuous = np.empty((len(own) if is_kept else 0, bits), np.float16)
                codes[part] = pack((u >= 0).numpy())
                if is_kept:
                    continuous[part] = rounded(u.numpy())
                bad[:, part] = u.isnan().any(dim=1), u.isinf().any(dim=1)
                done += len(u)
        packed, broken, infinite, *u = (
            processes.of_all(torch.from_numpy(part).to(self.device)).cpu()
            for part in (codes, *bad, *([continuous] if is_kept else []))
        )
        ids = ids_at(self.dataset.ids, rows)
        if broken.any():
            packed_codes(torch.where(broken, torch.nan, 0.0)[:, None], ids)  # raises the error that names the first one
        if count := int(infinite.sum()):
            warn(
                f"the network gives infinite values for {count} of {len(rows)} images, first for "
                f"{short(ids[int(infinite.int().argmax())])}: their signs become bits, but the weights are "
                "probably useless: lower optimizer.lr"
            )
        return CodeSet(packed.numpy(), bits, self.dataset.labels[rows], ids, u[0].numpy() if u else None)

    def _outputs(
        self,
        forward: Callable[[Tensor], Tensor],
        rows: Int[np.ndarray, "n"],
        show: Callable[[int], None],
        size: int | None = None,
    ) -> Iterator[Float[Tensor, "m d"]]:
        """Yield the outputs for some rows in batches, in the given order.

        Args:
            forward: Function that computes the outputs for a batch of inputs.
            rows: Rows of the data set.
            show: Function that is called with the number of rows done so far.
            size: Number of rows in a batch, if ``features.batch_size`` decides it; None for ``eval_batch_size``.
        """
        held: list[Tensor] = []
        done, since = 0, time.perf_counter()
        lower = f"features.batch_size={size}" if size else f"loader.eval_batch_size={self.loading.eval_batch_size}"
        with explained(lower):
            for inputs in self._inputs(rows, size or self.loading.eval_batch_size):
                held.append(forward(inputs.to(self.device, non_blocking=True)).float())
                # A GPU falls idle whenever its results are waited for, and what is done with them costs less at once
                if time.perf_counter() - since > _FETCHED_EVERY:
                    outputs = torch.cat(held).cpu()
                    yield outputs
                    done += processes.count() * len(outputs)  # the other processes have done about as many
                    show(done)
                    held, since = [], time.perf_counter()
            if held:
                yield torch.cat(held).cpu()
                show(len(rows))

    def _make_ready(self) -> None:
        """Bring the network to the device, in evaluation mode. To do both once more would take longer than to look."""
        network = self.network
        if any(tensor.device != self.device for tensor in (*network.parameters(), *network.buffers())):
            network.to(self.device)
        if any(module.training for module in network.modules()):
            network.eval()

    def _inputs(self, rows: Int[np.ndarray, "n"], size: int) -> Iterator[Tensor]:
        """Yield the inputs of some rows in batches of a size, in the given order.

        The loader is used only if there are worker processes, because it costs a twentieth of the time.
        """
        if self._workers:
            return (batch.inputs for batch in self.in_order(rows, size))
        if self._there is not None:
            return (self._there[part] for part in torch.from_numpy(rows).to(self.device).split(size))
        return (torch.from_numpy(self.inputs.batch(rows[start : start + size])) for start in range(0, len(rows), size))

    @property
    def _there(self) -> Shaped[Tensor, "n ..."] | None:
        """All inputs in the memory of the GPU that computes, if there is a GPU and they are small enough for it."""
        inputs, there = self._moved
        if inputs is not self.inputs:  # features take the place of images once they are computed
            there = self._on_gpu()
            self._moved = self.inputs, there
        return there

    def _on_gpu(self) -> Shaped[Tensor, "n ..."] | None:
        if self.device.type != "cuda" or self._workers:
            return None
        whole = np.arange(len(self.dataset))
        self._moved = None, None  # makes room
        room = torch.cuda.mem_get_info(self.device)[0] * _SHARE_OF_GPU
        return self._gathered(whole) if self._bytes(whole) <= room else None

    def _trained_on(self, rows: Int[np.ndarray, "n"]) -> Rows | Held:
        """Return rows that are read again in each epoch: features are converted once, if that takes little memory."""
        is_small = isinstance(self.inputs, Features | Vectors) and self._bytes(rows) <= _CONVERTED
        if self._there is None and self.device.type == "cpu" and is_small:
            return Held(self._gathered(rows), self.labels[torch.from_numpy(rows)].float())
        return self._subset(rows)

    def _subset(self, rows: Int[np.ndarray, "n"]) -> Rows | Held:
        """Return some rows, on the GPU if all inputs are there."""
        if self._there is None:
            return Rows(self.inputs, self.labels, rows)
        where = torch.from_numpy(rows)
        return Held(self._there[where.to(self.device)], self.labels[where].float().to(self.device))

    def _bytes(self, rows: Int[np.ndarray, "n"]) -> int:
        """Return the bytes that the inputs of some rows take as the network takes them."""
        return len(rows) * self.inputs.batch(rows[:1]).nbytes

    def _gathered(self, rows: Int[np.ndarray, "n"]) -> Shaped[Tensor, "n ..."]:
        """Return the inputs of some rows as a tensor on the device, read in blocks."""
        first = torch.from_numpy(self.inputs.batch(rows[:1]))
        inputs = first.new_empty((len(rows), *first.shape[1:]), device=self.device)
        for start in range(0, len(rows), _BLOCK):
            inputs[start : start + _BLOCK] = torch.from_numpy(self.inputs.batch(rows[start : start + _BLOCK]))
        return inputs

    @phase("features")
    def _features(self, rows: Int[np.ndarray, "n"]) -> Features:
        self._make_ready()
        data = self.dataset.images.digest()
        if not np.array_equal(rows, np.arange(len(self.dataset))):
            data = f"{data} {hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest()}"
        precision = self.computing.precision
        folder = features_folder(feature_key(self.network.backbone_digest(), data, precision))
        width = cast(Backbone, self.network.backbone).num_features
        size = self.computing.batch_size or batch_for(
            self.device, self.network.image_size, self.loading.eval_batch_size
        )

        def forward(images: Tensor) -> Tensor:
            return computed_features(self.network, images, PRECISIONS[precision])

        with progress("backbone features, images", len(rows)) as bar:
            show = with_speed(bar, len(rows), "images")

            def compute(start: int, stop: int) -> Tensor:
                warn_if_slower(self.device.type, precision)
                with torch.inference_mode():
                    outputs = self._outputs(forward, rows[start:stop], lambda done: show(start + done), size)
                    return torch.cat(list(outputs))

            return cached_features(folder, len(rows), width, compute, show)

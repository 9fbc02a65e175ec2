"""From images to what a network is given, and from a network to binary codes."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from deephash_cli import processes
from deephash_cli.cache import cache_folder
from deephash_cli.console import progress
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, Vectors
from deephash_cli.data.features import cached_features, feature_key
from deephash_cli.data.loaders import Batch, Inputs, Rows, encode_loader, train_loader
from deephash_cli.models import Backbone, HashingNetwork, packed_codes
from deephash_cli.retrieval.codes import CodeSet


@dataclass(frozen=True)
class Loading:
    """How batches are made.

    Attributes:
        batch_size: Images in a training step.
        eval_batch_size: Images at a time when nothing is learned.
        num_workers: Processes that decode image files. Images and features in memory need none and get none.
        pin_memory: Whether batches are copied to memory that a GPU can read directly.
    """

    batch_size: int
    eval_batch_size: int
    num_workers: int
    pin_memory: bool


class Source:
    """The rows of a data set as a network is given them: images, or the features of its frozen backbone, or vectors.

    Features are computed when a source is made, unless they are on disk from an earlier run.

    Args:
        dataset: Images and labels.
        network: Whose image size and backbone matter.
        device: Where features are computed.
        loading: How batches are made.
    """

    def __init__(self, dataset: RetrievalDataset, network: HashingNetwork, device: torch.device, loading: Loading):
        images = dataset.images
        self.images: Inputs = images.sized(network.image_size) if isinstance(images, ImageFiles) else images
        self.labels = torch.from_numpy(dataset.labels).float()
        self.dataset = dataset
        self.network = network
        self.device = device
        self.loading = loading
        self._workers = 0 if images.in_memory else loading.num_workers
        self.inputs = self.images
        if network.frozen and not isinstance(images, Vectors):  # which are features already
            self.inputs = self._features(np.arange(len(dataset)))
            self._workers = 0

    def shuffled(self, rows: Int[np.ndarray, "n"], seed: int) -> "DataLoader[Batch]":
        """Training batches of some rows, in an order of their own each epoch."""
        subset = Rows(self.inputs, self.labels, rows)
        return train_loader(subset, self.loading.batch_size, seed, self._workers, self.loading.pin_memory)

    def shuffled_features(self, rows: Int[np.ndarray, "n"], batch_size: int, seed: int) -> "DataLoader[Batch]":
        """Training batches of the features that the backbone gives of some rows now, though it is not frozen."""
        subset = Rows(self._features(rows), self.labels[rows], np.arange(len(rows)))
        return train_loader(subset, batch_size, seed, 0, self.loading.pin_memory)

    def in_order(self, rows: Int[np.ndarray, "n"]) -> "DataLoader[Batch]":
        """Some rows once, in their order."""
        subset = Rows(self.inputs, self.labels, rows)
        return encode_loader(subset, self.loading.eval_batch_size, self._workers, self.loading.pin_memory)

    def at_once(self, rows: Int[np.ndarray, "n"]) -> "DataLoader[Batch]":
        """Some rows in their order, all in one batch."""
        return encode_loader(Rows(self.inputs, self.labels, rows), len(rows), 0, pin_memory=False)

    def codes(self, rows: Int[np.ndarray, "n"], precision: Callable[[], AbstractContextManager[None]]) -> CodeSet:
        """Binary codes of some rows, in their order. Several processes encode a part each, and all get all.

        Args:
            rows: Which.
            precision: Of the arithmetic, as a context.

        Raises:
            DivergedError: If the network's output is not a number.
        """
        self.network.to(self.device).eval()
        with progress("encoding, images", len(rows)) as show, precision():
            u = self._outputs(self.network, processes.own_share(rows), show)
        u = processes.of_all(u.to(self.device)).cpu()
        return CodeSet(packed_codes(u), u.shape[1], self.dataset.labels[rows], [self.dataset.ids[row] for row in rows])

    def _outputs(
        self, forward: Callable[[Tensor], Tensor], rows: Int[np.ndarray, "n"], show: Callable[[int], None]
    ) -> Float[Tensor, "n d"]:
        parts: list[Tensor] = []
        done = 0
        with torch.inference_mode():
            for inputs in self._inputs(rows):
                parts.append(forward(inputs.to(self.device, non_blocking=True)).float().cpu())
                done += processes.count() * len(parts[-1])  # the other processes are as far
                show(done)
        return torch.cat(parts)

    def _inputs(self, rows: Int[np.ndarray, "n"]) -> Iterator[Tensor]:
        """Those of some rows, in their order; without the loader if no process helps, which costs a twentieth."""
        size = self.loading.eval_batch_size
        if self._workers:
            return (batch.inputs for batch in self.in_order(rows))
        return (self.inputs.batch(rows[start : start + size]) for start in range(0, len(rows), size))

    def _features(self, rows: Int[np.ndarray, "n"]) -> Inputs:
        self.network.to(self.device).eval()
        data = self.dataset.images.digest()
        if not np.array_equal(rows, np.arange(len(self.dataset))):
            data = f"{data} {hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest()}"
        folder = cache_folder() / "features" / feature_key(self.network.backbone_digest(), data)
        width = cast(Backbone, self.network.backbone).num_features
        with progress("backbone features, images", len(rows)) as show:

            def compute(start: int, stop: int) -> Tensor:
                return self._outputs(self.network.features, rows[start:stop], lambda done: show(start + done))

            return cached_features(folder, len(rows), width, compute, show)

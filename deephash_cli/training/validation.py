"""Measure a network on held-out queries during training: a callback beside the loop, of which methods know nothing."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from deephash_cli import processes
from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import Hasher
from deephash_cli.retrieval import metrics, ranking, similarity
from deephash_cli.training import gpu_counts


class Validation(Callback):
    """Log ``validation/map``, the tie-aware mAP of the held-out queries in the training set, after each validation.

    The first validation loader has the queries, the second the training set.

    Args:
        similar: What makes an image relevant to a query, a key of ``similarity.SIMILAR``.
    """

    def __init__(self, similar: str):
        super().__init__()
        self._similar = similar
        self._sides: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the codes of a validation that was cut short."""
        self._sides = ([], [])

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the packed codes and the labels of a batch until the epoch ends."""
        self._sides[dataloader_idx].append((outputs.numpy(), batch.labels.cpu().numpy().astype(np.uint8)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Hasher) -> None:  # type: ignore[override]
        """Rank the training set for each query and log the mean average precision."""
        (queries, query_labels), (database, labels) = (
            tuple(_of_all_processes(part, pl_module.device) for part in zip(*side, strict=True)) for side in self._sides
        )
        self._sides = ([], [])
        value = 0.0
        if processes.rank() == 0:
            labels = similarity.as_shared(query_labels, labels, self._similar)
            sides = (queries, database, pl_module.network.bits, *labels)
            if pl_module.device.type == "cuda" and labels[0].ndim == 2:
                shared = gpu_counts.count(*sides, device=pl_module.device)
            else:
                shared = np.concatenate([part.shared for part in ranking.count(*sides)])
            value = float(metrics.average_precision(metrics.Histograms.of_shared(shared)).mean())
        pl_module.log("validation/map", processes.from_first(value))


def _of_all_processes(parts: tuple[np.ndarray, ...], device: torch.device) -> np.ndarray:
    """Join the rows that this process has seen with those of the others."""
    rows = torch.from_numpy(np.concatenate(parts)).to(device)
    return processes.of_all(rows).cpu().numpy()

"""Encode shards on several devices, a process for each, with Lightning's prediction loop."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter

from deephash_cli import console, processes
from deephash_cli.data.loaders import Loader
from deephash_cli.errors import ConfigError, DeephashError, print_error
from deephash_cli.failures import explain
from deephash_cli.inference.shards import Batch, Collecting, Task, Work
from deephash_cli.training.trainer import explain_trainer, require_cores

# The command with which the first of several processes starts the others.
FOLLOW = (sys.executable, "-P", "-c", "from deephash_cli.inference.several_devices import follow; follow()")


def encode(work: Work, shards: Sequence[int], accelerator: str, devices: int, show: Callable[[int], None]) -> None:
    """Encode shards and write them: a process for each device encodes a part of the shards.

    Args:
        work: Work that the shards belong to.
        shards: Numbers of the shards to encode.
        accelerator: Accelerator as Lightning names it.
        devices: Number of devices.
        show: Function that is called with the number of images encoded so far.

    Raises:
        ArtifactError: If a shard cannot be written.
        ConfigError: If the devices are not available.
        DivergedError: If the output of the network is NaN.
    """
    with console.quiet_lightning():
        trainer = _trainer(accelerator, devices, "auto" if devices == 1 else "ddp")
        given = {"task": dataclasses.asdict(work.task), "shards": list(shards)}
        task = json.dumps({**given, "accelerator": accelerator, "devices": devices})
        with processes.team(trainer.world_size, trainer.strategy.root_device, FOLLOW, task):
            own = list(shards)[processes.rank() :: processes.count()]
            trainer.callbacks.append(_Writer(Collecting(work, show)))  # type: ignore[attr-defined]
            trainer.predict(_Predicting(work), _AnyIterable(work.batches(own)), return_predictions=False)


def follow() -> None:
    """Encode a part of the shards in a process that the first of several processes started."""
    console.be_silent()
    given = json.loads(processes.task_of_this_process())
    try:
        work = Work(Task(**given["task"]))
        work.encode(given["shards"], given["accelerator"], given["devices"], lambda _: None)
    except DeephashError as error:  # the first process reports that this one failed
        sys.exit(error.exit_code)
    except Exception as error:
        if (known := explain(error, f"batch_size={given['task']['batch_size']}")) is None:
            raise
        print_error(known)
        sys.exit(known.exit_code)


def require_devices(accelerator: str, devices: int) -> torch.device:
    """Check that this machine has the devices to encode on, before anything is read or written.

    Returns:
        The first of the devices.

    Raises:
        ConfigError: If it does not have them.
    """
    with console.quiet_lightning():
        trainer = _trainer(accelerator, devices, "auto")
        require_cores(trainer, "devices")
    return trainer.strategy.root_device


class _AnyIterable:
    """The batches of a loader. For prediction, Lightning would replace a loader by a plain one of torch."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        yield from self.loader


class _Predicting(LightningModule):
    """Compute the packed codes of batches with an encoder, inside Lightning's prediction loop."""

    def __init__(self, work: Work):
        super().__init__()
        self.work = work
        self.encoder = work.encoder

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave the batch on the CPU: the images are moved where their codes are computed."""
        return batch

    def predict_step(self, batch: Batch, batch_idx: int) -> UInt8[np.ndarray, "n bytes"]:
        """Compute the packed codes of the images that can be read, in order.

        Raises:
            DivergedError: If the output of the network is NaN.
        """
        return self.work.packed(batch, self.device)


class _Writer(BasePredictionWriter):
    """Pass the codes of batches on to what collects and writes them."""

    def __init__(self, collecting: Collecting):
        super().__init__("batch")
        self.collecting = collecting

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Take the codes of a batch.

        Raises:
            ArtifactError: If its shard is complete and cannot be written.
        """
        self.collecting.take(batch, prediction)


def _trainer(accelerator: str, devices: int, strategy: str) -> Trainer:
    try:
        return Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            logger=False,
            # processes.team starts the processes on every kind of cluster, so Lightning must not detect one
            plugins=[LightningEnvironment()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        settings = f"accelerator={accelerator}", f"devices={devices}"
        raise ConfigError(explain_trainer(error, *settings, " ".join(settings))) from error

"""Encode shards with Ray Data, on this machine or on a cluster."""

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from deephash_cli import console
from deephash_cli.errors import ConfigError, DataError, DeephashError
from deephash_cli.inference.shards import Task, Work


class RayWorker:
    """Worker that encodes shards in a process that Ray starts.

    Args:
        task: Fields of ``Task`` by name.
        accelerator: ``gpu`` if the worker has one, otherwise ``cpu``.

    Raises:
        DeephashError: If the input or the run cannot be used.
    """

    def __init__(self, task: dict[str, Any], accelerator: str):
        console.be_silent()
        self.accelerator = accelerator
        self.work = Work(Task(**task))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Encode the shards of a batch.

        Args:
            batch: Numbers of the shards under ``shard``.

        Returns:
            The same numbers under ``shard``; under ``error`` for each an empty text, or an exit code and a message.
        """
        try:
            self.work.encode(batch["shard"].tolist(), self.accelerator, 1, lambda _: None)
            error = ""
        except DeephashError as failed:
            error = f"{failed.exit_code} {failed}"
        return {"shard": batch["shard"], "error": np.array([error] * len(batch["shard"]))}


def encode_with_ray(
    task: Task,
    missing: list[int],
    workers: int,
    gpus: float,
    size: Callable[[int], int],
    show: Callable[[int], None],
) -> None:
    """Encode shards with Ray Data, on this machine or on the cluster that ``RAY_ADDRESS`` names.

    Args:
        task: Description of what to encode.
        missing: Numbers of the shards to encode.
        workers: Largest number of Ray workers.
        gpus: Number of GPUs for each worker, which may be a fraction; 0 for the CPU.
        size: Function that returns the number of images in a shard.
        show: Function that is called with the number of images encoded so far, after each shard.

    Raises:
        ConfigError: If Ray is not installed.
        DataError: If a worker cannot encode a shard.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError("launcher=ray needs Ray: pip install 'deephash[ray]'") from error
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray would warn about what Ray Data itself does
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing))
    made = shards.map_batches(
        RayWorker,
        fn_constructor_args=(dataclasses.asdict(task), "gpu" if gpus else "cpu"),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing))),
        num_gpus=gpus or None,
    )
    done = 0
    for row in made.iter_rows():
        if row["error"]:
            raise DataError(row["error"].partition(" ")[2])
        done += size(row["shard"])
        show(done)

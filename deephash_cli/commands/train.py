"""``deephash train``: train a method, write its codes, and report its metrics."""

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from deephash_cli import runs
from deephash_cli.console import say
from deephash_cli.errors import DeephashError, command
from deephash_cli.retrieval.metrics_table import show
from deephash_cli.runs import outputs, records
from deephash_cli.training import datasets


def run(config: DictConfig) -> dict[str, Any]:
    """Run ``deephash train`` once, and print its metrics.

    If torchrun started several processes, only the first does this, and the others follow it.

    Returns:
        The metrics, with the run folder under ``run_dir``; empty in a process that follows the first.
    """
    datasets.forget()
    if os.environ.get("RANK", "0") == "0":
        if config.resume == "none":
            outputs.require_room(config.runs, config.run_dir, config.dataset.get("root"))
        _check_accelerator(config)
        _check_data(config)
    # Imported here because it takes seconds; a mistake in the data is reported before that.
    from deephash_cli import processes
    from deephash_cli.training import fit

    if not processes.is_first():
        fit.follow()
        return {}
    try:
        metrics = fit.train(config, runs.escape(list(HydraConfig.get().overrides.task)))  # reading resolved it
    finally:
        processes.dismiss()
    show(metrics)
    folder = Path(metrics["run_dir"])
    if phases := records.phases(folder):
        say(f"time: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in phases.items())}")
    say(f"run folder: {folder}")
    say(f"to recompute every number from the codes: {command('deephash', 'eval', f'run={folder}')}")
    if "map" in metrics:  # without labels there are no charts
        say(f"for a page with charts and pictures: {command('deephash', 'report', folder)}")
    return metrics


def _check_accelerator(config: DictConfig) -> None:
    """Refuse a GPU that this machine does not have before the data are read, which may take minutes.

    Only a GPU that is asked for is worth the seconds that torch takes before a mistake in the data is reported.

    Raises:
        ConfigError: If there is no such device.
    """
    if config.trainer.accelerator in ("gpu", "cuda", "mps"):
        from deephash_cli.training.devices import require_accelerator

        require_accelerator(config.trainer.accelerator, "trainer.accelerator")


def _check_data(config: DictConfig) -> None:
    """Load and check the data, which stay in memory for the run.

    A run that exists and is finished needs no data. If there may be one, a mistake in the data is left to the run.

    Raises:
        ConfigError: If the data set, the model and the method do not fit each other.
        DataError: If the data are missing, damaged, or do not fit the method.
    """
    if config.resume not in ("none", "auto"):
        return  # the run folder may come from somebody else: what it would build has to be checked first
    try:
        datasets.prepare_data(config)
    except DeephashError:
        if config.resume == "none" or not Path(config.run_dir or config.runs).is_dir():
            raise

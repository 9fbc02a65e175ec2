"""``deephash train``: train a method, write its codes, and report its metrics."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from deephash_cli import processes, runs
from deephash_cli.console import say
from deephash_cli.errors import command
from deephash_cli.retrieval.metrics_table import show
from deephash_cli.training import fit


def run(config: DictConfig) -> dict[str, Any]:
    """Run ``deephash train`` once, and print its metrics.

    If torchrun started several processes, only the first does this, and the others follow it.

    Returns:
        The metrics, with the run folder under ``run_dir``; empty in a process that follows the first.
    """
    if not processes.is_first():
        fit.follow()
        return {}
    fit.load_dataset.cache_clear()
    try:
        metrics = fit.train(config, runs.escape(list(HydraConfig.get().overrides.task)))  # reading resolved it
    finally:
        processes.dismiss()
    show(metrics)
    folder = Path(metrics["run_dir"])
    say(f"run folder: {folder}")
    say(f"to recompute every number from the codes: {command('deephash', 'eval', f'run={folder}')}")
    say(f"for a page with charts and pictures: {command('deephash', 'report', folder)}")
    return metrics

"""``deephash train``: train a method, write its codes, and report its metrics."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from deephash_cli import processes
from deephash_cli.console import say
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
        metrics = fit.train(config, list(HydraConfig.get().overrides.task))
    finally:
        processes.dismiss()
    show(metrics)
    say(f"run folder: {metrics['run_dir']}")
    say(f"to recompute every number from the codes: deephash eval run={metrics['run_dir']}")
    if "map" in metrics:  # without labels there are no charts
        say(f"for a page with charts and pictures: deephash report {metrics['run_dir']}")
    return metrics

"""Checkpoints within an epoch: when they are exact, and what they hold in addition to those at the end of an epoch.

Lightning saves weights, optimizer, counters and schedules at any step. It does not save the means that an epoch has
collected so far, and it starts the batches of an interrupted epoch again from the first one.
"""

from typing import Any

from pytorch_lightning import LightningModule, Trainer

from deephash_cli.errors import ConfigError
from deephash_cli.methods.base import HashingModule

# A class outside this package that has one of these hooks may keep something that no checkpoint holds.
_HOOKS = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end", "training_step",
    "on_save_checkpoint", "on_load_checkpoint",
)  # fmt: skip
_KNOWN = ("deephash_cli.", "pytorch_lightning.", "lightning_fabric.", "torch.", "builtins")


def is_exact(trainer: Trainer, module: LightningModule) -> bool:
    """Whether a run that continues from here, within an epoch, does exactly what an uninterrupted run does.

    It does not if the number of steps is limited, if each epoch makes its batches again, or if the method or its
    logging does more than this package knows of.

    Args:
        trainer: Trainer that is training.
        module: Method that it trains.
    """
    settings: Any = trainer  # Lightning sets some of the attributes without declaring them
    return (
        isinstance(module, HashingModule)
        and module.automatic_optimization
        and not _own_hooks(module)
        and settings.max_steps == -1
        and not settings.reload_dataloaders_every_n_epochs
        and all(map(_is_restorable, _results(trainer).values()))
    )


def state(trainer: Trainer, module: HashingModule, batches: int) -> dict[str, Any]:
    """Collect what a checkpoint after some batches of an epoch needs: tensors and plain values.

    Args:
        trainer: Trainer that is training.
        module: Method that it trains.
        batches: Number of finished batches of the epoch.
    """
    return {
        "batches": batches,
        "lengths": _lengths(trainer),
        "sums": module.loss_sums.state(),
        "logged": [
            {
                "hook": result.meta.fx,
                "name": result.meta.name,
                "options": {"prog_bar": result.meta.prog_bar, "logger": result.meta.logger},
                "value": result.value,
                "weight": result.cumulated_batch_size,
            }
            for result in _results(trainer).values()
            if not result.has_reset
        ],
    }


def restore(trainer: Trainer, module: LightningModule, saved: dict[str, Any]) -> None:
    """Restore what ``state`` collected, when training starts.

    Args:
        trainer: Trainer that continues the epoch.
        module: Method that it trains.
        saved: Return value of ``state``.

    Raises:
        ConfigError: If the settings have changed so that the epoch cannot be continued.
    """
    if _lengths(trainer) != saved["lengths"] or not is_exact(trainer, module):
        raise ConfigError(
            "the run was interrupted within an epoch, which must be finished with the settings that it was started "
            "with: give trainer.limit_train_batches, trainer.accumulate_grad_batches and the trainer's other limits "
            "their earlier values"
        )
    assert isinstance(module, HashingModule)
    module.loss_sums.restore(saved["sums"], module.device)
    # Otherwise Lightning takes the next batch for the first one of an epoch, and forgets what was logged before
    trainer._logger_connector._first_loop_iter = False
    results = _results(trainer)
    for entry in saved["logged"]:
        module._current_fx_name = entry["hook"]
        module.log(entry["name"], entry["value"].to(module.device), on_step=False, on_epoch=True, **entry["options"])
        result = results[f"{entry['hook']}.{entry['name']}"]
        result.value, result.cumulated_batch_size = (entry[key].to(module.device) for key in ("value", "weight"))
    module._current_fx_name = None


def _own_hooks(module: LightningModule) -> bool:
    """Whether a class of the method that is not part of this package has hooks that may keep something."""
    methods = [part for part in module.modules() if isinstance(part, LightningModule)]  # several if lengths are nested
    classes = {cls for method in methods for cls in type(method).__mro__}
    foreign = [cls for cls in classes if not f"{cls.__module__}.".startswith(_KNOWN)]
    return any(name in vars(cls) for cls in foreign for name in _HOOKS)


def _results(trainer: Trainer) -> dict[str, Any]:
    """Return what the hooks of this epoch have logged so far."""
    return trainer.fit_loop.epoch_loop._results


def _is_restorable(result: Any) -> bool:
    """Whether a logged value is a mean over the epoch in this process, which two numbers describe."""
    meta = result.meta
    mean = result.is_tensor and meta.is_mean_reduction and not meta.on_step
    return mean and not meta.sync.should and meta.dataloader_idx is None


def _lengths(trainer: Trainer) -> list[int | float]:
    """Return the number of batches in an epoch and in an optimizer step."""
    return [trainer.num_training_batches, trainer.accumulate_grad_batches]

"""The steps of an epoch: Lightning's loop, with a shorter way through a step that needs none of its hooks."""

from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule

_GRADIENT_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_MODULE_HOOKS = (
    *_GRADIENT_HOOKS, "configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad", "backward",
    "on_before_batch_transfer", "on_after_batch_transfer",
)  # fmt: skip


def use_step_loop(trainer: Trainer) -> None:
    """Let a trainer go through its steps with a ``StepLoop``."""
    usual = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = StepLoop(trainer, usual.min_steps, usual.max_steps)


class StepLoop(_TrainingEpochLoop):
    """Go through the batches of an epoch as Lightning does, with the same arithmetic, counters and calls.

    In each step Lightning asks every callback and the module for some twenty hooks, most of which nobody has. On cached
    features that takes a tenth of the time. So a step in which only the hooks before and after a batch are in use, on
    one device, calls these and nothing else. All other steps are Lightning's own.
    """

    _short: bool | None = None  # whether the steps of this epoch are; None if that is not known yet

    def reset(self) -> None:
        """Begin an epoch."""
        super().reset()
        self._short = None

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Do the next step.

        Raises:
            StopIteration: If there is none.
        """
        if self._short is None:
            self._short = _is_short(self.trainer)
        if self.restarting or not self._short:
            super().advance(data_fetcher)
            return
        trainer, module = self.trainer, cast(HashingModule, self.trainer.lightning_module)
        self.val_loop.restarting = False
        batch, index = next(data_fetcher)[0], self.batch_idx + 1
        self.batch_progress.is_last_batch = data_fetcher.done
        batch = module.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
        self.batch_progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, index)
        self.batch_progress.increment_started()
        outputs = {"loss": self._learn(module, batch, index)}
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", outputs, batch, index)
        trainer._logger_connector.on_batch_end()
        self.batch_progress.increment_completed()
        trainer._logger_connector.update_train_step_metrics()

    def _learn(self, module: HashingModule, batch: Batch, index: int) -> Tensor:
        """Compute the loss and its gradient, and change the weights; return the loss."""
        optimizer, progress = self.trainer.optimizers[0], self.automatic_optimization.optim_progress.optimizer
        losses: list[Tensor] = []

        def closure() -> Tensor:
            module._current_fx_name = "training_step"
            with self.trainer.precision_plugin.train_step_context():
                loss = module.training_step(batch, index)
            module._current_fx_name = None
            losses.append(loss.detach())
            progress.zero_grad.increment_ready()
            progress.zero_grad.increment_started()
            optimizer.zero_grad()
            progress.zero_grad.increment_completed()
            loss.backward()
            return loss

        progress.step.increment_ready()
        optimizer.step(cast(Any, closure))
        progress.step.increment_completed()
        return losses[-1]

    def _call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of the callbacks that have it, and of the module."""
        module = self.trainer.lightning_module
        module._current_fx_name = hook
        for callback in cast(Any, self.trainer).callbacks:
            if getattr(type(callback), hook) is not getattr(Callback, hook):
                getattr(callback, hook)(self.trainer, module, *arguments)
        getattr(module, hook)(*arguments)
        module._current_fx_name = None


def _is_short(trainer: Any) -> bool:
    """Whether the steps of a trainer need nothing that only Lightning's own loop does."""
    module, precision = trainer.lightning_module, trainer.precision_plugin
    return (
        isinstance(module, HashingModule)
        and type(module).training_step is HashingModule.training_step
        and type(module).on_train_batch_start.__module__.startswith("deephash_cli.")  # others may leave out a batch
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(precision) in (Precision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        and trainer.accumulate_grad_batches == 1
        and not trainer.gradient_clip_val
        and isinstance(trainer.profiler, PassThroughProfiler)
        and not any(_has(module, LightningModule, hook) for hook in _MODULE_HOOKS)
        and not any(_has(callback, Callback, hook) for callback in trainer.callbacks for hook in _GRADIENT_HOOKS)
    )


def _has(thing: LightningModule | Callback, base: type, hook: str) -> bool:
    """Whether something has a hook of its own, in its class or as an attribute."""
    return hook in vars(thing) or getattr(type(thing), hook) is not getattr(base, hook)

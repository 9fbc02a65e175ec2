"""Save checkpoints while a method learns: complete or absent, and with what they are verified by."""

import contextlib
import io
import math
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import CheckpointIO

from deephash_cli import __version__, processes
from deephash_cli.console import say
from deephash_cli.errors import ArtifactError, DivergedError, Stopped
from deephash_cli.files import atomic_write, reason, sha256_file, write_bytes, write_sealed
from deephash_cli.methods.base import HashingModule
from deephash_cli.stopping import Requests, noting
from deephash_cli.training import mid_epoch
from deephash_cli.training.checkpoints import (
    BEST,
    FORMAT,
    LAST,
    PREVIOUS,
    STATE,
    Owner,
    read_checkpoint,
    sidecar_of,
    verify_checkpoint,
)

_SAVE = 1  # request for a checkpoint; larger numbers are exit codes, and also ask the process to end


class VerifiedCheckpointIO(CheckpointIO):
    """Write checkpoints atomically with their SHA-256 in a sidecar file, and verify the digest before reading.

    A checkpoint is written beside its target and then renamed. Lightning's own writer goes through the system's
    temporary folder and does not flush to disk, and its reader does not notice flipped bits.

    Args:
        owner: Run that the checkpoints belong to; None if they belong to no run.
    """

    def __init__(self, owner: Owner | None = None):
        super().__init__()
        self.owner = owner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, and what identifies it to ``<path>.json``.

        Args:
            checkpoint: Checkpoint as Lightning collects it.
            path: File to write; an existing file is replaced.
            storage_options: Unused; part of Lightning's interface.

        Raises:
            ArtifactError: If the folder cannot be written to, or the disk is full.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path = Path(path)
        with atomic_write(path, buffer.tell()) as file:
            file.write(buffer.getbuffer())
        sidecar = {"format": FORMAT, "deephash": __version__, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        if self.owner:
            sidecar |= {"run": self.owner.run, "settings": self.owner.settings, "named": dict(self.owner.named)}
        write_sealed(sidecar_of(path), sidecar)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Verify and read a checkpoint onto the CPU; see ``read_checkpoint``.

        Args:
            path: File to read.
            map_location: Unused; part of Lightning's interface.
            weights_only: Unused; only tensors and plain values are ever unpickled.

        Raises:
            ArtifactError: If the checkpoint is missing, damaged, of another run, or of a newer format.
        """
        return _with_shared_names(read_checkpoint(Path(path), self.owner))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its sidecar."""
        for file in (Path(path), sidecar_of(Path(path))):
            file.unlink(missing_ok=True)


def _with_shared_names(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Return a copy of nested plain values in which equal names are the same object.

    ``torch.save`` writes an object once, wherever it is used, and in a run that was not interrupted a name is one
    object. So a resumed run writes its checkpoints with the same bytes.

    Args:
        value: A checkpoint, or a part of it.
        seen: Copies made so far, by the identity of the original: what was shared stays shared.
    """
    seen = {} if seen is None else seen
    if isinstance(value, str):
        return sys.intern(value)
    if type(value) not in (dict, list, tuple):  # not the weights, whose names come from the network
        return value
    if id(value) not in seen:
        if isinstance(value, dict):
            pairs = ((_with_shared_names(key), _with_shared_names(item, seen)) for key, item in value.items())
            seen[id(value)] = dict(pairs)
        else:
            seen[id(value)] = type(value)([_with_shared_names(item, seen) for item in value])
    return seen[id(value)]


class EpochCheckpoints(Callback):
    """Save checkpoints at the end of epochs: the last, the previous and, with a monitored metric, the best.

    If a signal asks for it, the last checkpoint is also saved within an epoch, after the current step.

    Args:
        folder: Folder that the checkpoints are written to.
        every_n_epochs: Number of epochs from one checkpoint to the next; the final epoch is always saved.
        every_seconds: Shortest time in seconds between two checkpoints. An epoch that ends sooner is not saved unless
            it is the best or the final one: repeating a short epoch costs less than writing its checkpoint.
        monitor: Name of the logged metric whose highest value marks the best epoch; None saves no best checkpoint.
    """

    def __init__(self, folder: Path, every_n_epochs: int, every_seconds: float, monitor: str | None):
        self.folder = folder
        self.every_n_epochs = every_n_epochs
        self.every_seconds = every_seconds
        self._saved = -math.inf  # time of the last save, on the monotonic clock
        self.monitor = monitor
        self.best = -1.0
        self._requests = Requests()
        self._noting = contextlib.ExitStack()
        self._stop = 0  # exit code with which the process ends as soon as the epoch is logged; 0 continues
        self._unfinished: dict[str, Any] | None = None  # what is saved of an unfinished epoch; None at its end

    @property
    def state_key(self) -> str:
        """Name under which a checkpoint has the state of this callback."""
        return STATE

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far and the state of an unfinished epoch, for Lightning to keep."""
        return {"best": self.best, **({"unfinished": self._unfinished} if self._unfinished else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value so far and the state of an unfinished epoch from a checkpoint."""
        self.best = state_dict["best"]
        self._unfinished = state_dict.get("unfinished")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note signals instead of stopping at once, if the method learns in steps, and continue an unfinished epoch.

        Raises:
            ConfigError: If the settings have changed so that the epoch cannot be continued.
        """
        if self._unfinished:
            mid_epoch.restore(trainer, pl_module, self._unfinished)
            self._unfinished = None
        if isinstance(pl_module, HashingModule):
            message = "stopping after this step" if trainer.is_global_zero else None
            self._requests = self._noting.enter_context(noting(message))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save a checkpoint if a signal has asked for it, and stop if it has asked for that.

        The last step of an epoch and the steps that only collect gradients leave both to a later moment.

        Raises:
            Stopped: If a signal has asked the process to end.
            DivergedError: If a weight or a statistic of the network is not finite; nothing is saved then.
            ArtifactError: If the folder cannot be written to, or the disk is full.
        """
        batches = batch_idx + 1
        if trainer.is_last_batch or trainer.should_stop or batches % trainer.accumulate_grad_batches:
            return
        asked = self._asked(pl_module)
        exact = bool(asked) and mid_epoch.is_exact(trainer, pl_module)
        if exact:
            self._unfinished = mid_epoch.state(trainer, cast(HashingModule, pl_module), batches)
            self._save_last(trainer, pl_module)
            self._unfinished = None
        if asked > _SAVE:
            raise Stopped(asked, saved=exact)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal has asked for it during the epoch before, which is saved and logged now.

        Raises:
            Stopped: If a signal has asked the process to end.
        """
        if self._stop:
            raise Stopped(self._stop, saved=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal has asked for it; from now on, signals stop the process at once.

        Raises:
            Stopped: If a signal has asked the process to end.
        """
        stop = self._asked(pl_module)
        self._noting.close()
        if stop > _SAVE:
            raise Stopped(stop, saved=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let signals stop the process at once again."""
        self._noting.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint if one is due, if a signal has asked for it, or if the epoch is the best so far.

        Raises:
            DivergedError: If a weight or a statistic of the network is not finite; nothing is saved then.
            ArtifactError: If the folder cannot be written to, or the disk is full.
        """
        all_steps = 0 < trainer.max_steps <= trainer.global_step  # -1 is no limit
        final = trainer.should_stop or all_steps or trainer.current_epoch + 1 == trainer.max_epochs
        # an epoch without validation has no value or that of the last validation; neither counts as better
        value = float(trainer.callback_metrics.get(self.monitor, -1.0)) if self.monitor else -1.0
        better = value > self.best
        old = time.monotonic() - self._saved >= self.every_seconds
        asked = self._asked(pl_module)
        self._stop = asked if asked > _SAVE else 0
        due = final or bool(asked) or (old and (trainer.current_epoch + 1) % self.every_n_epochs == 0)
        due = processes.from_first(due)  # all processes follow the clock of the first one
        if not (due or better):
            return
        self._require_finite(trainer, pl_module)
        self.best = max(self.best, value)
        if better:
            trainer.save_checkpoint(self.folder / BEST)
        if due:
            self._save_last(trainer, pl_module)

    def _asked(self, pl_module: LightningModule) -> int:
        """Return the exit code that signals ask for in any of the processes, ``_SAVE`` for a checkpoint alone, or 0."""
        return processes.largest(self._requests.exit_code or (_SAVE if self._requests.save else 0), pl_module.device)

    def _save_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last checkpoint, and keep the one before it."""
        self._require_finite(trainer, pl_module)
        if trainer.is_global_zero:
            self._keep_previous()
        trainer.save_checkpoint(self.folder / LAST)
        self._saved = time.monotonic()
        if self._requests.save or self._requests.exit_code:
            say(f"a checkpoint was written after step {trainer.global_step}, because a signal asked for it")
        self._requests.save = False

    def _require_finite(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to save a network with weights that are not finite.

        Raises:
            DivergedError: If there is one.
        """
        for name, state in pl_module.state_dict().items():  # the statistics of batch normalization can overflow first
            if not torch.isfinite(state).all():
                raise DivergedError(
                    f"{name} is not finite after epoch {trainer.current_epoch}: lower optimizer.lr and "
                    f"model.backbone_lr; the last good checkpoint is in {self.folder}"
                )

    def _keep_previous(self) -> None:
        """Make the last checkpoint the previous one, in an order that leaves one of the two valid at every moment.

        A damaged last checkpoint is not moved but left to be overwritten, so that the run can still continue from the
        previous one.
        """
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        try:
            verify_checkpoint(last)
        except ArtifactError:
            return
        write_bytes(sidecar_of(previous), sidecar_of(last).read_bytes())
        try:
            last.replace(previous)
        except OSError as error:
            raise ArtifactError(f"could not write {previous}: {reason(error, previous)}") from error

"""Checkpoints: complete or absent, verified when read, of a known run, and unable to run code of their author."""

import contextlib
import io
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import CheckpointIO
from torch import nn

from deephash_cli import __version__, processes, runs
from deephash_cli.console import say
from deephash_cli.errors import ArtifactError, DivergedError, Stopped, short
from deephash_cli.files import (
    atomic_write,
    is_sealed,
    read_json,
    read_sealed,
    reason,
    sha256_file,
    write_bytes,
    write_sealed,
)
from deephash_cli.methods.base import HashingModule
from deephash_cli.models.tensors import load_tensors
from deephash_cli.stopping import Requests, noting
from deephash_cli.training import mid_epoch

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
_SAVE = 1  # request for a checkpoint; larger numbers are exit codes, and also ask the process to end
_SIDECAR_LIMIT = 2**20  # bytes
FORMAT = 2  # of the sidecar; format 1 does not say whose the checkpoint is


class WrongCheckpointError(ArtifactError):
    """A checkpoint that is whole, but of another run or a newer version: it must not be used, nor trained over."""


@dataclass(frozen=True)
class Owner:
    """The run that a checkpoint belongs to.

    Attributes:
        run: Id of the run.
        settings: Digest of the settings that a resumed run must keep, from ``runs.identity``.
        named: A few of these settings by name, for messages.
    """

    run: str
    settings: str
    named: Mapping[str, Any]

    @classmethod
    def of(cls, run: str, settings: Mapping[str, Any], **more: Any) -> "Owner":
        """Return the owner of the checkpoints of a run.

        Args:
            run: Id of the run.
            settings: Configuration of the run as plain values.
            **more: Facts to name in messages in addition to settings, such as the number of classes.
        """
        model = settings.get("model")
        named = {name: settings.get(name) for name in ("method", "bits", "seed")}
        named["model"] = model.get("name") if isinstance(model, Mapping) else None
        return cls(run, runs.identity(settings), {**named, **more})

    def unlike(self, other: "Owner") -> str:
        """Return the id of the run and those of its settings that are different in another run, for a message."""
        values = self.settings_unlike(other)
        return f"run {short(self.run)}" + (f" ({values})" if values else "")

    def settings_unlike(self, other: "Owner") -> str:
        """Return the settings that are different in another run, for a message; "" if there is no difference."""
        differing = [name for name in self.named if name in other.named and self.named[name] != other.named[name]]
        values = ", ".join(f"{name}={short(str(self.named[name]))}" for name in differing)
        if not values and self.settings != other.settings:
            return f"settings with the digest {short(self.settings)[:12]}"
        return values


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
        write_sealed(_sidecar(path), sidecar)

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
        for file in (Path(path), _sidecar(Path(path))):
            file.unlink(missing_ok=True)


def read_checkpoint(path: Path, owner: Owner | None = None, allow_unverified: bool = False) -> dict[str, Any]:
    """Verify a checkpoint that this project wrote, and read it onto the CPU.

    Only tensors and plain values are unpickled.

    Args:
        path: File of the checkpoint.
        owner: Run that the checkpoint must belong to; None for any run.
        allow_unverified: Whether a checkpoint without a sidecar is read, too.

    Returns:
        The checkpoint as Lightning collected it; ``state_dict`` has the tensors by name.

    Raises:
        ArtifactError: If the checkpoint is missing, damaged, of another run, or of a newer format.
    """
    if has_sidecar(path) or not allow_unverified:
        verify_checkpoint(path, owner)
    checkpoint = load_tensors(path, "a checkpoint")
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ArtifactError(f"{path} is not a checkpoint of deephash: it has no state_dict of tensors")
    return checkpoint


def has_sidecar(path: Path) -> bool:
    """Return whether a checkpoint has the file beside it that it is verified by."""
    return _sidecar(path).exists()


def digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a checkpoint: that of its sidecar, or of the file if there is no sidecar.

    Args:
        path: File of a checkpoint that was verified before if it has a sidecar.

    Raises:
        ArtifactError: If the sidecar cannot be read.
    """
    return _read_sidecar(path)["sha256"] if has_sidecar(path) else sha256_file(path)


def verify_checkpoint(path: Path, owner: Owner | None = None) -> Owner | None:
    """Compare a checkpoint with its sidecar, and the run that it belongs to with the one that it must belong to.

    Args:
        path: File of the checkpoint.
        owner: Run that the checkpoint must belong to; None for any run.

    Returns:
        The run that it belongs to; None if the sidecar does not say that, as those of earlier versions.

    Raises:
        WrongCheckpointError: If it belongs to another run, or if its format is a newer one.
        ArtifactError: If one of the two files is missing, or if they disagree.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    sidecar = _read_sidecar(path)
    if sidecar["sha256"] != sha256_file(path):
        raise ArtifactError(f"{path} is damaged: its SHA-256 is not the one in {_sidecar(path).name}")
    found = None
    if isinstance(sidecar.get("run"), str) and isinstance(sidecar.get("settings"), str):
        named = sidecar.get("named")
        found = Owner(sidecar["run"], sidecar["settings"], named if isinstance(named, dict) else {})
    if owner and found and (found.run, found.settings) != (owner.run, owner.settings):
        raise WrongCheckpointError(
            f"{path} must be a checkpoint of {owner.unlike(found)}, got one of {found.unlike(owner)}: put the right "
            "file and its .json back, or remove these two"
        )
    return found


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Read the sidecar of a checkpoint, and check its format before anything else that a newer version may change."""
    file = _sidecar(path)
    if not file.exists():
        raise ArtifactError(
            f"{file} does not exist, so {path.name} cannot be verified: put it back; encode and search use a "
            "checkpoint without it if allow_unverified=true is added"
        )
    sidecar = read_json(file, _SIDECAR_LIMIT)
    version = sidecar.get("format") if isinstance(sidecar, dict) else None
    if type(version) is not int or not isinstance(sidecar.get("sha256"), str):
        raise ArtifactError(f"{file} does not describe a checkpoint")
    if version > FORMAT:
        raise WrongCheckpointError(
            f"{path} was written by a newer deephash ({short(str(sidecar.get('deephash')))}); this is {__version__}: "
            "update deephash, or move this checkpoint away"
        )
    if version >= 2 and not is_sealed(file, _SIDECAR_LIMIT):
        raise ArtifactError(f"{file} has no digest of its own: it was damaged or edited by hand")
    return read_sealed(file, _SIDECAR_LIMIT)


def require_fitting(
    path: Path, state: Mapping[str, torch.Tensor], module: nn.Module, what: str = "the network of this run"
) -> None:
    """Check that the tensors of a checkpoint are those of a network, before any of them is copied into it.

    Args:
        path: File of the checkpoint, for the message.
        state: Tensors by name.
        module: Network or method that the tensors are for.
        what: What the module was built from, for the message.

    Raises:
        ArtifactError: If a tensor is missing, left over, or has another shape.
    """
    expected, found = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (module.state_dict(), state)
    )
    if differing := [name for name in expected | found if expected.get(name) != found.get(name)]:
        name = differing[0]
        more = f" (and {len(differing) - 1} other tensors differ)" if len(differing) > 1 else ""
        raise ArtifactError(
            f"{path} does not fit {what}: {short(name)} must be {_tensor(expected.get(name))}, got "
            f"{_tensor(found.get(name))}{more}: it belongs to a run with other settings, so put the right checkpoint "
            "back, or remove this one with its .json"
        )


def load_into(module: nn.Module, path: Path, owner: Owner | None = None) -> None:
    """Verify a checkpoint, and copy all its tensors into a method, or none of them if one does not fit.

    Args:
        module: Method that the tensors are for.
        path: File of the checkpoint.
        owner: Run that the checkpoint must belong to; None for any run.

    Raises:
        ArtifactError: If the checkpoint is missing, damaged, of another run or a newer format, or does not fit.
    """
    state = read_checkpoint(path, owner)["state_dict"]
    require_fitting(path, state, module)
    module.load_state_dict(state)


def _tensor(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"a tensor of shape {short(str(shape))}"


def epochs_and_steps(path: Path, checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Return the numbers of epochs that were begun and of optimizer steps that were done when a checkpoint was saved.

    Args:
        path: File of the checkpoint, for the message.
        checkpoint: Content of the file.

    Raises:
        ArtifactError: If the checkpoint does not say it.
    """
    epoch, steps = checkpoint.get("epoch"), checkpoint.get("global_step")
    if type(epoch) is not int or type(steps) is not int:
        raise ArtifactError(f"{path} is not a checkpoint to continue from: it has no number of epochs and steps")
    return epoch + 1, steps


def newest_valid(folder: Path, warn: Callable[[str], None], owner: Owner | None = None) -> Path | None:
    """Find the checkpoint to continue from: the last one, or the previous one if the last is missing or damaged.

    Args:
        folder: Folder of the checkpoints; it need not exist.
        warn: Function that is called with a sentence about each damaged checkpoint.
        owner: Run that the checkpoints must belong to; None for any run.

    Returns:
        File of the checkpoint; None if there is no valid one.

    Raises:
        WrongCheckpointError: If a whole checkpoint belongs to another run or has a newer format: training from the
            beginning would write over it.
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                verify_checkpoint(path, owner)
                return path
            except WrongCheckpointError:
                raise
            except ArtifactError as error:
                warn(f"skipped a checkpoint: {error}")
    return None


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


def batches_done(checkpoint: dict[str, Any]) -> int:
    """Return the number of batches of its unfinished epoch after which a checkpoint was saved; 0 at an epoch's end."""
    try:
        return int(checkpoint["callbacks"][EpochCheckpoints.__name__]["unfinished"]["batches"])
    except (KeyError, TypeError):
        return 0


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
        write_bytes(_sidecar(previous), _sidecar(last).read_bytes())
        try:
            last.replace(previous)
        except OSError as error:
            raise ArtifactError(f"could not write {previous}: {reason(error, previous)}") from error


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")

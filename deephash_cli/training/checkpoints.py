"""Checkpoints that are whole or absent, verified when read, and never run code of whoever made them."""

import contextlib
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import CheckpointIO

from deephash_cli import __version__, processes
from deephash_cli.errors import ArtifactError, DivergedError, first_line
from deephash_cli.files import atomic_write, read_json, sha256_file, write_bytes, write_json

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
FORMAT = 1


class VerifiedCheckpointIO(CheckpointIO):
    """Write a checkpoint beside its target and rename it, with its SHA-256 in a sidecar; verify that before reading.

    Lightning's own writer goes through the system's temporary folder and does not flush; its reader misses flipped
    bits.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path`` and ``<path>.json``."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path = Path(path)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
        sidecar = {"format": FORMAT, "deephash": __version__, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(_sidecar(path), sidecar)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint after its digest was verified. Only tensors and plain values are unpickled."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its sidecar."""
        for file in (Path(path), _sidecar(Path(path))):
            file.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that this project wrote.

    Raises:
        ArtifactError: If it is missing, damaged, or of a newer format.
    """
    verify_checkpoint(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise ArtifactError(f"{path} could not be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ArtifactError(f"{path} is not a checkpoint of deephash: it has no state_dict")
    return checkpoint


def digest(path: Path) -> str:
    """SHA-256 of a checkpoint that was verified, from its sidecar."""
    return read_json(_sidecar(path))["sha256"]


def verify_checkpoint(path: Path) -> None:
    """Compare a checkpoint with its sidecar.

    Raises:
        ArtifactError: If one of the two is missing, or they disagree.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    sidecar = read_json(_sidecar(path))
    if not isinstance(sidecar, dict) or not isinstance(sidecar.get("format"), int):
        raise ArtifactError(f"{_sidecar(path)} does not describe a checkpoint")
    if sidecar["format"] > FORMAT:
        raise ArtifactError(
            f"{path} was written by a newer deephash ({sidecar.get('deephash')}); this is {__version__}"
        )
    if sidecar.get("sha256") != sha256_file(path):
        raise ArtifactError(f"{path} is damaged: its SHA-256 is not the one in {_sidecar(path).name}")


def newest_valid(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from: the last one, or the one before it if the last is damaged, or none."""
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                verify_checkpoint(path)
                return path
            except ArtifactError as error:
                warn(f"skipped a checkpoint: {error}")
    return None


class EpochCheckpoints(Callback):
    """Save at the end of an epoch: ``last``, the one before it, and, with a monitored metric, the best.

    Args:
        folder: Where to.
        every_n_epochs: How often; the final epoch is always saved.
        every_seconds: An epoch that ends sooner than this after the last save is not saved, unless it is the best or
            the final one: a short epoch would cost less than its checkpoint.
        monitor: Name of a logged metric whose highest value is the best; ``None`` for none.
    """

    def __init__(self, folder: Path, every_n_epochs: int, every_seconds: float, monitor: str | None):
        self.folder = folder
        self.every_n_epochs = every_n_epochs
        self.every_seconds = every_seconds
        self._saved = -math.inf  # when
        self.monitor = monitor
        self.best = -1.0

    def state_dict(self) -> dict[str, float]:
        """The best value so far, kept in the checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on comparing with the best value so far."""
        self.best = state_dict["best"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the weights are not finite."""
        final = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        # an epoch without validation has no value, or still that of the last one, and neither is better
        value = float(trainer.callback_metrics.get(self.monitor, -1.0)) if self.monitor else -1.0
        better = value > self.best
        old = time.monotonic() - self._saved >= self.every_seconds
        due = final or (old and (trainer.current_epoch + 1) % self.every_n_epochs == 0)
        due = processes.from_first(due)  # whose clock counts
        if not (due or better):
            return
        for name, state in pl_module.state_dict().items():  # statistics of batch normalization overflow first
            if not torch.isfinite(state).all():
                raise DivergedError(
                    f"{name} is not finite after epoch {trainer.current_epoch}: lower optimizer.lr and "
                    f"model.backbone_lr; the last good checkpoint is in {self.folder}"
                )
        self.best = max(self.best, value)
        if better:
            trainer.save_checkpoint(self.folder / BEST)
        if due:
            if trainer.is_global_zero:
                self._keep_previous()
            trainer.save_checkpoint(self.folder / LAST)
            self._saved = time.monotonic()

    def _keep_previous(self) -> None:
        """Make the last checkpoint the previous one, in an order that leaves one of them valid at every moment.

        A damaged one is left to be overwritten: the previous is then what the run goes on from.
        """
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        with contextlib.suppress(ArtifactError):
            verify_checkpoint(last)
            write_bytes(_sidecar(previous), _sidecar(last).read_bytes())
            last.replace(previous)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")

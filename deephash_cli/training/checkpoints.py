"""Checkpoints: a file is complete or absent, is verified when it is read, and cannot run code of its author."""

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
from deephash_cli.errors import ArtifactError, DivergedError, first_line, short
from deephash_cli.files import atomic_write, read_json, sha256_file, write_bytes, write_json

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
FORMAT = 1
_SIDECAR_LIMIT = 2**20  # bytes


class VerifiedCheckpointIO(CheckpointIO):
    """Write checkpoints atomically with their SHA-256 in a sidecar file, and verify the digest before reading.

    A checkpoint is written beside its target and then renamed. Lightning's own writer goes through the system's
    temporary folder and does not flush to disk, and its reader does not notice flipped bits.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, and its size, digest and version of deephash to ``<path>.json``.

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
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
        sidecar = {"format": FORMAT, "deephash": __version__, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(_sidecar(path), sidecar)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Verify and read a checkpoint onto the CPU; see ``read_checkpoint``.

        Args:
            path: File to read.
            map_location: Unused; part of Lightning's interface.
            weights_only: Unused; only tensors and plain values are ever unpickled.

        Raises:
            ArtifactError: If the checkpoint is missing, damaged, or of a newer format.
        """
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its sidecar."""
        for file in (Path(path), _sidecar(Path(path))):
            file.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verify a checkpoint that this project wrote, and read it onto the CPU.

    Only tensors and plain values are unpickled.

    Args:
        path: File of the checkpoint.

    Returns:
        The checkpoint as Lightning collected it; ``state_dict`` has the tensors by name.

    Raises:
        ArtifactError: If the checkpoint is missing, damaged, or of a newer format.
    """
    verify_checkpoint(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make torch.load raise any kind of error
        raise ArtifactError(f"{path} could not be read as a checkpoint: {short(first_line(error))}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ArtifactError(f"{path} is not a checkpoint of deephash: it has no state_dict")
    return checkpoint


def digest(path: Path) -> str:
    """Read the hexadecimal SHA-256 of a checkpoint from its sidecar, without comparing it with the file.

    Args:
        path: File of a checkpoint that was verified before.

    Raises:
        ArtifactError: If the sidecar is missing or cannot be read.
    """
    sidecar = read_json(_sidecar(path), limit=_SIDECAR_LIMIT)
    if not isinstance(sidecar, dict) or not isinstance(sidecar.get("sha256"), str):
        raise ArtifactError(f"{_sidecar(path)} does not describe a checkpoint")
    return sidecar["sha256"]


def verify_checkpoint(path: Path) -> None:
    """Compare a checkpoint with its sidecar.

    Args:
        path: File of the checkpoint.

    Raises:
        ArtifactError: If one of the two files is missing, if they disagree, or if the format is a newer one.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    sidecar = read_json(_sidecar(path), limit=_SIDECAR_LIMIT)
    if not isinstance(sidecar, dict) or not isinstance(sidecar.get("format"), int):
        raise ArtifactError(f"{_sidecar(path)} does not describe a checkpoint")
    if sidecar["format"] > FORMAT:
        raise ArtifactError(
            f"{path} was written by a newer deephash ({short(str(sidecar.get('deephash')))}); this is {__version__}"
        )
    if sidecar.get("sha256") != sha256_file(path):
        raise ArtifactError(f"{path} is damaged: its SHA-256 is not the one in {_sidecar(path).name}")


def newest_valid(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Find the checkpoint to continue from: the last one, or the previous one if the last is missing or damaged.

    Args:
        folder: Folder of the checkpoints; it need not exist.
        warn: Function that is called with a sentence about each damaged checkpoint.

    Returns:
        File of the checkpoint; None if there is no valid one.
    """
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
    """Save checkpoints at the end of epochs: the last, the previous and, with a monitored metric, the best.

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

    def state_dict(self) -> dict[str, float]:
        """Return the best value so far, which Lightning keeps in the checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the best value so far from a checkpoint."""
        self.best = state_dict["best"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint if one is due or if the epoch is the best so far.

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
        due = final or (old and (trainer.current_epoch + 1) % self.every_n_epochs == 0)
        due = processes.from_first(due)  # all processes follow the clock of the first one
        if not (due or better):
            return
        for name, state in pl_module.state_dict().items():  # the statistics of batch normalization can overflow first
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
        """Make the last checkpoint the previous one, in an order that leaves one of the two valid at every moment.

        A damaged last checkpoint is not moved but left to be overwritten, so that the run can still continue from the
        previous one.
        """
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        with contextlib.suppress(ArtifactError):
            verify_checkpoint(last)
            write_bytes(_sidecar(previous), _sidecar(last).read_bytes())
            last.replace(previous)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")

"""Read checkpoints: verified, of a known run, and unable to run code of their author. It imports no Lightning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deephash_cli import __version__, runs
from deephash_cli.errors import ArtifactError, short
from deephash_cli.files import is_sealed, read_json, read_sealed, sha256_file
from deephash_cli.models.tensors import load_tensors

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
_SIDECAR_LIMIT = 2**20  # bytes
FORMAT = 2  # of the sidecar; format 1 does not say whose the checkpoint is
STATE = "EpochCheckpoints"  # name under which a checkpoint has what its callback knows of an unfinished epoch


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
    return sidecar_of(path).exists()


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
        raise ArtifactError(f"{path} is damaged: its SHA-256 is not the one in {sidecar_of(path).name}")
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
    file = sidecar_of(path)
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


def batches_done(checkpoint: dict[str, Any]) -> int:
    """Return the number of batches of its unfinished epoch after which a checkpoint was saved; 0 at an epoch's end."""
    try:
        return int(checkpoint["callbacks"][STATE]["unfinished"]["batches"])
    except (KeyError, TypeError):
        return 0


def sidecar_of(path: Path) -> Path:
    """Return the file that a checkpoint is verified by."""
    return path.with_name(f"{path.name}.json")

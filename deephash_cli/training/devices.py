"""The devices of this machine that compute. It imports no Lightning."""

import torch

from deephash_cli.errors import ConfigError


def require_accelerator(accelerator: str, setting: str) -> None:
    """Refuse a kind of device that this machine does not have. This takes no data and builds no network.

    Args:
        accelerator: Kind of device as Lightning names it.
        setting: Setting that gives it.

    Raises:
        ConfigError: If there is no such device.
    """
    found = {"gpu": torch.cuda.is_available() or torch.backends.mps.is_available()}
    found |= {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found.get(accelerator, True):
        raise ConfigError(no_device(f"{setting}={accelerator}"))


def first_device(accelerator: str) -> torch.device | None:
    """Return the device that Lightning takes if it is asked for one; None for a kind that this module does not know.

    Args:
        accelerator: Kind of device as Lightning names it, which this machine has.
    """
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps", 0)
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("cpu") if accelerator in ("auto", "cpu") else None


def no_device(asked: str) -> str:
    """Return the sentence about a kind of device that this machine does not have.

    Args:
        asked: Setting of the kind of device, with its value.
    """
    group = "trainer" if asked.startswith("trainer.") else "accelerator"
    return f"{asked} finds no such device on this machine: use {group}=auto, which takes what there is, or {group}=cpu"

"""Build the method of a configuration around its network."""

from typing import Any

from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from deephash_cli.errors import ConfigError, first_line
from deephash_cli.methods.base import Hasher, HashingModule
from deephash_cli.models import HashingNetwork
from deephash_cli.training.targets import build, target_of


def is_learned(config: DictConfig) -> bool:
    """Whether the method of a configuration learns by gradient; otherwise it is fitted on features in one step."""
    method = target_of(config.module)
    return isinstance(method, type) and issubclass(method, HashingModule)


def build_module(config: DictConfig, network: HashingNetwork, train_labels: Float[Tensor, "n classes"]) -> Hasher:
    """Build the method of a configuration around a network.

    Args:
        config: Composed configuration.
        network: Network that the method trains.
        train_labels: Multi-hot labels of the training set, in the order of its rows.

    Raises:
        ConfigError: If the method refuses its settings.
        DataError: If the method cannot learn from these labels.
    """
    settings: dict[str, Any] = {"network": network, "train_labels": train_labels, "seed": config.seed}
    if is_learned(config):
        settings |= {name: build(config[name]) for name in ("loss", "optimizer", "scheduler", "augment")}
        settings["backbone_lr"] = config.model.backbone_lr
    try:
        return build(config.module, _partial_=True)(**settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"module: {first_line(error)}") from error

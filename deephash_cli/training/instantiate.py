"""Build the method of a configuration around its network."""

from typing import Any, cast

from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from deephash_cli.errors import ConfigError, first_line
from deephash_cli.methods.base import Hasher, HashingModule
from deephash_cli.models import HashingNetwork
from deephash_cli.training.nesting import FirstOutputs, Nested
from deephash_cli.training.targets import build, target_of


def is_learned(config: DictConfig) -> bool:
    """Whether the method of a configuration learns by gradient; otherwise it is fitted on features in one step."""
    method = target_of(config.module)
    return isinstance(method, type) and issubclass(method, HashingModule)


def is_transductive(config: DictConfig) -> bool:
    """Whether the method of a configuration trains on the whole database and learns the codes that are searched."""
    return bool(getattr(target_of(config.module), "transductive", False))


def build_module(config: DictConfig, network: HashingNetwork, train_labels: Float[Tensor, "n classes"]) -> Hasher:
    """Build the method of a configuration around a network, for all its nested lengths if it has some.

    Args:
        config: Composed configuration.
        network: Network that the method trains.
        train_labels: Multi-hot labels of the training set, in the order of its rows.

    Raises:
        ConfigError: If the method refuses its settings, or cannot be trained at several lengths.
        DataError: If the method cannot learn from these labels.
    """
    if not config.get("nested"):
        return _build_method(config, network, train_labels)
    if not is_learned(config):
        raise ConfigError(f"method={config.method} is fitted in one step and has no nested lengths: leave out nested")
    methods = {}
    for bits in sorted({*config.nested, config.bits}):
        of_length = cast(DictConfig, OmegaConf.merge(config, {"bits": bits}))  # a loss may refer to ${bits}
        methods[bits] = _build_method(of_length, FirstOutputs(network, bits), train_labels)
    return Nested(methods, network=network, train_labels=train_labels, seed=config.seed, **_learning(config))


def _build_method(config: DictConfig, network: HashingNetwork, train_labels: Float[Tensor, "n classes"]) -> Hasher:
    """Build the method of a configuration around a network, for the code length of the network alone."""
    settings: dict[str, Any] = {"network": network, "train_labels": train_labels, "seed": config.seed}
    if is_learned(config):
        settings |= {"loss": build(config.loss), **_learning(config)}
    try:
        return build(config.module, _partial_=True)(**settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"module: {first_line(error)}") from error


def _learning(config: DictConfig) -> dict[str, Any]:
    """Build what a method that learns by gradient needs beside its loss."""
    parts = {name: build(config[name]) for name in ("optimizer", "scheduler", "augment")}
    return {**parts, "backbone_lr": config.model.backbone_lr}

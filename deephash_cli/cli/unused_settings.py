"""Refuse settings that the chosen method does not use: they would change nothing, but be recorded as if they did.

Settings of how any method is run are shared: ``trainer``, ``loader``, ``model``, ``checkpoint``, ``validation``. A
sweep over methods of both kinds may have them.
"""

from collections.abc import Sequence
from typing import Any

from deephash_cli.errors import ConfigError
from deephash_cli.training.method_facts import Facts, facts_of, is_kind_of

# What only a method that learns by gradient uses: groups and nodes of the configuration.
LEARNING = ("loss", "optimizer", "scheduler", "augment", "head", "ema")
_OWN = "deephash_cli."  # where deephash's own losses are; what another loss computes is not known


def refuse_unused(chosen: Any, overrides: Sequence[str], alone: Any) -> None:
    """Refuse settings of a training that its method ignores.

    Args:
        chosen: The configuration of the typed groups, without other settings.
        overrides: Typed overrides, those that choose groups among them.
        alone: The configuration that the method has with its own choices.

    Raises:
        ConfigError: If there is such a setting. The message names it, and what the method uses.
    """
    facts = _facts(chosen)
    if facts.inputs == "features":
        _refuse_learning(chosen, overrides, alone)
    elif facts.inputs == "images":
        for text in overrides:
            if _name(text) == "fit_rows":
                raise ConfigError(
                    f"{text}: method={chosen.method} learns from all training images, in batches; leave out fit_rows"
                )
        _refuse_foreign_loss(chosen, alone)
        if facts.views == 1:
            _refuse_augment(chosen, overrides)


def refuse_searched(chosen: Any, sweeper: Any) -> None:
    """Refuse a search for settings of learning by gradient with a method that is fitted in one step.

    Args:
        chosen: The configuration of the typed groups.
        sweeper: The node ``hydra.sweeper``, whose ``params`` are the settings that a search tries.

    Raises:
        ConfigError: If there is such a setting.
    """
    if _facts(chosen).inputs == "features":
        for name in sweeper.get("params") or ():
            if str(name).split(".")[0] in LEARNING:
                raise ConfigError(f"the search for {name}: {_why_not(chosen)}")


def refuse_nested(config: Any) -> None:
    """Refuse nested lengths that are not shorter than the code, and any for a method that is fitted in one step.

    Args:
        config: The whole configuration of a training.

    Raises:
        ConfigError: If there is such a length.
    """
    lengths = list(config.nested)
    typed = f"nested=[{','.join(map(str, lengths))}]"
    if len(set(lengths)) < len(lengths) or any(length >= config.bits for length in lengths):
        raise ConfigError(f"{typed} must be lengths below bits={config.bits}, each of them once")
    if lengths and _facts(config).inputs == "features":
        raise ConfigError(
            f"{typed}: method={config.method} is fitted in one step, so the first of its bits cannot be trained to be "
            "a code of their own; leave out nested, or train each length alone"
        )


def _facts(chosen: Any) -> Facts:
    """Return what the source of a configuration's method says; without a class, nothing is known."""
    from omegaconf import OmegaConf

    target = OmegaConf.select(chosen, "module._target_")
    if not isinstance(target, str):
        return Facts()
    module, _, class_name = target.rpartition(".")
    return facts_of(module, class_name)


def _refuse_learning(chosen: Any, overrides: Sequence[str], alone: Any) -> None:
    """Refuse settings of learning by gradient, typed or chosen by a recipe, for a method that is fitted in one step."""
    for text in overrides:
        if _name(text).split(".")[0] in LEARNING and text != f"{_name(text)}=none":
            raise ConfigError(f"{text}: {_why_not(alone)}")
    recipes = [text for text in overrides if _name(text) == "experiment"]
    changed = [name for name in LEARNING if chosen.get(name) != alone.get(name)]
    if recipes and changed:
        raise ConfigError(f"{recipes[-1]} sets {', '.join(changed)}: {_why_not(alone)}")


def _why_not(chosen: Any) -> str:
    settings = [f"module.{name}" for name in chosen.module if name != "_target_"][-2:]
    return (
        f"method={chosen.method} is fitted in one step and uses no {', '.join(LEARNING[:-1])} or {LEARNING[-1]}; what "
        f"it uses is in module, such as {' and '.join(settings)}"
    )


def _refuse_foreign_loss(chosen: Any, alone: Any) -> None:
    """Refuse a loss of another method of deephash, because methods call their losses in different ways, or none."""
    from omegaconf import OmegaConf

    for name in ("loss", "optimizer", "scheduler"):
        if chosen.get(name) is None and alone.get(name) is not None:
            raise ConfigError(f"{name}=none: method={chosen.method} learns by gradient and needs one; leave out {name}")
    loss, own = (OmegaConf.select(config, "loss._target_") for config in (chosen, alone))
    if isinstance(loss, str) and isinstance(own, str) and loss.startswith(_OWN) and not is_kind_of(loss, own):
        raise ConfigError(
            f"method={chosen.method} cannot use {loss.rpartition('.')[2]}, the loss of another method: leave out loss, "
            f"and it uses {own.rpartition('.')[2]}"
        )


def _refuse_augment(chosen: Any, overrides: Sequence[str]) -> None:
    """Refuse random changes of images that a frozen backbone never sees: its features are computed once."""
    frozen = chosen.get("model", {}).get("frozen")
    for text in overrides:
        if _name(text) == "model.frozen":
            frozen = text.partition("=")[2].lower() == "true"
    for text in overrides:
        if frozen and _name(text).split(".")[0] == "augment" and text != "augment=none":
            raise ConfigError(
                f"{text}: the features of a frozen backbone are computed once, from images as they are; leave it out, "
                "or let the backbone learn with model.frozen=false"
            )


def _name(setting: str) -> str:
    return setting.lstrip("+~").partition("=")[0]

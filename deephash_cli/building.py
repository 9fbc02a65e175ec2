"""From a node of the configuration to the object that it names, with errors that a user can act on."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from deephash_cli.errors import ConfigError, DeephashError, first_line
from deephash_cli.runs import flatten

TRUSTED = ("deephash_cli", "torch", "torchvision", "pytorch_lightning", "timm")


def build(node: Any, **arguments: Any) -> Any:
    """Instantiate a node; ``None`` gives ``None``.

    Args:
        node: With a ``_target_``. If it is marked ``_partial_``, a function of the remaining arguments comes back.
        **arguments: Of the target, besides those in the node.

    Raises:
        DeephashError: What the target itself raises.
        ConfigError: If the target refuses its arguments or does not exist.
    """
    if node is None:
        return None
    try:
        return instantiate(node, _convert_="all", **arguments)
    except (InstantiationException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, DeephashError):
            cause = cause.__cause__
        if isinstance(cause, DeephashError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | ImportError | AttributeError | OmegaConfBaseException):
            raise ConfigError(f"{node.get('_target_', 'the configuration')}: {first_line(cause)}") from error
        raise


def require_trusted(settings: Mapping[str, Any], also: Sequence[str]) -> None:
    """Refuse settings that come from a run folder and would build something from elsewhere.

    Raises:
        ConfigError: If a ``_target_`` is in none of the trusted packages.
    """
    for name, value in flatten(settings).items():
        package = str(value).split(".")[0]
        if name.endswith("_target_") and package not in (*TRUSTED, *also):
            raise ConfigError(
                f"the run folder wants to build {name}={value}, which is not of {', '.join(TRUSTED)}: if you trust it, "
                f"add allowed_targets=[{package}]"
            )

"""Build the objects that nodes of the configuration name, with errors that a user can act on. It imports no torch."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deephash_cli.errors import ConfigError, DeephashError, first_line
from deephash_cli.runs import escape


def as_yaml(node: DictConfig) -> str:
    """Return a node of the configuration as YAML, resolved, so that OmegaConf reads the same values from it again."""
    return OmegaConf.to_yaml(OmegaConf.create(escape(OmegaConf.to_container(node, resolve=True))))


def build(node: Any, **arguments: Any) -> Any:
    """Build the object that a node of the configuration names.

    Args:
        node: Node with a ``_target_``; None gives None.
        **arguments: Arguments of the target in addition to those in the node.

    Returns:
        The object; for a node that is marked ``_partial_``, a function of the remaining arguments.

    Raises:
        DeephashError: If the target itself raises one.
        ConfigError: If the target refuses its arguments or does not exist.
    """
    if node is None:
        return None
    try:
        plain = OmegaConf.to_container(node, resolve=True)
        # Hydra resolves a node twice, so ${ in the name of a file has to be escaped twice
        return instantiate(OmegaConf.create(escape(escape(plain))), _convert_="all", **arguments)
    except (InstantiationException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, DeephashError):
            cause = cause.__cause__
        if isinstance(cause, DeephashError):
            raise cause from error
        if cause is error:  # Hydra itself refuses the target
            raise ConfigError(" ".join(str(error).split())) from error
        if isinstance(cause, ValueError | TypeError | ImportError | AttributeError | OmegaConfBaseException):
            place, target = node._get_full_key(None), node.get("_target_", "the configuration")
            if isinstance(cause, ImportError | AttributeError):
                place = f"{place}._target_={target}" if place else target
            raise ConfigError(f"{place or target}: {first_line(cause)}") from error
        raise


def target_of(node: DictConfig | None) -> Any:
    """Return the class or function that a node names, without calling it.

    Args:
        node: Node with a ``_target_``; None gives None.

    Raises:
        ConfigError: If the target does not exist.
    """
    return None if node is None else build(node, _partial_=True).func

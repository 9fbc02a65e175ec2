"""Note which values a configuration takes from environment variables, so that they can be hidden."""

import os
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from deephash_cli.hiding import remember

_NAME = "oc.env"


def watch_variables() -> None:
    """Let OmegaConf note every value that ``${oc.env:NAME}`` gives, in this process; it may be called again."""
    OmegaConf.register_new_resolver(_NAME, _noted, replace=True)


def _noted(key: str, *default: Any) -> str | None:
    """Return the value of an environment variable, or the default, as OmegaConf's own resolver does."""
    if key in os.environ:
        remember(key, os.environ[key])
    return oc.env(key, *default)

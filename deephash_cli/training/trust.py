"""Decide what the configuration of a run folder may build, because the folder may come from somebody else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import get_object

from deephash_cli.errors import ConfigError, command

# Packages and modules whose classes and functions any run folder may build: parts of a run, but none that reads, writes
# or downloads a file that the folder chooses. The object that a name refers to must also be defined in one of them:
# deephash_cli.models.os.system is not.
TRUSTED = (
    "deephash_cli.data", "deephash_cli.methods", "deephash_cli.models", "deephash_cli.schedules",
    "deephash_cli.training.loggers", "pytorch_lightning.trainer", "torch.nn", "torch.optim", "torchvision.transforms",
)  # fmt: skip
UNTRUSTED = tuple(
    f"deephash_cli.data.{name}"
    for name in ("download", "features", "identity", "protocol", "restricted_pickle", "text")
)
_SHORT = {  # other names of trusted targets, among them those in runs of version 0.1
    "pytorch_lightning.Trainer": "pytorch_lightning.trainer.trainer.Trainer",
    "deephash_cli.tracking.WandbRun": "deephash_cli.training.loggers.WandbRun",
    "deephash_cli.tracking.csv_logger": "deephash_cli.training.loggers.csv_logger",
    "deephash_cli.tracking.tensorboard_logger": "deephash_cli.training.loggers.tensorboard_logger",
}


def require_trusted(settings: Mapping[str, Any], also: Sequence[str]) -> None:
    """Refuse settings from a run folder if they would build something that deephash does not trust.

    Args:
        settings: Settings as plain values; every ``_target_`` in them is checked, at any depth.
        also: Names of further packages that the user trusts.

    Raises:
        ConfigError: If a ``_target_`` is not trusted.
    """
    for name, target in _targets(settings, ""):
        package = target.split(".")[0]
        if package not in also and not _is_trusted(target):
            raise ConfigError(
                f"the run folder would build {name}={target}, which deephash does not trust by default; if you trust "
                f"it, add {command(f'allowed_targets=[{package}]')}"
            )


def _targets(node: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the value of every ``_target_`` below a node, including those in lists."""
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        path = f"{name}.{key}" if name else str(key)
        if key == "_target_":
            yield path, str(child)
        else:
            yield from _targets(child, path)


def _is_trusted(target: str) -> bool:
    target = _SHORT.get(target, target)
    if not _within(target, TRUSTED) or _within(target, UNTRUSTED):
        return False
    try:
        found = get_object(target)
    except Exception:  # the module cannot be imported, does not have the name, or Hydra blocks it
        return False
    origin = str(getattr(found, "__module__", ""))
    return callable(found) and _within(origin, TRUSTED) and not _within(origin, UNTRUSTED)


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)

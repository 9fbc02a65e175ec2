"""What the configuration of a run folder may build: a run folder may come from somebody else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import get_object

from deephash_cli.errors import ConfigError

# What a run folder from elsewhere may build: parts of a run, but nothing that reads, writes or downloads a file of the
# folder's choice. Whatever such a name leads to must be defined there too: deephash_cli.models.os.system is not.
TRUSTED = (
    "deephash_cli.data", "deephash_cli.methods", "deephash_cli.models", "deephash_cli.schedules",
    "deephash_cli.training.loggers", "pytorch_lightning.trainer", "torch.nn", "torch.optim", "torchvision.transforms",
)  # fmt: skip
UNTRUSTED = tuple(f"deephash_cli.data.{name}" for name in ("download", "features", "protocol", "restricted_pickle"))
_SHORT = {  # other names of the same, among them those of runs of version 0.1
    "pytorch_lightning.Trainer": "pytorch_lightning.trainer.trainer.Trainer",
    "deephash_cli.tracking.WandbRun": "deephash_cli.training.loggers.WandbRun",
    "deephash_cli.tracking.csv_logger": "deephash_cli.training.loggers.csv_logger",
    "deephash_cli.tracking.tensorboard_logger": "deephash_cli.training.loggers.tensorboard_logger",
}


def require_trusted(settings: Mapping[str, Any], also: Sequence[str]) -> None:
    """Refuse settings that come from a run folder and would build something from elsewhere.

    Raises:
        ConfigError: If a ``_target_`` is not one of the trusted kinds.
    """
    for name, target in _targets(settings, ""):
        package = target.split(".")[0]
        if package not in also and not _is_trusted(target):
            raise ConfigError(
                f"the run folder wants to build {name}={target}, which is none of the parts that deephash trusts: if "
                f"you do, add allowed_targets=[{package}]"
            )


def _targets(node: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every ``_target_`` below a node, in lists as well."""
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
    except Exception:  # a module that cannot be imported, a name that it does not have, one that Hydra blocks
        return False
    origin = str(getattr(found, "__module__", ""))
    return callable(found) and _within(origin, TRUSTED) and not _within(origin, UNTRUSTED)


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)

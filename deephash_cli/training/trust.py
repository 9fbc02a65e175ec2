"""Decide what the configuration of a run folder may build, because the folder may come from somebody else.

Every part of a run has its place in a configuration, and only there may it be built: a data set loader in the place of
a network would read other files than those that the user expects, or download some.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.utils import get_object

from deephash_cli.errors import ConfigError, command, one_line, short
from deephash_cli.training.method_facts import is_defined

_LAYERS = ("torch.nn.*",)
_IMAGE_STEPS = ("deephash_cli.data.augment.*", "torch.nn.*", "torchvision.transforms.*")
# What may be built at each place. A place that ends in a dot stands for everything below it. A name that ends in a star
# stands for the public classes that are defined in a package, every other one for itself.
_ALLOWED = {
    "dataset.source": (
        "deephash_cli.data.cifar10.cifar10", "deephash_cli.data.cifar100.cifar100", "deephash_cli.data.coco.coco",
        "deephash_cli.data.csv_table.csv_table", "deephash_cli.data.cub200.cub200",
        "deephash_cli.data.fashion_mnist.fashion_mini", "deephash_cli.data.fashion_mnist.fashion_mnist",
        "deephash_cli.data.fashion_mosaic.fashion_mosaic",
        "deephash_cli.data.food101.food101", "deephash_cli.data.image_folder.folder_of_images",
        "deephash_cli.data.image_folder.image_folder", "deephash_cli.data.image_list.image_list",
        "deephash_cli.data.imagenet100.imagenet100", "deephash_cli.data.mirflickr.mirflickr",
        "deephash_cli.data.nuswide.nuswide", "deephash_cli.data.vectors.vectors", "deephash_cli.data.voc2012.voc2012",
        "deephash_cli.data.webdataset.webdataset",
    ),
    "model.network": ("deephash_cli.models.HashingNetwork",),
    "model.network.": (
        "deephash_cli.models.NoBackbone", "deephash_cli.models.small_cnn", "deephash_cli.models.timm_backbone",
        "deephash_cli.models.torchvision_backbone", *_LAYERS,
    ),
    "module": ("deephash_cli.methods.*",),
    "module.": _LAYERS,
    "loss": ("deephash_cli.methods.*", *_LAYERS),
    "loss.": _LAYERS,
    "optimizer": ("torch.optim.*",),
    "scheduler": (
        "deephash_cli.schedules.constant", "deephash_cli.schedules.cosine", "deephash_cli.schedules.one_cycle",
        "deephash_cli.schedules.stairs", "torch.optim.lr_scheduler.*",
    ),
    "augment": _IMAGE_STEPS,
    "augment.": _IMAGE_STEPS,
    "trainer": ("pytorch_lightning.Trainer", "pytorch_lightning.trainer.trainer.Trainer"),
    "logger": tuple(
        f"deephash_cli.{module}.{name}"
        for module in ("training.loggers", "tracking")  # the second in runs of version 0.1
        for name in ("WandbRun", "csv_logger", "tensorboard_logger")
    ),
}  # fmt: skip
# Arguments of the loaders of data sets, and of backbones, that are paths.
_PATHS = ("root", "file", "train", "query", "database", "labels", "ids", "lists", "classes", "split_file", "weights")
_SOURCES = ("local-dir:", "hf-hub:")  # before the folder or the repository in the name of a network of timm
# Words that some of these take instead of a path.
_NO_PATHS = ("folders", "none", "packaged", "fine", "coarse", "potential", "all38", "lists", "annotations")

_LONGEST = 1000  # letters of a path that are shown


class _Node(NamedTuple):
    """A part of a configuration that would be built."""

    place: str  # dotted name of the node
    target: str
    settings: Mapping[str, Any]


def require_trusted(settings: Mapping[str, Any], also: Sequence[str]) -> None:
    """Refuse settings from a run folder if they would build something that deephash does not trust.

    Args:
        settings: Settings as plain values; every ``_target_`` in them is checked, at any depth, by its place.
        also: Names of further packages that the user trusts, anywhere in the settings.

    Raises:
        ConfigError: If a ``_target_`` is not trusted. The message lists all of them, and the files and folders that the
            settings name.
    """
    refused = [node for node in _nodes(settings, "") if _package(node.target) not in also and not _is_trusted(node)]
    if not refused:
        return
    named = ", ".join(short(f"{node.place}._target_={node.target}".lstrip(".")) for node in refused)
    read = f" (it would read {', '.join(paths)})" if (paths := paths_in(settings)) else ""
    packages = list(dict.fromkeys(_package(node.target) for node in refused))
    if "deephash_cli" in packages:
        remedy = "parts of deephash belong elsewhere, so its configuration was edited or is of another version"
    else:
        listed = ",".join(packages)
        them = "it" if len(refused) == 1 else "them"
        remedy = f"if you trust {them}, add {command(f'allowed_targets=[{listed}]')}"
    raise ConfigError(f"the run folder would build {named}, which deephash does not trust by default{read}; {remedy}")


def require_no_download(settings: Mapping[str, Any]) -> None:
    """Refuse settings that would download a data set although the user did not ask for it in this command.

    Args:
        settings: Settings of a resumed run; its folder cannot decide ``dataset.download``, which counts as the user's.

    Raises:
        ConfigError: If the data set would be downloaded nevertheless.
    """
    dataset = settings["dataset"]
    if dataset["source"].get("download") and not dataset.get("download"):
        raise ConfigError(
            "the run folder would download its data set; if you want that, add dataset.download=true to the command"
        )


def paths_in(settings: Mapping[str, Any]) -> list[str]:
    """List the files and folders that settings from a run folder name to be read, each as ``name=path``.

    Args:
        settings: Settings as plain values.
    """
    dataset, model = (settings.get(name) for name in ("dataset", "model"))
    parts: dict[str, Any] = {}
    if isinstance(dataset, Mapping):
        parts = {"dataset": {"split_file": dataset.get("split_file")}, "dataset.source": dataset.get("source")}
    parts |= {node.place: node.settings for node in _nodes({"model": model}, "")}
    return [
        one_line(f"{place}.{name}={part[name][:_LONGEST]}")
        for place, part in parts.items()
        if isinstance(part, Mapping)
        for name in (*_PATHS, "name")
        if isinstance(part.get(name), str) and _is_path(name, part[name])
    ]


def _is_path(name: str, value: str) -> bool:
    """Whether the value of an argument is a path. The name of a network is one if it says where its weights are."""
    return value.startswith(_SOURCES) if name == "name" else value not in _NO_PATHS


def _nodes(value: Any, place: str) -> Iterator[_Node]:
    """Yield every part with a ``_target_`` below a value, including those in lists, and the value itself."""
    if isinstance(value, Mapping) and "_target_" in value:
        yield _Node(place, str(value["_target_"]), value)
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _nodes(child, f"{place}.{key}" if place else str(key))


def _package(target: str) -> str:
    return target.split(".")[0]


def _is_trusted(node: _Node) -> bool:
    """Whether what a part would build is allowed at its place."""
    below = (place for place in _ALLOWED if place.endswith(".") and node.place.startswith(place))
    allowed = _ALLOWED.get(node.place if node.place in _ALLOWED else next(below, ""), ())
    if _package(node.target) == "deephash_cli" and "_args_" in node.settings:
        return False  # our own parts are named arguments throughout, which is how downloads and paths are recognized
    return node.target in allowed or any(
        _is_class_of(name.removesuffix(".*"), node.target) for name in allowed if name.endswith(".*")
    )


def _is_class_of(package: str, target: str) -> bool:
    """Whether a name is that of a public class which is defined in a package: torch.nn.modules.module.os is not."""
    if not _within(target, package) or any(part.startswith("_") for part in target.split(".")):
        return False
    if _package(target) == "deephash_cli" and is_defined(target):  # not imported: Lightning would take a second
        return True
    try:
        found = get_object(target)
    except Exception:  # the module cannot be imported, does not have the name, or Hydra blocks it
        return False
    return isinstance(found, type) and _within(str(found.__module__), package)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")

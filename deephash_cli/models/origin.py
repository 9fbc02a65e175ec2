"""The origin of a backbone: its architecture, its weights, what these were trained on, and how they expect images."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.errors import ArtifactError, ConfigError, first_line, short

# Data that a part of a tag of timm stands for. Those of ImageNet have its labels, unless the tag says otherwise.
_IMAGENET = {
    "in1k": "ImageNet-1k", "in12k": "ImageNet-12k", "in21k": "ImageNet-21k", "inw21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
}  # fmt: skip
_DATA = _IMAGENET | {
    "lvd142m": "LVD-142M", "lvd1689m": "LVD-1689M", "sat493m": "SAT-493M", "openai": "OpenAI's WIT-400M",
    "laion2b": "LAION-2B", "laion400m": "LAION-400M", "laiona": "LAION-A", "datacompxl": "DataComp-XL",
    "datacomp1b": "DataComp-1B", "dfn2b": "DFN-2B", "dfn5b": "DFN-5B", "dfndr2b": "DFNDR-2B", "webli": "WebLI",
    "metaclip": "MetaCLIP", "metaclip2": "MetaCLIP 2", "merged2b": "Merged-2B", "merged38m": "Merged-38M",
    "m30m": "Merged-30M", "m38m": "Merged-38M", "cc12m": "CC-12M", "yfcc15m": "YFCC-15M", "yfcc100m": "YFCC-100M",
    "ig1b": "Instagram-1B", "jft": "JFT-300M", "sa1b": "SA-1B",
}  # fmt: skip
# Methods that learn from images alone, on ImageNet-1k where the tag names no data.
_WITHOUT_LABELS = ("mae", "dino", "fcmae", "ijepa", "mim")

_ENTRIES: dict[str, tuple[type, ...]] = {
    "name": (str,), "architecture": (str,), "arguments": (dict,), "weights": (str,), "licence": (str, type(None)),
    "pretraining": (str, type(None)), "labelled": (list,), "parameters": (int,),
    "preprocessing": (dict, type(None)), "pooling": (str, type(None)),
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where a backbone comes from, and all that is needed to build it again without its weights.

    Attributes:
        name: Short name, for tables.
        architecture: Name of the architecture in its library.
        parameters: Number of weights, without those of the classifier that was taken off.
        arguments: Arguments of ``timm.create_model``.
        weights: Source of the weights, such as ``none``, ``packaged``, ``hf-hub:timm/...@<revision>`` or
            ``file <name> sha256 <digest>``.
        licence: Licence of the weights; None if it is not known.
        pretraining: Data that the weights were trained on; None for random weights, or if it is not known.
        labelled: Data sets whose labels the weights have seen, such as ``imagenet``.
        preprocessing: Preprocessing of the weights; None if they have none of their own.
        pooling: Pooling of the last feature map, or of the tokens; None if the backbone has no choice of it.
        changed: Settings that change the features and cannot be seen in the modules and weights of the backbone. It
            is no part of the record, which has them elsewhere.
    """

    name: str
    architecture: str
    parameters: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "none"
    licence: str | None = None
    pretraining: str | None = None
    labelled: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    pooling: str | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, backbone: nn.Module) -> "Origin":
        """Return the origin of a backbone: its own, or for one that does not say, its class with random weights."""
        own = getattr(backbone, "origin", None)
        name = type(backbone).__name__
        return own if isinstance(own, cls) else cls(name, name, count(backbone))

    def record(self) -> dict[str, Any]:
        """Return the origin as plain values for the record of a run and the description of its codes."""
        values = {name: getattr(self, name) for name in _ENTRIES}
        preprocessing = self.preprocessing and self.preprocessing.record()
        return values | {
            "arguments": dict(self.arguments),
            "labelled": list(self.labelled),
            "preprocessing": preprocessing,
        }

    @classmethod
    def from_record(cls, record: Any) -> "Origin":
        """Return the origin of a record that ``record`` made, and that may have been edited since.

        Raises:
            ArtifactError: If an entry is missing or has another type.
        """
        try:
            for name, kinds in _ENTRIES.items():
                if not isinstance(record[name], kinds):
                    raise TypeError(f"{name} has another type")
            if ":" in record["architecture"]:  # a name of the hub or of a folder would be looked up there
                raise ValueError(f"{short(record['architecture'])} is no architecture")
            values: dict[str, Any] = {name: record[name] for name in _ENTRIES}
            if values["preprocessing"] is not None:
                values["preprocessing"] = Preprocessing.from_record(values["preprocessing"])
            values["labelled"] = tuple(values["labelled"])
            return cls(**values)
        except (LookupError, TypeError, ValueError, ConfigError) as error:
            raise ArtifactError(
                f"the record of the backbone is damaged or was edited by hand: {first_line(error)}"
            ) from error


def count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def readable(name: str) -> str:
    """Return a network's name without its source, owner, folders and revision, to be shown in tables.

    Args:
        name: Name as timm takes it, such as ``resnet18.a1_in1k``, ``hf-hub:org/name@revision`` or
            ``local-dir:<folder>``.
    """
    source, separator, place = name.partition(":")
    if not separator:
        return name
    if source.replace("_", "-") == "hf-hub":
        place = place.partition("@")[0]
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1] or name


def trained_on(tag: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the data that weights of timm were trained on, and those among them whose labels were used.

    Args:
        tag: Tag of the weights, such as ``in1k`` or ``augreg_in21k_ft_in1k``.

    Returns:
        Names of the data in the order of their use, None if the tag names none; and the labelled data sets.
    """
    parts = tag.split("_")
    without = next((part for part in parts if part in _WITHOUT_LABELS), None)
    names = list(dict.fromkeys(_DATA[part] for part in parts if part in _DATA))
    if without and not names:
        names = [_IMAGENET["in1k"]]
    tuned = parts[parts.index("ft") :] if "ft" in parts else []
    seen = any(part in _IMAGENET for part in (tuned if without else parts))
    return ", then ".join(names) or None, ("imagenet",) if seen else ()

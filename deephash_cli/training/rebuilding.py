"""Build the network of a run again, whose weights a checkpoint has. It imports no Lightning."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from deephash_cli.errors import ArtifactError
from deephash_cli.models import HashingNetwork, Origin
from deephash_cli.models.timm_networks import SOURCES
from deephash_cli.runs import escape
from deephash_cli.training.targets import build

_TIMM = "deephash_cli.models.timm_backbone"
# Settings of a network that take their values from the weights if they are null, and their names in a record.
_PREPROCESSING = {
    "image_size": "size", "mean": "mean", "std": "std", "crop": "crop", "crop_mode": "crop_mode",
    "interpolation": "interpolation",
}  # fmt: skip
# What a backbone that was built without its weights takes over from the record.
_OF_THE_WEIGHTS = ("name", "weights", "licence", "pretraining", "labelled")


def network_without_weights(
    network: Mapping[str, Any], bits: int, record: Any, vectors: str | None = None
) -> HashingNetwork:
    """Build the network of a run with random weights, because a checkpoint has the weights.

    Neither the hub nor a folder of weights is read: the record says what they said when the run began.

    Args:
        network: The node ``model.network`` of the run's configuration, as plain values.
        bits: Code length.
        record: Entry ``backbone`` of the run's record; None for runs of earlier versions, which do not have it.
        vectors: File whose length of vectors is used if the run hashed vectors; None uses the file of the run.

    Raises:
        ArtifactError: If the record is damaged, or does not say what it must.
        ConfigError: If the network cannot be built.
        KeyError: If the configuration is not that of a run.
    """
    node = copy.deepcopy(dict(network))
    origin = None if record is None else Origin.from_record(record)
    if origin and origin.preprocessing:
        used = origin.preprocessing.record()
        node |= {name: used[entry] for name, entry in _PREPROCESSING.items() if name in node and node[name] is None}
    backbone = node["backbone"]
    is_random = backbone.get("weights", "none") == "none"
    _leave_out_weights(backbone)
    if vectors is not None and "file" in backbone:
        backbone["file"] = vectors
    if backbone.get("_target_") == _TIMM:
        _name_by_architecture(backbone, origin)
    built = build(cast(DictConfig, OmegaConf.create(escape(node))), bits=bits)
    known = origin or (built.origin if is_random else replace(built.origin, weights="not recorded"))
    built.backbone.origin = replace(built.origin, **{name: getattr(known, name) for name in _OF_THE_WEIGHTS})
    return built


def _leave_out_weights(node: Any) -> None:
    """Have a backbone and all its parts built with random weights."""
    if isinstance(node, dict) and isinstance(node.get("weights"), str):
        node["weights"] = "none"
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _leave_out_weights(child)


def _name_by_architecture(backbone: dict[str, Any], origin: Origin | None) -> None:
    """Have timm build the architecture that a record names, without asking the hub or a folder what that is."""
    if origin is not None:
        backbone |= {"name": origin.architecture, "arguments": dict(origin.arguments), "global_pool": origin.pooling}
    elif str(backbone.get("name")).partition(":")[0] in SOURCES:
        raise ArtifactError(
            f"the record of the run does not say which architecture {backbone['name']} is: it was edited by hand"
        )

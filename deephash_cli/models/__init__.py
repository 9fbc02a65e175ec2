"""Hashing networks and their backbones. The configurations of runs refer to these names, so they must not change."""

from deephash_cli.models.backbones import (
    PACKAGED_WEIGHTS,
    NoBackbone,
    SmallCNN,
    small_cnn,
    timm_backbone,
    torchvision_backbone,
)
from deephash_cli.models.network import (
    Backbone,
    HashingNetwork,
    Standardization,
    packed_codes,
)

__all__ = [
    "PACKAGED_WEIGHTS",
    "Backbone",
    "HashingNetwork",
    "NoBackbone",
    "SmallCNN",
    "Standardization",
    "packed_codes",
    "small_cnn",
    "timm_backbone",
    "torchvision_backbone",
]

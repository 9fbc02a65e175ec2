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
from deephash_cli.models.precision import PRECISIONS, computed_features, warn_if_slower

__all__ = [
    "PACKAGED_WEIGHTS",
    "PRECISIONS",
    "Backbone",
    "HashingNetwork",
    "NoBackbone",
    "SmallCNN",
    "Standardization",
    "computed_features",
    "packed_codes",
    "small_cnn",
    "timm_backbone",
    "torchvision_backbone",
    "warn_if_slower",
]

"""Hashing networks and their backbones. The configurations of runs refer to these names, so they must not change."""

from deephash_cli.models.backbones import NoBackbone, SmallCNN, small_cnn, torchvision_backbone
from deephash_cli.models.network import (
    Backbone,
    HashingNetwork,
    Standardization,
    packed_codes,
)
from deephash_cli.models.origin import Origin, readable
from deephash_cli.models.precision import PRECISIONS, computed_features, warn_if_slower
from deephash_cli.models.timm_networks import timm_backbone
from deephash_cli.models.weights import PACKAGED_WEIGHTS

__all__ = [
    "PACKAGED_WEIGHTS",
    "PRECISIONS",
    "Backbone",
    "HashingNetwork",
    "NoBackbone",
    "Origin",
    "SmallCNN",
    "Standardization",
    "computed_features",
    "packed_codes",
    "readable",
    "small_cnn",
    "timm_backbone",
    "torchvision_backbone",
    "warn_if_slower",
]

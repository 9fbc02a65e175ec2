"""Hashing networks. The names here stand in the configuration of every run, so they stay."""

from deephash_cli.models.network import (
    PACKAGED_WEIGHTS,
    Backbone,
    HashingNetwork,
    NoBackbone,
    SmallCNN,
    Standardization,
    packed_codes,
    small_cnn,
    timm_backbone,
    torchvision_backbone,
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

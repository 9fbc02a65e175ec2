"""Networks: a backbone, an optional hidden layer and a hash layer, giving continuous codes ``u (n, bits)``."""

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import functional as transforms

from deephash_cli import processes
from deephash_cli.errors import DivergedError
from deephash_cli.retrieval.codes import binarize, pack


@runtime_checkable
class Backbone(Protocol):
    """What a hashing network needs to know of a backbone: the length of the feature vectors that it returns."""

    num_features: int


class HashingNetwork(nn.Module):
    """Backbone, optional hidden layer, hash layer.

    Args:
        backbone: Module from images ``(n, 3, s, s)`` to features ``(n, backbone.num_features)``.
        bits: Code length.
        image_size: Side ``s`` in pixels that images are resized to.
        mean: Subtracted from each channel of images scaled to [0, 1].
        std: Divides each channel after that.
        frozen: Keep the backbone's weights and statistics as they are. Its features can then be computed once and kept.
        frozen_norm: Keep the statistics of the backbone's batch normalization as they are, although its weights learn:
            those of a large data set are better than those of small batches.
        standardize: Bring each feature to mean 0 and variance 1 (batch statistics while training, running ones after).
        hidden_units: Width of the layer between backbone and hash layer; 0 for none.
        dropout: Share of hidden units dropped while training.
        channels_last: Memory format of images; ``True`` is faster on recent GPUs and CPUs.
        mirrored: Whether the features of an image are the mean of its own and of its mirror image's; not while its
            backbone learns. Twice the time to encode.
    """

    def __init__(
        self,
        backbone: nn.Module,
        bits: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        frozen: bool,
        frozen_norm: bool,
        standardize: bool,
        hidden_units: int,
        dropout: float,
        channels_last: bool,
        mirrored: bool,
    ):
        super().__init__()
        self.backbone = backbone
        self.bits = bits
        self.image_size = image_size
        self.mean, self.std = list(mean), list(std)
        self.frozen = frozen
        self.frozen_norm = frozen_norm
        self.mirrored = mirrored
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        width = cast(Backbone, backbone).num_features
        layers: list[nn.Module] = [Standardization(width, affine=False)] if standardize else []
        if hidden_units:
            layers += [nn.Linear(width, hidden_units), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden_units
        self.hidden: nn.Module = nn.Sequential(*layers)
        self.hash_layer: nn.Module = nn.Linear(width, bits)
        if frozen:
            self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "HashingNetwork":
        """Set training mode, except for a frozen backbone or statistics that must not move."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.frozen_norm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def preprocess(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n 3 s s"]:
        """Resize the shorter side to ``image_size``, crop the centre, scale to [0, 1], normalise. Grey becomes RGB."""
        x = images.to(torch.float32) / 255
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = transforms.resize(x, [self.image_size], antialias=True)
            x = transforms.center_crop(x, [self.image_size, self.image_size])
        x = x.expand(-1, 3, -1, -1)
        return transforms.normalize(x, self.mean, self.std).to(memory_format=self.memory_format)

    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
        """Backbone features of images."""
        x = self.preprocess(images)
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            features = self.backbone(x)
            if self.mirrored and not self.backbone.training:
                features = (features + self.backbone(x.flip(-1))) / 2
        return features

    def forward(self, inputs: UInt8[Tensor, "n c h w"] | Float[Tensor, "n features"]) -> Float[Tensor, "n bits"]:
        """Continuous codes of images, or of backbone features that were computed before."""
        features = inputs if inputs.ndim == 2 else self.features(inputs)
        return self.hash_layer(self.hidden(features))

    def new_layers(self) -> list[nn.Parameter]:
        """Parameters above the backbone, which start from random values."""
        return [*self.hidden.parameters(), *self.hash_layer.parameters()]

    def backbone_digest(self) -> str:
        """SHA-256 of everything that a feature depends on: the backbone's structure and weights, and ``preprocess``."""
        digest = hashlib.sha256(repr((self.image_size, self.mean, self.std, self.mirrored)).encode())
        digest.update(repr(self.backbone).encode())
        for name, tensor in self.backbone.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class Standardization(nn.BatchNorm1d):
    """Batch normalization over the batches of all processes; alone, what it inherits.

    ``torch.nn.SyncBatchNorm`` is the same on GPUs, and refuses CPUs.
    """

    def forward(self, input: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:  # noqa: A002
        """Features of mean 0 and variance 1."""
        if not self.training or processes.count() == 1:
            return super().forward(input)
        n = processes.sum_of_all(torch.tensor(float(len(input)), device=input.device))
        mean = processes.sum_of_all(input.float().sum(dim=0)) / n
        centred = input - mean
        variance = processes.sum_of_all(centred.square().sum(dim=0)) / n
        with torch.no_grad():
            for running, value in ((self.running_mean, mean), (self.running_var, variance * n / (n - 1))):
                cast(Tensor, running).lerp_(value, cast(float, self.momentum))
            cast(Tensor, self.num_batches_tracked).add_(1)
        return centred * (variance + self.eps).rsqrt()


def packed_codes(u: Float[Tensor, "n bits"]) -> UInt8[np.ndarray, "n bytes"]:
    """Binary codes of a network's output.

    Raises:
        DivergedError: If the output is not a number.
    """
    try:
        return pack(binarize(u.numpy()))
    except ValueError as error:
        raise DivergedError(
            f"the network gives no codes ({error}): lower optimizer.lr and model.backbone_lr"
        ) from error

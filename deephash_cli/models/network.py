"""Hashing networks: a backbone, an optional hidden layer and a hash layer, giving continuous codes ``u (n, bits)``."""

import contextlib
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from deephash_cli import processes
from deephash_cli.console import warn
from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.errors import ConfigError, DivergedError, short
from deephash_cli.models.origin import Origin
from deephash_cli.retrieval.codes import binarize, pack

_EARLIER = {"crop": 1.0, "crop_mode": "square", "interpolation": "bilinear"}


@runtime_checkable
class Backbone(Protocol):
    """Interface that a hashing network requires of a backbone: ``num_features``, the length of a feature vector."""

    num_features: int


class HashingNetwork(nn.Module):
    """A network that maps images to continuous codes: backbone, optional hidden layer, hash layer.

    Args:
        backbone: Module from images ``(n, 3, s, s)`` to features ``(n, backbone.num_features)``.
        bits: Code length.
        image_size: Side ``s`` in pixels of the backbone's input. None, here and for the other five settings of the
            preprocessing, means what the weights of the backbone were trained with.
        mean: Values for the red, green and blue channels, subtracted from images scaled to [0, 1].
        std: Values by which the three channels are divided after that.
        frozen: Whether the backbone keeps its weights and statistics. Its features can then be computed once and kept.
        frozen_norm: Whether the batch normalization of the backbone keeps its statistics although its weights learn.
            The statistics of a large data set are better than those of small batches.
        standardize: Whether each feature is brought to mean 0 and variance 1, with the statistics of the batch during
            training and running statistics afterwards.
        hidden_units: Width of the hidden layer between backbone and hash layer; 0 for no hidden layer.
        dropout: Share of hidden units dropped during training, in [0, 1].
        channels_last: Whether images are stored channels last, which is faster on recent GPUs and CPUs.
        mirrored: Whether the features of an image are the mean of its own and of those of its mirror image, except in
            a backbone that is being trained. Encoding takes twice the time.
        crop: Share of the resized image that is kept; see ``Preprocessing``. The defaults of this and the next two are
            what runs of earlier versions did, whose configurations do not have them.
        crop_mode: Way of cropping: ``center``, ``squash`` or ``square``.
        interpolation: Filter that resizes: ``bilinear`` or ``bicubic``.
        output_norm: Whether each output is brought to mean 0 and variance 1, as ``standardize`` does for features. It
            is off in runs of earlier versions.

    Attributes:
        preprocessing: The six settings of the preprocessing that are used.

    Raises:
        ConfigError: If a setting of the preprocessing is None and the backbone has none of its own.
    """

    def __init__(
        self,
        backbone: nn.Module,
        bits: int,
        image_size: int | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        frozen: bool,
        frozen_norm: bool,
        standardize: bool,
        hidden_units: int,
        dropout: float,
        channels_last: bool,
        mirrored: bool,
        crop: float | None = 1.0,
        crop_mode: str | None = "square",
        interpolation: str | None = "bilinear",
        output_norm: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.bits = bits
        origin = Origin.of(backbone)
        given = {"size": image_size, "crop": crop, "crop_mode": crop_mode, "interpolation": interpolation}
        self.preprocessing = _chosen(origin, {**given, "mean": mean, "std": std})
        if getattr(backbone, "takes_images", True):
            origin = replace(origin, preprocessing=self.preprocessing)
        backbone.origin = origin  # type: ignore[assignment]
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
        self.hash_layer: nn.Module = nn.Linear(width, bits, bias=not output_norm)
        if output_norm:
            self.hash_layer = nn.Sequential(self.hash_layer, Standardization(bits, affine=False))
        if frozen:
            self.backbone.requires_grad_(False)

    @property
    def origin(self) -> Origin:
        """Origin of the backbone, with the preprocessing that is used."""
        return Origin.of(self.backbone)

    @property
    def image_size(self) -> int:
        """Side in pixels of the backbone's input."""
        return self.preprocessing.size

    def train(self, mode: bool = True) -> "HashingNetwork":
        """Set training or evaluation mode, except for a frozen backbone or frozen batch normalization.

        Args:
            mode: True for training mode, False for evaluation mode. Frozen parts stay in evaluation mode.
        """
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.frozen_norm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def preprocess(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n 3 s s"]:
        """Resize and crop as the weights expect, scale to [0, 1] and normalise. Grey becomes RGB.

        Images that already have the size of the input are neither resized nor cropped.

        Args:
            images: Pixels from 0 to 255, with 1 or 3 channels.
        """
        x = images.to(torch.float32) / 255
        form = self.preprocessing
        if x.shape[-2:] != (form.size, form.size):
            x = _central(self._resized(x), form.size)
        x = x.expand(-1, 3, -1, -1)
        channels = _kept_channels if x.is_cuda else _channels
        mean, std = (channels(tuple(values), x.device) for values in (form.mean, form.std))
        return x.sub(mean).div_(std).to(memory_format=self.memory_format)

    def _resized(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        """Resize images to what the crop is taken from."""
        form = self.preprocessing
        height, width = form.resized_sides(*x.shape[-2:])
        if form.interpolation == "bilinear":  # in one step, as in earlier versions
            return _interpolated(x, height, width, "bilinear")
        for sides in ((x.shape[-2], width), (height, width)):  # Pillow cuts off what overshoots after each direction
            x = _interpolated(x, *sides, "bicubic").clamp(0, 1)
        return x

    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
        """Compute the backbone features of images with pixels from 0 to 255; a frozen backbone gets no gradient."""
        x = self.preprocess(images)
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            features = self.backbone(x)
            if self.mirrored and not self.backbone.training:
                features = (features + self.backbone(x.flip(-1))) / 2
        return features

    def forward(self, inputs: UInt8[Tensor, "n c h w"] | Float[Tensor, "n features"]) -> Float[Tensor, "n bits"]:
        """Compute the continuous codes of images, or of backbone features that were computed before.

        Args:
            inputs: Images with pixels from 0 to 255, or features, told apart by their number of dimensions.
        """
        features = inputs if inputs.ndim == 2 else self.features(inputs)
        return self.hash_layer(self.hidden(features))

    def new_layers(self) -> list[nn.Parameter]:
        """Return the parameters of the layers above the backbone, which start from random values."""
        return [*self.hidden.parameters(), *self.hash_layer.parameters()]

    def backbone_digest(self) -> str:
        """Return the hexadecimal SHA-256 of all that a feature depends on: backbone, its weights and preprocessing."""
        form = self.preprocessing
        digest = hashlib.sha256(repr((form.size, list(form.mean), list(form.std), self.mirrored)).encode())
        digest.update(repr(self.backbone).encode())
        # What earlier versions did not have is left out where it has their values, so that their caches stay valid
        geometry = {"crop": float(form.crop), "crop_mode": form.crop_mode, "interpolation": form.interpolation}
        more = {**self.origin.changed, **(geometry if geometry != _EARLIER else {})}
        if more:
            digest.update(repr(sorted(more.items())).encode())
        for name, tensor in self.backbone.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _interpolated(x: Float[Tensor, "n c h w"], height: int, width: int, mode: str) -> Float[Tensor, "n c height width"]:
    """Resize images, antialiased, as torchvision does to the bit; importing that takes longer than a search."""
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode=mode, align_corners=False, antialias=True)


def _central(x: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """Cut out the central square of images that are not smaller than it."""
    top, left = (round((side - size) / 2) for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def _chosen(origin: Origin, given: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that is given, with that of the weights for each setting that is None.

    Raises:
        ConfigError: If a setting is None and the backbone has none of its own, or if one is not supported.
    """
    own = origin.preprocessing
    if own is None and (missing := [name for name, value in given.items() if value is None]):
        setting = "model.image_size" if missing[0] == "size" else f"model.network.{missing[0]}"
        raise ConfigError(
            f"{setting} must be given, because the weights of {origin.name} have no preprocessing of theirs"
        )
    values: dict[str, Any] = {name: getattr(own, name) if value is None else value for name, value in given.items()}
    values |= {name: tuple(values[name]) for name in ("mean", "std")}
    chosen = Preprocessing(**values)
    chosen.require_supported()
    return chosen


def _channels(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "c 1 1"]:
    """Return a number for each channel, on a device."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


@functools.cache
def _kept_channels(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "c 1 1"]:
    """Return the same, copied to the device only once.

    A copy waits until a GPU has finished all that it was given, so that the host could not prepare the next step.
    """
    with torch.inference_mode(False):  # kept for training even if it is made while encoding
        return _channels(values, device)


class Standardization(nn.BatchNorm1d):
    """Batch normalization with statistics over the batches of all processes; ``BatchNorm1d`` if there is only one.

    ``torch.nn.SyncBatchNorm`` computes the same on GPUs but does not support CPUs.
    """

    def forward(self, input: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:  # noqa: A002
        """Bring each feature to mean 0 and variance 1, in training by batch statistics, otherwise by running ones."""
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


def packed_codes(u: Float[Tensor, "n bits"], ids: Sequence[str] | None = None) -> UInt8[np.ndarray, "n bytes"]:
    """Binarize and pack the continuous codes that a network gives.

    Args:
        u: Continuous codes on the CPU. Infinite values keep their sign; a warning says once that there are any.
        ids: Ids of the rows, for the message about NaN; None if they have none.

    Returns:
        Packed codes, bit i in byte i//8 at position i%8, padding bits 0.

    Raises:
        DivergedError: If the output is NaN.
    """
    if u.isinf().any():
        _warn_of_infinity()
    try:
        return pack(binarize(u.numpy()))
    except ValueError as error:
        first = "" if ids is None else f" for {short(ids[int(u.isnan().any(dim=1).int().argmax())])}"
        raise DivergedError(
            f"the network's output{first} cannot be binarized ({error}): lower optimizer.lr and model.backbone_lr"
        ) from error


@functools.cache
def _warn_of_infinity() -> None:
    warn("some outputs of the network are infinite: their signs become bits, but the weights are probably useless")

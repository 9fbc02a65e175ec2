"""Backbones: networks of torchvision, a small one, and none for data sets of vectors."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.cache import cache_folder
from deephash_cli.console import say
from deephash_cli.data import array_file
from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.errors import ConfigError
from deephash_cli.models import weights as files
from deephash_cli.models.origin import Origin, count
from deephash_cli.npy import FLOATS


class NoBackbone(nn.Identity):
    """Identity in place of a backbone, for a data set of vectors; its ``num_features`` is the length of a vector.

    Args:
        file: A .npy, .mat or HDF5 file of vectors ``(n, d)``, of which only the shape is read; None is an error.

    Raises:
        ConfigError: If ``file`` is None, or is HDF5 and h5py is not installed.
        ArtifactError: If the file is missing or holds anything else.
    """

    takes_images = False

    def __init__(self, file: str | None):
        super().__init__()
        if file is None:
            raise ConfigError("model=vectors needs the vectors of dataset=vectors: set dataset.vectors=<file.npy>")
        self.num_features = int(array_file.shape(file, "vectors", (2,), FLOATS)[1])
        self.origin = Origin("vectors", "none", 0)


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
        self.origin = Origin("small_cnn", "small_cnn", count(self))

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
    published: Any = cast(Any, get_model_weights(name)).DEFAULT
    origin = Origin(name, name, 0, preprocessing=_preprocessing(published))
    if weights == "auto":
        file = cache_folder() / "weights" / published.url.rsplit("/", 1)[-1]
        if not file.exists():
            files.download(name, published.url, file)
        files.load_by_name(network, file)
        origin = replace(
            origin,
            weights=f"torchvision {published}",
            licence="bsd-3-clause",
            pretraining="ImageNet-1k",
            labelled=("imagenet",),
        )
    elif weights == "packaged":
        files.packaged(name)
    elif weights != "none":
        files.load_by_name(network, Path(weights))
        origin = replace(origin, weights=files.described(Path(weights)))
        say(f"weights of {Path(weights).name}, preprocessing of torchvision's {name}: {origin.preprocessing}")
    head = "classifier" if hasattr(network, "classifier") else "fc"
    last = getattr(network, head)
    if isinstance(last, nn.Sequential):
        network.num_features = last[-1].in_features
        setattr(network, head, last[:-1])
    else:
        network.num_features = last.in_features
        setattr(network, head, nn.Identity())
    network.origin = replace(origin, parameters=count(network))
    return network


def _preprocessing(published: Any) -> Preprocessing:
    """Return the preprocessing of published weights of torchvision, whose crop share is given in pixels."""
    steps = published.transforms()
    (size,), (resized,) = steps.crop_size, steps.resize_size
    # Rounded downwards: a share that is a little too large would make the resized image a pixel smaller
    crop = math.floor(1e6 * size / resized) / 1e6
    return Preprocessing(size, crop, "center", steps.interpolation.value, tuple(steps.mean), tuple(steps.std))

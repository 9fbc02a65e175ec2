"""Layers that classic methods fit instead of a learned hash layer, and the linear algebra to fit them."""

from typing import Literal

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.errors import ConfigError


class FeatureScaling(nn.Module):
    """Scale features before a method sees them.

    Args:
        width: Length d of a feature vector.
        scaling: ``none``; ``unit``, each vector to length 1; ``centred_unit``, the mean of the training set subtracted,
            then each vector to length 1; ``standard``, each feature to mean 0 and variance 1.

    Raises:
        ValueError: If ``scaling`` is not one of these.
    """

    def __init__(self, width: int, scaling: Literal["none", "unit", "centred_unit", "standard"]):
        super().__init__()
        if scaling not in ("none", "unit", "centred_unit", "standard"):
            raise ValueError(f"scaling must be none, unit, centred_unit or standard, got {scaling!r}")
        self.scaling = scaling
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.mean: Tensor
        self.scale: Tensor

    def fit(self, x: Float[Tensor, "n d"]) -> None:
        """Store what the scaling needs of the training set. A feature that is constant there becomes 0."""
        if self.scaling in ("none", "unit"):
            return
        std, mean = torch.std_mean(x.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        if self.scaling == "standard":
            self.scale.copy_(torch.where(std > 1e-6, 1 / std, 0.0))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the scaled features."""
        if self.scaling in ("unit", "centred_unit"):
            return nn.functional.normalize(x - self.mean)
        return (x - self.mean) * self.scale


class Projection(nn.Module):
    """The encoder of every linear method, ``u = (x - mean) W``.

    Args:
        width: Length d of a feature vector.
        bits: Code length K.
    """

    def __init__(self, width: int, bits: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(width, bits))
        self.register_buffer("mean", torch.zeros(width))
        self.weight: Tensor
        self.mean: Tensor

    def set(self, weight: Float[np.ndarray, "d bits"], mean: Float[np.ndarray, " d"]) -> None:
        """Store the fitted weight and mean."""
        self.weight.copy_(torch.from_numpy(weight))
        self.mean.copy_(torch.from_numpy(mean))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Return continuous codes."""
        return (x - self.mean) @ self.weight


class RBF(nn.Module):
    """Similarity to anchors, ``exp(-gamma |x - a|^2)``, used as nonlinear features by KLSH, KSH, SDH and COSDISH.

    Args:
        width: Length d of a feature vector.
        anchors: Number of anchors.
    """

    def __init__(self, width: int, anchors: int):
        super().__init__()
        self.register_buffer("anchors", torch.zeros(anchors, width))
        self.register_buffer("gamma", torch.zeros(()))
        self.anchors: Tensor
        self.gamma: Tensor

    def set(self, anchors: Float[np.ndarray, "m d"], gamma: float) -> None:
        """Store the anchors and the kernel's ``gamma``."""
        self.anchors.copy_(torch.from_numpy(anchors))
        self.gamma.fill_(gamma)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Return the kernel values with every anchor."""
        squared = x.square().sum(1, keepdim=True) - 2 * x @ self.anchors.T + self.anchors.square().sum(1)
        return torch.exp(-self.gamma * squared.clamp(min=0))


def signs(u: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return codes of +1 and -1 for an array. Zero becomes +1, as in `losses.signs` for tensors."""
    return np.where(u >= 0, 1.0, -1.0)


def random_rotation(bits: int, rng: np.random.Generator) -> Float[np.ndarray, "bits bits"]:
    """Draw an orthogonal matrix uniformly; for one bit, return the identity."""
    return scipy.stats.ortho_group.rvs(bits, random_state=rng) if bits > 1 else np.ones((1, 1))


def inverse_root(gram: Float[np.ndarray, "k k"], smallest: float) -> Float[np.ndarray, "k k"]:
    """Return ``G^-1/2`` for a symmetric matrix G.

    Args:
        gram: The matrix G.
        smallest: Smallest eigenvalue that is used, as a share of the largest; smaller ones are rounding errors.
    """
    values, vectors = scipy.linalg.eigh(gram)
    kept = values > smallest * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T


def squared_distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Return the squared Euclidean distance of every pair of rows."""
    return np.maximum(np.square(x).sum(1)[:, None] - 2 * x @ y.T + np.square(y).sum(1), 0)


def gaussian_gamma(squared: Float[np.ndarray, "n m"], sigma: float) -> float:
    """Return ``gamma`` of `RBF` for a width of ``sigma`` times the median distance: ``1 / (2 (sigma median)^2)``.

    If the median is 0, the width is 1.

    Args:
        squared: Squared distances of training images from anchors.
        sigma: Width of the kernel, as a multiple of the median distance.
    """
    width = sigma * float(np.sqrt(np.median(squared))) or 1.0
    return 1 / (2 * width**2)


def principal_directions(
    x: Float[np.ndarray, "n d"], count: int, what: str
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d count"], Float[np.ndarray, " count"]]:
    """Return the mean, the leading eigenvectors of the covariance, and the variances along them, largest first.

    Args:
        x: Features of the training set.
        count: Number of directions.
        what: Name of the method, for the error message.

    Raises:
        ConfigError: If the features have fewer than ``count`` directions.
    """
    n, d = x.shape
    require_directions(count, n, d, what)
    mean = x.mean(axis=0)
    centred = x - mean
    variances, directions = scipy.linalg.eigh(centred.T @ centred / n, subset_by_index=(d - count, d - 1))
    return mean, np.ascontiguousarray(directions[:, ::-1]), variances[::-1].clip(min=0)


def require_directions(count: int, n: int, d: int, what: str) -> None:
    """Refuse a code length for which the features cannot have enough principal directions.

    Args:
        count: Number of directions that are needed.
        n: Number of training vectors.
        d: Length of a vector.
        what: Name of the method, for the error message.

    Raises:
        ConfigError: If there are fewer than ``count`` directions.
    """
    if count > min(d, n - 1):
        raise ConfigError(
            f"{what} needs as many principal directions as bits, {count}, but {n} training vectors of length {d} have "
            f"{min(d, n - 1)}: use fewer bits"
        )


def ridge(x: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "n k"], weight: float) -> Float[np.ndarray, "d k"]:
    """Return the weights of a ridge regression, ``(X'X + weight I)^-1 X' targets``."""
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += weight
    return scipy.linalg.solve(gram, x.T @ targets, assume_a="pos")

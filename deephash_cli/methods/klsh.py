"""KLSH: Kernelized Locality-Sensitive Hashing for Scalable Image Search (Kulis and Grauman, ICCV 2009).

Each bit is the side of a random hyperplane in the feature space of a kernel, where only the kernel is known. By the
central limit theorem, the mean z_t of t random training images is nearly Gaussian in that space. After whitening it is
a random direction:

    h(x) = sgn(phi(x)' C^-1/2 z_t)   =   sgn(sum over anchors j of w_j k(x, a_j)),   w = sqrt((p - 1) / t) K^-1/2 e_S

C is the covariance of p anchors, which are random training images. K is their kernel matrix, centred in the kernel's
space. e_S is the indicator of the set S of t anchors that is drawn for the bit. ``K^-1/2`` uses only eigenvalues above
1e-8 times the largest. A new image is encoded with the kernel and the centring of the training, that is, with
``k(x, a_j) - mean over j of k(x, a_j) - mean over i of K_ij + mean of K`` in place of k. A public version fits with one
width, encodes with another and centres K only, so its hyperplanes are not those that it drew.

The kernel is ``exp(-|x - a|^2 / (kernel_width m))``, where m is the median squared distance of training images from
anchors.

Where we differ: the paper leaves the kernel to the user, and the kernels that it uses are made for one kind of feature.
A Gaussian kernel as wide as the data works on any features. There are at most as many anchors as training images. A
mean takes at most a quarter of the anchors: if there are few anchors, 30 would be nearly all of them, and the means
would be nearly the same.
"""

from typing import cast

import numpy as np
from jaxtyping import Float, UInt8
from torch import nn

from deephash_cli.errors import ConfigError
from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import RBF, Projection, inverse_root, squared_distances
from deephash_cli.methods.parts.limits import above_zero, at_least

_SMALLEST = 1e-8  # smallest eigenvalue that is used, as a share of the largest


class KLSH(ShallowHasher):
    """Fit KLSH with a Gaussian kernel.

    Args:
        anchors: Number of training images that span the space (p).
        subset: Number of anchors that are averaged for one direction (t).
        kernel_width: Width of the kernel, as a multiple of the median squared distance.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is too small.
    """

    supervision = "none"

    def __init__(self, anchors: int, subset: int, kernel_width: float, **settings):
        super().__init__(**settings)
        at_least(2, anchors=anchors)
        at_least(1, subset=subset)
        above_zero(kernel_width=kernel_width)
        self.anchors = min(anchors, len(self.train_labels))
        self.subset = max(1, min(subset, self.anchors // 4))
        self.kernel_width = kernel_width
        self.network.hash_layer = nn.Sequential(RBF(self.width, self.anchors), Projection(self.anchors, self.bits))

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Draw the anchors, set the kernel's width, and draw a whitened direction for each bit."""
        anchors = x[rng.choice(len(x), self.anchors, replace=False)]
        gamma = 1 / (self.kernel_width * median_distance(x, anchors))
        kernel = np.exp(-gamma * squared_distances(anchors, anchors))
        w = random_directions(kernel, self.bits, self.subset, rng)
        rbf, projection = cast(tuple[RBF, Projection], self.network.hash_layer)
        rbf.set(anchors, gamma)
        # Centring K(x, .) on its own mean has no effect, because each column of w sums to 0.
        projection.set(w, kernel.mean(axis=0))


def median_distance(x: Float[np.ndarray, "n d"], anchors: Float[np.ndarray, "p d"]) -> float:
    """Return the median squared distance, without distances of images from themselves and their copies.

    Raises:
        ConfigError: If all images are the same, or too near each other to be told apart by these distances.
    """
    squared = squared_distances(x, anchors)
    apart = squared[squared > 1e-9 * np.square(anchors).sum(axis=1).max()]
    if not len(apart):
        why = "all of them are the same"
        if (x != x[0]).any():
            why = "rounding hides them, because the features are far from 0 and near each other: subtract their mean, "
            why += "such as with module.scaling=standard"
        raise ConfigError(f"KLSH takes its kernel's width from the distances of the training features, but {why}")
    return float(np.median(apart))


def random_directions(
    kernel: Float[np.ndarray, "p p"], bits: int, subset: int, rng: np.random.Generator
) -> Float[np.ndarray, "p bits"]:
    """Return the weights of the anchors in whitened means of ``subset`` random anchors. Each column sums to 0.

    Args:
        kernel: Kernel matrix of the anchors, not centred.
        bits: Number of directions.
        subset: Number of anchors that are averaged for one direction (t).
        rng: Random generator that chooses the anchors.
    """
    p = len(kernel)
    centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1, keepdims=True) + kernel.mean()
    whitening = inverse_root(centred, _SMALLEST)  # K^-1/2
    chosen = np.stack([rng.choice(p, subset, replace=False) for _ in range(bits)])
    w = np.sqrt((p - 1) / subset) * whitening[:, chosen].sum(axis=2)
    return w - w.mean(axis=0)  # removes rounding errors alone: the constant vector has eigenvalue 0

"""KLSH: Kernelized Locality-Sensitive Hashing for Scalable Image Search (Kulis and Grauman, ICCV 2009).

Random hyperplanes in the space of a kernel, of which only the kernel is known. By the central limit theorem, the mean
z_t of t random training images there is nearly Gaussian, and whitened it is a random direction:

    h(x) = sgn(phi(x)' C^-1/2 z_t)   =   sgn(sum over anchors j of w_j k(x, a_j)),   w = sqrt((p - 1) / t) K^-1/2 e_S

with C the covariance of p anchors, random training images; K their kernel matrix, centred in the kernel's space; and
e_S the indicator of the t anchors S drawn for the bit. ``K^-1/2`` is that of the eigenvalues above 1e-8 times the
largest. An image is encoded with the kernel and the centring of the training, that is with
``k(x, a_j) - mean over j of k(x, a_j) - mean over i of K_ij + mean of K`` in place of k. A public version fits with one
width and encodes with another, and centres K only: its hyperplanes are not those that it drew.

The kernel is ``exp(-|x - a|^2 / (kernel_width m))``, m the median squared distance of training images from anchors.

Where we differ: the paper leaves the kernel to the user, and its own are made for one kind of feature; with a Gaussian
one as wide as the data the method can be run on any features. There are at most as many anchors as training images, and
at most a quarter of the anchors in a mean: of few anchors, 30 would be nearly all, and the means nearly the same.
"""

from typing import cast

import numpy as np
from jaxtyping import Float, UInt8
from torch import nn

from deephash_cli.errors import ConfigError
from deephash_cli.hash_layers import RBF, Projection, inverse_root, squared_distances
from deephash_cli.methods.base import ShallowHasher

_SMALLEST = 1e-8  # eigenvalue that counts, of the largest


class KLSH(ShallowHasher):
    """KLSH with a Gaussian kernel.

    Args:
        anchors: How many training images span the space (p).
        subset: How many anchors make one direction (t).
        kernel_width: In median squared distances.
        **settings: Those of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is too small.
    """

    supervision = "none"

    def __init__(self, anchors: int, subset: int, kernel_width: float, **settings):
        super().__init__(**settings)
        if anchors < 2 or subset < 1 or kernel_width <= 0:
            raise ValueError(
                "KLSH needs module.anchors of 2 or more, module.subset of 1 or more and module.kernel_width above 0, "
                f"got {anchors}, {subset} and {kernel_width}"
            )
        self.anchors = min(anchors, len(self.train_labels))
        self.subset = max(1, min(subset, self.anchors // 4))
        self.kernel_width = kernel_width
        self.network.hash_layer = nn.Sequential(RBF(self.width, self.anchors), Projection(self.anchors, self.bits))

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Anchors, the kernel's width, whitening, a direction for each bit."""
        anchors = x[rng.choice(len(x), self.anchors, replace=False)]
        gamma = 1 / (self.kernel_width * median_distance(x, anchors))
        kernel = np.exp(-gamma * squared_distances(anchors, anchors))
        w = random_directions(kernel, self.bits, self.subset, rng)
        rbf, projection = cast(tuple[RBF, Projection], self.network.hash_layer)
        rbf.set(anchors, gamma)
        # centring K(x, .) on its own mean changes nothing: w sums to 0
        projection.set(w, kernel.mean(axis=0))


def median_distance(x: Float[np.ndarray, "n d"], anchors: Float[np.ndarray, "p d"]) -> float:
    """Median squared distance, without those of images from themselves and their copies.

    Raises:
        ConfigError: If all are the same.
    """
    squared = squared_distances(x, anchors)
    apart = squared[squared > 1e-9 * np.square(anchors).sum(axis=1).max()]
    if not len(apart):
        raise ConfigError("KLSH takes its kernel's width from the training features, but all of them are the same")
    return float(np.median(apart))


def random_directions(
    kernel: Float[np.ndarray, "p p"], bits: int, subset: int, rng: np.random.Generator
) -> Float[np.ndarray, "p bits"]:
    """Weights of the anchors in whitened means of ``subset`` random anchors. Each column sums to 0.

    Args:
        kernel: Of the anchors, not centred.
        bits: How many directions.
        subset: How many anchors make one (t).
        rng: Chooses them.
    """
    p = len(kernel)
    centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1, keepdims=True) + kernel.mean()
    whitening = inverse_root(centred, _SMALLEST)  # K^-1/2
    chosen = np.stack([rng.choice(p, subset, replace=False) for _ in range(bits)])
    w = np.sqrt((p - 1) / subset) * whitening[:, chosen].sum(axis=2)
    return w - w.mean(axis=0)  # nothing but rounding: the constant vector has eigenvalue 0

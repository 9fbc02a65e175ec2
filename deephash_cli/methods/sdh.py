"""SDH: Supervised Discrete Hashing (Shen, Shen, Liu and Shen, CVPR 2015).

https://www.cv-foundation.org/openaccess/content_cvpr_2015/papers/Shen_Supervised_Discrete_Hashing_2015_CVPR_paper.pdf

    min over B, W, P of |Y - B W|^2 + lambda |W|^2 + nu (|B - F|^2 + delta |P|^2),   B of +1 and -1
    F = phi(X) P,   phi(x) = (exp(-|x - a|^2 / (2 sigma^2)) for each anchor a, 1)

The anchors are random training images, and Y are the multi-hot labels. The start is random codes and their P. Three
steps alternate: W by ridge regression, B by discrete cyclic coordinate descent (one bit of all codes at a time), and P
by ridge regression. No step can raise the objective. A code is the sign of F.

Where we differ: sigma is a multiple of the median distance of training images from anchors, because the published
value, .4, fits one kind of features only. Some public versions use one sigma for all features, and have neither the
constant in phi nor delta. The paper's second loss, a hinge, is left out.
"""

from typing import cast

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.discrete import cyclic_coordinate_descent
from deephash_cli.methods.parts.hash_layers import RBF, gaussian_gamma, ridge, squared_distances
from deephash_cli.methods.parts.limits import above_zero, at_least


class KernelClassifier(nn.Module):
    """The encoder ``F = phi(X) P``.

    Args:
        width: Length d of a feature vector.
        anchors: Number m of anchors.
        bits: Code length K.
    """

    def __init__(self, width: int, anchors: int, bits: int):
        super().__init__()
        self.rbf = RBF(width, anchors)
        self.register_buffer("weight", torch.zeros(anchors + 1, bits))
        self.weight: Tensor

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Return continuous codes."""
        return self.rbf(x) @ self.weight[:-1] + self.weight[-1]


class SDH(ShallowHasher):
    """Fit SDH.

    Args:
        anchors: Number of anchors, m; at most as many as training images.
        sigma: Width of the kernel, in median distances of training images from anchors.
        classifier_ridge: Weight lambda of the ridge of W.
        embedding_weight: Weight nu of the distance between codes and F.
        kernel_ridge: Weight delta of the ridge of P.
        iterations: Number of times that the three steps are taken.
        sweeps: Maximum number of sweeps over all bits in one step of B.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "labels"

    def __init__(
        self,
        anchors: int,
        sigma: float,
        classifier_ridge: float,
        embedding_weight: float,
        kernel_ridge: float,
        iterations: int,
        sweeps: int,
        **settings,
    ):
        super().__init__(**settings)
        at_least(1, anchors=anchors, iterations=iterations, sweeps=sweeps)
        above_zero(sigma=sigma, classifier_ridge=classifier_ridge, kernel_ridge=kernel_ridge)
        at_least(0, embedding_weight=embedding_weight)
        self.sigma = sigma
        self.classifier_ridge = classifier_ridge
        self.embedding_weight = embedding_weight
        self.kernel_ridge = kernel_ridge
        self.iterations = iterations
        self.sweeps = sweeps
        self.anchors = min(anchors, len(self.train_labels))
        self.network.hash_layer = KernelClassifier(self.width, self.anchors, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Compute kernel features, then alternate between classifier, codes and embedding."""
        layer = cast(KernelClassifier, self.network.hash_layer)
        anchors = x[rng.choice(len(x), self.anchors, replace=False)]
        squared = squared_distances(x, anchors)
        gamma = gaussian_gamma(squared, self.sigma)
        phi = np.column_stack([np.exp(-gamma * squared), np.ones(len(x))])
        b = rng.choice([-1.0, 1.0], size=(len(x), self.bits))
        _, _, p = self.alternate(phi, labels.astype(np.float64), b)
        layer.rbf.set(anchors, gamma)
        layer.weight.copy_(torch.from_numpy(p))

    def alternate(
        self, phi: Float[np.ndarray, "n m"], y: Float[np.ndarray, "n classes"], b: Float[np.ndarray, "n bits"]
    ) -> tuple[Float[np.ndarray, "n bits"], Float[np.ndarray, "bits classes"], Float[np.ndarray, "m bits"]]:
        """Return B, W and P after all iterations, starting from the codes ``b``."""
        gram = phi.T @ phi
        gram[np.diag_indices_from(gram)] += self.kernel_ridge
        factor = scipy.linalg.cho_factor(gram)
        p = scipy.linalg.cho_solve(factor, phi.T @ b)
        w = np.zeros((self.bits, y.shape[1]))
        for _ in range(self.iterations):
            w = ridge(b, y, self.classifier_ridge)
            b = codes_step(b, y, w, phi @ p, self.embedding_weight, self.sweeps)
            p = scipy.linalg.cho_solve(factor, phi.T @ b)
        return b, w, p


def codes_step(
    b: Float[np.ndarray, "n bits"],
    y: Float[np.ndarray, "n classes"],
    w: Float[np.ndarray, "bits classes"],
    f: Float[np.ndarray, "n bits"],
    embedding_weight: float,
    sweeps: int,
) -> Float[np.ndarray, "n bits"]:
    """Return new codes for which ``|Y - B W|^2 + nu |B - F|^2`` is not higher than for ``b``."""
    q = y @ w.T + embedding_weight * f
    return cyclic_coordinate_descent(torch.from_numpy(b), torch.from_numpy(q), torch.from_numpy(w), sweeps).numpy()

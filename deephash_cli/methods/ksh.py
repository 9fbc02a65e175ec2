"""KSH: Supervised Hashing with Kernels (Liu, Wang, Ji, Jiang, Chang, CVPR 2012).

    min over codes Y (l x K) of |K S0 - Y Y'|^2,   Y = sgn(G A)

``G`` holds the kernel values of l labelled images with m anchors, less their means over the training set. ``S0`` is +1
for pairs that share a label (and for an image with itself), else -1. The bits are found greedily, one at a time. With
the residue ``S = K S0 - sum of y y'`` over the bits found so far, the next bit maximises ``y' S y``.

1. Spectral start: the leading a of ``(G' S G) a = lambda (G' G) a``, scaled so that ``a' G' G a = l``.
2. Refinement: Nesterov's accelerated method lowers ``cost(a) = -y' S y`` with the smooth sign
   ``y = 2 / (1 + exp(-G a)) - 1``. The gradient is ``-G' ((S y) * (1 - y^2))``. The step is 1/beta, and beta doubles
   until the quadratic model bounds the cost.
3. The refined a is kept only if ``y' S y`` of the true signs is greater than before. Then ``S <- S - y y'``.

The kernel is ``exp(-d^2 / (2 sigma))``. Here sigma is the mean squared distance between training images and anchors,
times a setting (1.0 is the authors' convention; sigma is not squared).

Where we differ: both steps work in the coordinates ``c = R a`` with ``R'R = G'G / l``. In these coordinates the first
step is an ordinary eigenproblem and the second is well conditioned, so the refinement soon overfits: 10 iterations give
.596 +- .006 and .678 +- .004 at 12 and 48 bits, 50 iterations give .581 +- .002 and .668 +- .001 (CIFAR-10, 224 px,
s1_validation, three seeds). ``G'G`` has a ridge of 1e-8 of its mean diagonal, because it is singular if there are as
many anchors as labelled images, or if two anchors are alike. S is never stored as a matrix: ``S0 v`` is a sum over the
distinct label sets, so there can be thousands of labelled images. There are at most as many anchors as training images.
beta starts at 1.
"""

import math
from typing import cast

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from jaxtyping import Float, UInt8
from torch import nn

from deephash_cli.console import progress
from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import RBF, Projection, signs, squared_distances
from deephash_cli.methods.parts.limits import above_zero, at_least

_RIDGE = 1e-8
_LEAST = 1e-30  # keeps the matrix invertible if all kernel values are the same
_DOUBLINGS = 50  # most doublings of beta in one step, as in the authors' code


class KSH(ShallowHasher):
    """Fit KSH.

    Args:
        anchors: Number of training images that the kernel compares with.
        sigma: Width of the kernel, as a multiple of the mean squared distance.
        labeled: Number of training images that the codes are learned from; all of them, if there are fewer.
        iterations: Maximum number of iterations of the refinement of one bit.
        tolerance: Change of the smooth cost, per labelled image, at which the refinement ends.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "pairs"

    def __init__(self, anchors: int, sigma: float, labeled: int, iterations: int, tolerance: float, **settings):
        super().__init__(**settings)
        at_least(1, anchors=anchors)
        at_least(2, labeled=labeled)
        at_least(0, iterations=iterations, tolerance=tolerance)
        above_zero(sigma=sigma)
        self.sigma = sigma
        self.labeled = labeled
        self.iterations = iterations
        self.tolerance = tolerance
        self.anchors = min(anchors, len(self.train_labels))  # m
        self.network.hash_layer = nn.Sequential(RBF(self.width, self.anchors), Projection(self.anchors, self.bits))

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Draw the anchors and set the kernel, then fit one bit after the other."""
        kernel, projection = cast(tuple[RBF, Projection], tuple(cast(nn.Sequential, self.network.hash_layer)))
        anchors = x[np.sort(rng.choice(len(x), self.anchors, replace=False))]
        spread = squared_distances(x, anchors).mean()
        kernel.set(anchors, 1 / (2 * self.sigma * spread) if spread > 0 else 1.0)
        values = kernel(torch.from_numpy(x).float()).numpy().astype(np.float64)
        means = values.mean(axis=0)

        chosen = np.sort(rng.choice(len(x), min(self.labeled, len(x)), replace=False))
        residue = Residue(labels[chosen], self.bits)
        projection.set(self._bits(values[chosen] - means, residue), means)

    def _bits(self, g: np.ndarray, residue: "Residue") -> np.ndarray:
        """Return A, the weights of each bit, fitted greedily."""
        root = gram_root(g)  # R
        q = np.ascontiguousarray(scipy.linalg.solve_triangular(root.T, g.T, lower=True).T)  # G R^-1
        objective = q.T @ residue.product(q)  # Q' S Q, kept up to date
        weights = np.empty((g.shape[1], self.bits))
        with progress("fitting, bits", self.bits) as report:
            for k in range(self.bits):
                start = spectral_start(objective)
                c = better(q, residue, start, refine(q, residue, start, self.iterations, self.tolerance))
                y = signs(q @ c)
                residue.subtract(y)
                objective -= np.outer(q.T @ y, q.T @ y)
                weights[:, k] = c
                report(k + 1)
        return scipy.linalg.solve_triangular(root, weights)


def gram_root(g: Float[np.ndarray, "l m"]) -> Float[np.ndarray, "m m"]:
    """Return the upper triangular R with ``R'R = G'G / l``, up to the ridge."""
    gram = g.T @ g / len(g)
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram) + _LEAST
    return scipy.linalg.cholesky(gram)


class Residue:
    """The residue ``S = K S0 - sum of y y'`` as a linear map: the l x l matrix itself is never stored.

    Args:
        labels: Multi-hot labels of l images.
        bits: Code length K.
    """

    def __init__(self, labels: UInt8[np.ndarray, "l classes"], bits: int):
        sets, which = np.unique(labels, axis=0, return_inverse=True)
        shares = sets.astype(np.float64)
        self._shared = (shares @ shares.T > 0).astype(np.float64)  # 1 for two label sets that share a label
        self._members = scipy.sparse.csr_array((np.ones(len(which)), (which.ravel(), np.arange(len(which)))))
        self._alone = 2.0 * ~labels.any(axis=1)  # an image without labels is similar to itself only
        self._codes = np.empty((len(labels), bits))
        self._count = 0

    def product(self, v: Float[np.ndarray, "l *k"]) -> Float[np.ndarray, "l *k"]:
        """Return ``S v``."""
        similar = self._members.T @ (self._shared @ (self._members @ v))
        codes = self._codes[:, : self._count]
        pairs = 2 * similar + (self._alone * v.T).T - v.sum(axis=0)  # S0 v
        return self._codes.shape[1] * pairs - codes @ (codes.T @ v)

    def subtract(self, y: Float[np.ndarray, " l"]) -> None:
        """Subtract ``y y'`` from S."""
        self._codes[:, self._count] = y
        self._count += 1


def spectral_start(objective: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " m"]:
    """Return the leading unit eigenvector of ``Q' S Q``: ``R a`` for the paper's a with ``a' G'G a = l``."""
    m = len(objective)
    return scipy.linalg.eigh(objective, subset_by_index=(m - 1, m - 1))[1][:, 0]


def smooth_cost(margins: Float[np.ndarray, " l"], residue: Residue) -> tuple[float, Float[np.ndarray, " l"]]:
    """Return ``-y' S y`` for the smooth signs y of ``margins = G a``, and its gradient in the margins."""
    y = np.tanh(margins / 2)  # 2 / (1 + exp(-margins)) - 1, without overflow
    product = residue.product(y)
    return -float(y @ product), -product * (1 - y * y)


def refine(
    g: Float[np.ndarray, "l m"], residue: Residue, start: Float[np.ndarray, " m"], iterations: int, tolerance: float
) -> Float[np.ndarray, " m"]:
    """Lower the smooth cost by Nesterov's method. The cost of the result is not always the lowest one reached."""
    # Keep weights and margins in one vector: margins are linear in weights, so a trial step needs no product with G.
    here = before = np.concatenate([start, g @ start])
    m = len(start)
    momentum, momentum_before, beta = 1.0, 0.0, 1.0
    cost, _ = smooth_cost(here[m:], residue)
    for _ in range(iterations):
        ahead = here + (momentum_before - 1) / momentum * (here - before)
        cost_ahead, slope = smooth_cost(ahead[m:], residue)
        gradient = g.T @ slope
        direction = np.concatenate([gradient, g @ gradient])
        squared = float(gradient @ gradient)
        new, _ = smooth_cost((ahead - direction / beta)[m:], residue)
        for _ in range(_DOUBLINGS):
            if new <= cost_ahead - squared / (2 * beta):
                break
            beta *= 2
            new, _ = smooth_cost((ahead - direction / beta)[m:], residue)
        before, here = here, ahead - direction / beta
        momentum_before, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        if abs(cost - new) <= tolerance * len(g):
            break
        cost = new
    return here[:m]


def better(
    g: Float[np.ndarray, "l m"], residue: Residue, a: Float[np.ndarray, " m"], other: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Return the weights whose true signs y have the greater ``y' S y``; the first ones if both are equal."""
    first, second = (float(y @ residue.product(y)) for y in (signs(g @ a), signs(g @ other)))
    return other if second > first else a

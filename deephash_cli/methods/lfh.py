"""LFH: Supervised Hashing with Latent Factor Models (Zhang, Zhang, Li and Guo, SIGIR 2014).

    max over U of L = sum over pairs (i, j) [ s_ij t_ij - log(1 + exp(t_ij)) ] - |U|^2 / (2 beta)
    t_ij = <u_i, u_j> / 2,   with the prior u_i ~ N(0, beta I)

L is optimised by surrogates. A surrogate is a quadratic that touches L at the present row and lies below it everywhere,
because ``a (1 - a) <= 1 / 4`` for ``a = sigmoid(t)``. Its maximiser is ``u_i + (sum_j u_j u_j' / 8 + I / beta)^-1 g_i``
with ``g_i = sum_j (s_ij - a_ij) u_j - u_i / beta``, and L cannot be lower there. Pairs are ordered, so each counts
twice. The stochastic version uses only some random columns j in an iteration, so that one small linear system serves
all rows. A new image is encoded by the signs of a ridge regression ``W`` of U on centred features.

Where we differ: the columns of an iteration are not updated in it. A public version updates them at the same time as
all other rows, and then the likelihood can fall. A row has no pair with itself, because the bound does not hold for
such a pair. The number of columns is a setting that is the same for every code length; in the paper it is the number of
bits. U starts from standard normal numbers, which is our choice.
"""

from typing import cast

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, UInt8
from scipy.special import expit

from deephash_cli.console import progress
from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import Projection, ridge
from deephash_cli.methods.parts.limits import above_zero, at_least


class LFH(ShallowHasher):
    """Fit LFH.

    Args:
        beta: Variance of the prior of U.
        columns: Size of Omega, the set of training images that the others are compared with in an iteration; at most
            half of the training set.
        iterations: Number of surrogate updates.
        ridge_weight: Weight lambda_e of the ridge in the regression of U on features.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "pairs"

    def __init__(self, beta: float, columns: int, iterations: int, ridge_weight: float, **settings):
        super().__init__(**settings)
        at_least(1, columns=columns, iterations=iterations)
        above_zero(beta=beta, ridge_weight=ridge_weight)
        self.beta = beta
        self.columns = columns
        self.iterations = iterations
        self.ridge_weight = ridge_weight
        self.network.hash_layer = Projection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Find the latent factors U, then fit their regression on features."""
        n = len(x)
        count = max(1, min(self.columns, n // 2))
        y = labels.astype(np.float32)
        u = rng.standard_normal((n, self.bits))
        with progress("fitting, iterations", self.iterations) as update:
            for iteration in range(self.iterations):
                order = rng.permutation(n)
                columns, rows = order[:count], order[count:]
                u[rows] = surrogate_step(u[rows], u[columns], y[rows] @ y[columns].T > 0, self.beta)
                update(iteration + 1)
        mean = x.mean(axis=0)
        cast(Projection, self.network.hash_layer).set(ridge(x - mean, u, self.ridge_weight), mean)


def surrogate_step(
    rows: Float[np.ndarray, "n bits"],
    columns: Float[np.ndarray, "m bits"],
    similar: Bool[np.ndarray, "n m"],
    beta: float,
) -> Float[np.ndarray, "n bits"]:
    """Return rows of U that are at least as likely as ``rows``, given ``columns``.

    The two must not overlap. The update of a row does not depend on the other rows, so all are updated at once.
    """
    gradient = (similar - expit(rows @ columns.T / 2)) @ columns - rows / beta
    curvature = columns.T @ columns / 8 + np.eye(columns.shape[1]) / beta  # -H
    return rows + scipy.linalg.solve(curvature, gradient.T, assume_a="pos").T

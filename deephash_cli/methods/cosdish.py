"""COSDISH: Column Sampling Based Discrete Supervised Hashing (Kang, Li and Zhou, AAAI 2016).

    min over B of |K S_Omega - B B_Omega'|^2,   B of +1 and -1, K bits

``Omega`` is a random sample of as many training images as there are bits. Only these columns of the similarity matrix S
are seen. An entry of S is 1 for a similar pair and ``-r`` for any other pair. Here r is the number of similar pairs
divided by the number of other pairs, so that both kinds have the same total weight.

The codes start at random. For each sample of columns, two steps alternate for some rounds. The first step finds the
codes B_Omega of the columns bit by bit: given all other bits, each bit is a binary quadratic programme of |Omega|
variables. The second step sets the codes of the other rows to ``sgn(S_Gamma B_Omega)`` and keeps the old bit where this
product is 0. A new image is encoded by the sign of a ridge regression of B on centred features.

Where we differ: the quadratic programmes are solved by local search, not by the paper's 2-approximation. The search
starts from the present bit and from random bits, and flips the one variable that lowers the objective most. In the
second step, a row keeps its old code if ``sgn(S_Gamma B_Omega)`` would raise the row's part of the objective, which can
happen because it minimises another norm. With the published step the objective rises more often than it falls, and
codes of 12 bits are much worse. The paper's stronger variant encodes with boosted trees. Here ``encoder=kernel`` is
instead a ridge regression on Gaussian kernels with anchors, ``exp(-|x - a|^2 / (2 sigma^2))``.
"""

from typing import Literal, cast

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import nn

from deephash_cli.console import progress
from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import RBF, Projection, gaussian_gamma, ridge, signs, squared_distances
from deephash_cli.methods.parts.limits import above_zero, at_least

_UNDECIDED = 1e-5  # a vote below this leaves the bit as it is; as published
_PRECISION = 1e-9  # share of the largest coefficient; a flip that gains less is not made


class COSDISH(ShallowHasher):
    """Fit COSDISH.

    Args:
        columns: Size of Omega, at most half of the training images; None means as many as bits.
        samples: Number of times that columns are drawn (T_sto).
        rounds: Number of times that both steps are taken with the same columns (T_alt).
        restarts: Number of random starts of the local search, in addition to the present bit.
        encoder: ``linear`` or ``kernel``.
        ridge_weight: Weight of the ridge in the regression of B on features or kernels.
        anchors: Number of random training images that the kernel compares with, at most all; unused by ``linear``.
        sigma: Width of the kernel, in median distances of training images from anchors; unused by ``linear``.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "pairs"

    def __init__(
        self,
        columns: int | None,
        samples: int,
        rounds: int,
        restarts: int,
        encoder: Literal["linear", "kernel"],
        ridge_weight: float,
        anchors: int,
        sigma: float,
        **settings,
    ):
        super().__init__(**settings)
        if encoder not in ("linear", "kernel"):
            raise ValueError(f"encoder must be linear or kernel, got {encoder!r}")
        self.columns = self.bits if columns is None else columns
        at_least(1, columns=self.columns, samples=samples, rounds=rounds, anchors=anchors)
        at_least(0, restarts=restarts)
        above_zero(ridge_weight=ridge_weight, sigma=sigma)
        self.samples = samples
        self.rounds = rounds
        self.restarts = restarts
        self.encoder = encoder
        self.ridge_weight = ridge_weight
        self.anchors = min(anchors, len(self.train_labels))
        self.sigma = sigma
        self.network.hash_layer = (
            Projection(self.width, self.bits)
            if encoder == "linear"
            else nn.Sequential(RBF(self.width, self.anchors), Projection(self.anchors, self.bits))
        )

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Find the codes of the training images, then fit the encoder to them."""
        b = self.codes(labels, rng)
        layer = self.network.hash_layer
        if self.encoder == "kernel":
            rbf, layer = cast(tuple[RBF, Projection], layer)
            anchors = x[rng.choice(len(x), self.anchors, replace=False)]
            squared = squared_distances(x, anchors)
            gamma = gaussian_gamma(squared, self.sigma)
            rbf.set(anchors, gamma)
            x = np.exp(-gamma * squared)
        mean = x.mean(axis=0)
        cast(Projection, layer).set(ridge(x - mean, b, self.ridge_weight), mean)

    def codes(self, labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator) -> Float[np.ndarray, "n bits"]:
        """Return the codes B of the training images."""
        n = len(labels)
        count = max(1, min(self.columns, n // 2))
        y = labels.astype(np.float32)
        b = random_signs(n, self.bits, rng)
        with progress("fitting, samples of columns", self.samples) as update:
            for sample in range(self.samples):
                order = rng.permutation(n)
                columns, rows = order[:count], order[count:]
                s = balanced(y @ y[columns].T > 0)
                for _ in range(self.rounds):
                    starts = random_signs(self.bits * self.restarts, count, rng).reshape(
                        self.bits, self.restarts, count
                    )
                    b[columns] = columns_step(b[columns], b[rows], s[columns], s[rows], starts)
                    b[rows] = rows_step(b[rows], b[columns], s[rows])
                update(sample + 1)
        return b


def random_signs(n: int, m: int, rng: np.random.Generator) -> Float[np.ndarray, "n m"]:
    """Draw an ``(n, m)`` array of +1 and -1."""
    return rng.choice([-1.0, 1.0], size=(n, m))


def balanced(similar: Bool[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Return the target of each pair: 1 if similar, else -r. With +r every pair would be similar."""
    r = np.count_nonzero(similar) / max(1, np.count_nonzero(~similar))
    return np.where(similar, 1.0, -r)


def errors(
    b: Float[np.ndarray, "n bits"], b_columns: Float[np.ndarray, "m bits"], s: Float[np.ndarray, "n m"]
) -> Float[np.ndarray, " n"]:
    """Return each row's part of the objective, ``|K S_Omega - B B_Omega'|^2``."""
    return np.square(b.shape[1] * s - b @ b_columns.T).sum(axis=1)


def columns_step(
    b_columns: Float[np.ndarray, "m bits"],
    b_rows: Float[np.ndarray, "n bits"],
    s_columns: Float[np.ndarray, "m m"],
    s_rows: Float[np.ndarray, "n m"],
    starts: Float[np.ndarray, "bits restarts m"],
) -> Float[np.ndarray, "m bits"]:
    """Return new codes of the columns, B_Omega, found one bit after the other, given all other bits.

    The objective does not rise.

    Args:
        b_columns: Present codes of the columns.
        b_rows: Codes of the other rows, B_Gamma.
        s_columns: Targets of pairs of columns.
        s_rows: Targets of pairs of another row and a column, S_Gamma.
        starts: Starts of the local search for each bit, in addition to the present bit.
    """
    bits = b_columns.shape[1]
    b_columns = b_columns.copy()
    wanted = bits * s_rows.T @ b_rows
    gram = b_rows.T @ b_rows
    for k in range(bits):
        others = b_columns.copy()
        others[:, k] = 0
        q = 2 * (others @ others.T - bits * s_columns)  # the square of a bit is 1, so the diagonal is constant
        np.fill_diagonal(q, 0)
        p = 2 * (others @ gram[:, k] - wanted[:, k])
        b_columns[:, k] = local_search(q, p, np.vstack([b_columns[:, k], starts[k]]))
    return b_columns


def rows_step(
    b_rows: Float[np.ndarray, "n bits"], b_columns: Float[np.ndarray, "m bits"], s_rows: Float[np.ndarray, "n m"]
) -> Float[np.ndarray, "n bits"]:
    """Return new codes of the other rows, B_Gamma: ``sgn(S_Gamma B_Omega)`` unless it raises the row's error."""
    votes = s_rows @ b_columns
    voted = np.where(np.abs(votes) < _UNDECIDED, b_rows, signs(votes))
    better = errors(voted, b_columns, s_rows) <= errors(b_rows, b_columns, s_rows)
    return np.where(better[:, None], voted, b_rows)


def local_search(
    q: Float[np.ndarray, "m m"], p: Float[np.ndarray, " m"], starts: Float[np.ndarray, "s m"]
) -> Float[np.ndarray, " m"]:
    """Return a vector b of +1 and -1 with a small ``b'Qb + p'b``, which no single flip can lower.

    Args:
        q: Symmetric matrix Q with a zero diagonal.
        p: Linear part p.
        starts: Vectors to search from, all at once; the best vector that any search ends in is returned.
    """
    b = starts.copy()
    slope = 2 * b @ q + p  # flipping b_i adds -2 b_i slope_i
    smallest = _PRECISION * max(1.0, np.abs(q).max(), np.abs(p).max())
    searches = np.arange(len(b))
    while True:
        gain = b * slope
        flip = gain.argmax(axis=1)
        active = np.flatnonzero(gain[searches, flip] > smallest)
        if len(active) == 0:
            return b[np.argmin(((b @ q + p) * b).sum(axis=1))]
        flip = flip[active]
        b[active, flip] *= -1
        slope[active] += 4 * b[active, flip][:, None] * q[flip]

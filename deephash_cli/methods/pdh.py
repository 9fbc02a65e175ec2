"""PDH: Predictable Dual-View Hashing (Rastegari, Choi, Fakhraei, Hal Daume III and Davis, ICML 2013).

Experimental: implemented from the published description; the authors published no code to compare with.

Each image has two views, V and T, and a code in each. The hyperplanes of one view have a large margin and predict the
code of the other view. The bits of a code should not repeat each other:

    min over W of |Y_V Y_V' / n - I|^2 + |Y_T Y_T' / n - I|^2 + sum over bits of |w_V|^2 + |w_T|^2 + C (xi_V + xi_T)
    with Y_V = sgn(W_V' X_V), Y_T = sgn(W_T' X_T), y_T (w_V' x_V) >= 1 - xi_V, y_V (w_T' x_T) >= 1 - xi_T

The start is the signs of the leading principal components of view T. Then two steps alternate. The first trains a
linear SVM on the features of view V for each bit of view T, sets Y_V to the signs of their margins and decorrelates it.
The second does the same with the two views exchanged.

The paper has images and their texts; this package has images only. So some choices are ours:

- The second view (``second_view``). ``halves``: the features are divided into two halves at random. ``noise``: the
  second view is the features with a random half replaced by the features of another image.
- The code of an image. With ``halves`` it has the signs of the sum of both views' margins, ``w_V' x_V + w_T' x_T``,
  which is one hyperplane in all features. With ``noise`` it has the signs of ``w_V' x_V``, on the unchanged features.
- The start. The paper starts from the signs of CCA or PCA. Here the leading components of T are first rotated at
  random, as in ITQ. Without the rotation, the bits of components of small variance, or of canonical variables of small
  correlation, are noise.
- Decorrelation. The matrix with ``Y Y' / n = I`` that is nearest to Y is ``(Y Y' / n)^-1/2 Y``. Its signs are used if
  they are less correlated than Y. This changes a few of a hundred bits in long codes, and hardly any in short codes.
- Reduction. Each view is reduced to its ``components`` leading principal directions (at least as many as there are
  bits), in units of their root mean variance. SVMs on all features would take ten times as long.
- The number of iterations is fixed, and violations of the margin are squared, as in scikit-learn's faster solver.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Literal, cast

import numpy as np
from jaxtyping import Float, UInt8
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from deephash_cli.console import progress
from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import (
    Projection,
    inverse_root,
    principal_directions,
    random_rotation,
    signs,
)
from deephash_cli.methods.parts.limits import above_zero, at_least

_SMALL = 1e-6  # smallest eigenvalue that is divided by, as a share of the largest
_TOLERANCE = 0.01  # tolerance of the SVMs: coarse, because the next iteration has other targets


class PDH(ShallowHasher):
    """Fit PDH with a second view made from the features. Experimental: from the published description.

    Args:
        second_view: ``halves``: the features are divided into two random halves. ``noise``: the second view is a copy
            of the features with half of them taken from other images.
        components: Number of principal directions of each view; at least as many as bits, and at most all.
        rounds: Number of iterations over both views.
        margin_weight: Weight of the violated margins (C).
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of range.
    """

    supervision = "none"

    def __init__(
        self, second_view: Literal["halves", "noise"], components: int, rounds: int, margin_weight: float, **settings
    ):
        super().__init__(**settings)
        if second_view not in ("halves", "noise"):
            raise ValueError(f"second_view must be halves or noise, got {second_view!r}")
        at_least(1, components=components, rounds=rounds)
        above_zero(margin_weight=margin_weight)
        self.second_view = second_view
        self.components = components
        self.rounds = rounds
        self.margin_weight = margin_weight
        self.network.hash_layer = Projection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Make the two views and the first codes, then train the SVMs of the views alternately."""
        view_v, view_t = np.arange(self.width), np.arange(self.width)  # indices of their features
        x_t = x
        if self.second_view == "halves":
            view_v, view_t = np.array_split(rng.permutation(self.width), 2)
        else:
            x_t = np.where(rng.random(x.shape) < 0.5, x[rng.permutation(len(x))], x)
        v, from_v = self._reduced(x[:, view_v])
        t, from_t = self._reduced(x_t[:, view_t])
        rotation = random_rotation(self.bits, rng)
        y_t = signs(t[:, : self.bits] @ rotation)
        w_v, w_t = (np.zeros((view.shape[1], self.bits)) for view in (v, t))
        with progress("fitting, SVMs", 2 * self.rounds * self.bits) as update:
            done = itertools.count(1)
            for _ in range(self.rounds):
                w_v = self._hyperplanes(v, y_t, lambda: update(next(done)), rng)
                y_v = decorrelated(signs(v @ w_v))
                w_t = self._hyperplanes(t, y_v, lambda: update(next(done)), rng)
                y_t = decorrelated(signs(t @ w_t))
        weight = np.zeros((self.width, self.bits))
        weight[view_v] += from_v @ w_v
        if self.second_view == "halves":
            weight[view_t] += from_t @ w_t
        cast(Projection, self.network.hash_layer).set(weight, x.mean(axis=0))

    def _reduced(
        self, x: Float[np.ndarray, "n d"]
    ) -> tuple[Float[np.ndarray, "n components"], Float[np.ndarray, "d components"]]:
        """Return the principal components of a view and the matrix that computes them.

        Both are in units of the root mean variance of the components.
        """
        count = max(self.bits, min(self.components, x.shape[1], len(x) - 1))
        mean, directions, variances = principal_directions(x, count, "each view of PDH")
        scaled = directions / (np.sqrt(variances.mean()) or 1.0)
        return (x - mean) @ scaled, scaled

    def _hyperplanes(
        self,
        x: Float[np.ndarray, "n components"],
        targets: Float[np.ndarray, "n bits"],
        step: Callable[[], None],
        rng: np.random.Generator,
    ) -> Float[np.ndarray, "components bits"]:
        """Fit a linear SVM through the origin for each bit. A bit that all images share has no SVM and becomes +1."""
        w = np.zeros((x.shape[1], targets.shape[1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the next iteration continues from there
            for k, target in enumerate(targets.T):
                if target.min() < target.max():
                    svm = LinearSVC(
                        C=self.margin_weight,
                        dual="auto",
                        fit_intercept=False,
                        tol=_TOLERANCE,
                        random_state=int(rng.integers(2**31)),
                    )
                    w[:, k] = svm.fit(x, target).coef_[0]
                step()
        return w


def correlation(y: Float[np.ndarray, "n bits"]) -> float:
    """Return ``|Y'Y / n - I|^2``, which measures how much bits repeat each other (rows are images here)."""
    return float(np.square(y.T @ y / len(y) - np.eye(y.shape[1])).sum())


def decorrelated(y: Float[np.ndarray, "n bits"]) -> Float[np.ndarray, "n bits"]:
    """Return the signs of the uncorrelated matrix nearest to ``y`` if they are less correlated, else ``y``."""
    other = signs(y @ inverse_root(y.T @ y / len(y), _SMALL))
    return other if correlation(other) < correlation(y) else y

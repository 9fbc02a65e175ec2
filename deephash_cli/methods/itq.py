"""ITQ: Iterative Quantization: A Procrustean Approach to Learning Binary Codes (Gong and Lazebnik, CVPR 2011).

https://slazebni.cs.illinois.edu/publications/ITQ.pdf

    min over B, R of |B - V R|^2,   V = (X - mean) P,   R'R = I,   B of +1 and -1

The columns of ``P`` are the leading principal directions. From a random rotation, two steps alternate. The first sets
``B = sgn(V R)``. The second solves the orthogonal Procrustes problem in R: its solution is ``R = D C'``, with the
singular value decomposition ``C S D'`` of ``B'V``. Neither step can raise the objective. Public versions that compute
``D' C'`` stay near the random rotation.
"""

from typing import cast

import numpy as np
import scipy.linalg
from jaxtyping import Float, UInt8

from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import (
    Projection,
    principal_directions,
    random_rotation,
    require_directions,
    signs,
)
from deephash_cli.methods.parts.limits import at_least


class ITQ(ShallowHasher):
    """Fit ITQ.

    Args:
        iterations: Number of times that both steps are taken.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "none"

    def __init__(self, iterations: int, **settings):
        super().__init__(**settings)
        require_directions(self.bits, len(self.train_labels), self.width, "ITQ")
        at_least(0, iterations=iterations)
        self.iterations = iterations
        self.network.hash_layer = Projection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Find the principal directions, then the rotation."""
        mean, directions, _ = principal_directions(x, self.bits, "ITQ")
        v = (x - mean) @ directions
        rotation = random_rotation(self.bits, rng)
        for _ in range(self.iterations):
            rotation = rotate(v, rotation)
        cast(Projection, self.network.hash_layer).set(directions @ rotation, mean)


def rotate(v: Float[np.ndarray, "n bits"], rotation: Float[np.ndarray, "bits bits"]) -> Float[np.ndarray, "bits bits"]:
    """Return the rotation that brings ``v`` nearest to its codes under the previous rotation (one iteration)."""
    left, _, right = scipy.linalg.svd(signs(v @ rotation).T @ v)
    return right.T @ left.T

"""IsoHash: Isotropic Hashing (Kong and Li, NIPS 2012).

https://papers.nips.cc/paper/2012/hash/f7664060cc52bc6f3d620bcedc94a4b6-Abstract.html

    find R with R'R = I and diag(R' L R) = (a, ..., a),   L = diag(variances of the K leading principal directions),
    a = trace(L) / K;   b = sgn(R' P' (x - mean))

All bits get the same variance. The problem is solved by the paper's lift and projection, which alternate from a random
rotation:

    lift:        T = Z with its diagonal replaced by a
    projection:  T = Q D Q', eigenvalues in the order of those in L;   R = Q',   Z = R' L R

Where we differ: no difference is known. The paper's other solver (gradient flow) has the same solutions. Public
versions that set ``R = Q`` do not project, and the variances stay unequal.
"""

from typing import cast

import numpy as np
import scipy.linalg
from jaxtyping import Float, UInt8

from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import Projection, principal_directions, random_rotation, require_directions
from deephash_cli.methods.parts.limits import at_least


class IsoHash(ShallowHasher):
    """Fit IsoHash by lift and projection.

    Args:
        iterations: Number of iterations of lift and projection.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "none"

    def __init__(self, iterations: int, **settings):
        super().__init__(**settings)
        require_directions(self.bits, len(self.train_labels), self.width, "IsoHash")
        at_least(0, iterations=iterations)
        self.iterations = iterations
        self.network.hash_layer = Projection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Find the principal directions, then the rotation."""
        mean, directions, variances = principal_directions(x, self.bits, "IsoHash")
        rotation = random_rotation(self.bits, rng)
        for _ in range(self.iterations):
            rotation = lift_and_project(variances, rotation)
        cast(Projection, self.network.hash_layer).set(directions @ rotation, mean)


def lift_and_project(
    variances: Float[np.ndarray, " bits"], rotation: Float[np.ndarray, "bits bits"]
) -> Float[np.ndarray, "bits bits"]:
    """Return the rotation after one iteration. ``variances`` are the diagonal of L, largest first."""
    lifted = (rotation.T * variances) @ rotation  # Z
    np.fill_diagonal(lifted, variances.mean())
    _, vectors = scipy.linalg.eigh(lifted)
    return vectors[:, ::-1].T  # eigh sorts in ascending order, L is in descending order

"""PCAH: AnnoSearch: Image Auto-Annotation by Search (Wang, Zhang, Jing and Ma, CVPR 2006).

https://ieeexplore.ieee.org/document/1640938

    b_k = sgn(<p_k, x - mean>),   p_1, ..., p_K the leading eigenvectors of the covariance of the training set

Each principal direction gives one bit, regardless of its variance. The first directions hold most of the variance, so
longer codes gain little. ITQ and IsoHash correct this by a rotation.
"""

from typing import cast

import numpy as np
from jaxtyping import Float, UInt8

from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import Projection, principal_directions, require_directions


class PCAH(ShallowHasher):
    """Fit PCAH, signs of principal components.

    Args:
        **settings: Arguments of ``ShallowHasher``.
    """

    supervision = "none"

    def __init__(self, **settings):
        super().__init__(**settings)
        require_directions(self.bits, len(self.train_labels), self.width, "PCAH")
        self.network.hash_layer = Projection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Store the principal directions of the training set."""
        mean, directions, _ = principal_directions(x, self.bits, "PCAH")
        cast(Projection, self.network.hash_layer).set(directions, mean)

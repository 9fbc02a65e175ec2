"""PCARR: Hashing-Baseline: Rethinking Hashing in the Age of Pretrained Models (Moummad et al., arXiv 2025).

https://arxiv.org/abs/2509.14427

    b = sgn(V R),   V = (X - mean) P,   R'R = I

The columns of ``P`` are the leading principal directions, and ``R`` is a random rotation, drawn from the seed. It
spreads the variance of the first directions over all bits. Nothing is learned beyond the mean and the directions, so
this is the baseline for frozen features of a pretrained backbone. It is ITQ without its iterations: for the same seed,
``method=itq module.iterations=0`` gives the same codes. The paper reports means over ten rotations: use ten seeds.

Where we differ: the paper's numbers compare a real-valued query, ``sigmoid`` of its continuous code, with the bits of
the database. Our mAP compares bits with bits.
"""

from typing import cast

import numpy as np
from jaxtyping import Float, UInt8

from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import (
    Projection,
    principal_directions,
    random_rotation,
    require_directions,
)


class PCARR(ShallowHasher):
    """Fit PCARR, signs of principal components after a random rotation.

    Args:
        **settings: Arguments of ``ShallowHasher``.
    """

    supervision = "none"

    def __init__(self, **settings):
        super().__init__(**settings)
        require_directions(self.bits, len(self.train_labels), self.width, "PCARR")
        self.network.hash_layer = Projection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Store the principal directions of the training set, rotated at random."""
        mean, directions, _ = principal_directions(x, self.bits, "PCARR")
        cast(Projection, self.network.hash_layer).set(directions @ random_rotation(self.bits, rng), mean)

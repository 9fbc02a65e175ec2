"""LSH: Similarity Estimation Techniques from Rounding Algorithms (Charikar, STOC 2002).

https://www.cs.princeton.edu/courses/archive/spr04/cos598B/bib/CharikarEstim.pdf

    b_k = sgn(<w_k, x - mean>),   w_k ~ N(0, I)

Each bit is the side of a random hyperplane: two vectors at an angle t differ in a bit with probability t / pi. Only the
mean of the training set is learned.

Where we differ: the paper does not centre the features. Features after a ReLU lie in one orthant, where hyperplanes
through the origin separate few of them.
"""

from typing import cast

import numpy as np
from jaxtyping import Float, UInt8

from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import Projection


class LSH(ShallowHasher):
    """Fit LSH, signs of random projections.

    Args:
        **settings: Arguments of ``ShallowHasher``.
    """

    supervision = "none"

    def __init__(self, **settings):
        super().__init__(**settings)
        self.network.hash_layer = Projection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Draw the hyperplanes and store the mean."""
        cast(Projection, self.network.hash_layer).set(rng.standard_normal((self.width, self.bits)), x.mean(axis=0))

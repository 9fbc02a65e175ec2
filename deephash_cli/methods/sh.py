"""SH: Spectral Hashing (Weiss, Torralba and Fergus, NIPS 2008).

https://papers.nips.cc/paper/3383-spectral-hashing

    min over y_1..y_n of sum over i, j of exp(-|x_i - x_j|^2 / epsilon^2) |y_i - y_j|^2
    with y of +1 and -1, sum over i of y_i = 0, (1 / n) sum over i of y_i y_i' = I

Without the condition that y is binary, and for features that fill a box evenly, the solutions are known: along the side
v_d from a to b of the box, ``sin(pi/2 + m pi / (b - a) (v_d - a))`` for the modes m = 1, 2, ..; the lower, the better.
The sides are the leading principal directions, a and b the smallest and the largest training value. Of all modes of all
sides, the K of lowest frequency ``m pi / (b - a)`` give the bits; a long side gives several. So there may be more bits
than features. A mode that changes along one side only has the factor 1 for each other side, and ``sin(pi/2 + t)`` is
``cos(t)``.

Where we differ: nothing is added to a and b. Public versions widen the box by the smallest number there is, so that
they can divide by a side of length 0; here such a side has no modes.
"""

from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from deephash_cli.errors import ConfigError
from deephash_cli.hash_layers import Projection, principal_directions
from deephash_cli.methods.base import ShallowHasher


class CosineProjection(Projection):
    """``u = cos((x - mean) W)``."""

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Continuous codes."""
        return torch.cos(super().forward(x))


class SH(ShallowHasher):
    """SH, on as many principal directions as bits, or on all if there are fewer.

    Args:
        **settings: Those of ``ShallowHasher``.
    """

    supervision = "none"

    def __init__(self, **settings):
        super().__init__(**settings)
        self.network.hash_layer = CosineProjection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """The box, then its smoothest modes."""
        n, d = x.shape
        mean, directions, _ = principal_directions(x, min(self.bits, d, n - 1), "SH")
        v = (x - mean) @ directions
        low = v.min(axis=0)  # a
        sides, frequencies = smoothest_modes(v.max(axis=0) - low, self.bits)
        weight = directions[:, sides] * frequencies
        # (x - mean - directions a) weight = (v - a) frequencies: one mean in place of two
        cast(Projection, self.network.hash_layer).set(weight, mean + directions @ low)


def smoothest_modes(
    lengths: Float[np.ndarray, " sides"], bits: int
) -> tuple[Int[np.ndarray, " bits"], Float[np.ndarray, " bits"]]:
    """Side and frequency of the eigenfunctions of lowest frequency on a box, without the constant one.

    Args:
        lengths: Of the sides of the box.
        bits: How many.

    Raises:
        ConfigError: If the box is a point.
    """
    longest = lengths.max(initial=0)
    if longest == 0:
        raise ConfigError("SH divides the range of the training features, but all of them are the same")
    # those below mode bits + 1 of the longest side, which alone has enough
    most = np.maximum(np.ceil((bits + 1) * (lengths / longest)).astype(int) - 1, 0)
    sides = np.repeat(np.arange(len(lengths)), most)
    modes = np.concatenate([np.arange(1, count + 1) for count in most])
    frequencies = modes * np.pi / lengths[sides]
    smoothest = np.argsort(frequencies, kind="stable")[:bits]
    return sides[smoothest], frequencies[smoothest]

"""SH: Spectral Hashing (Weiss, Torralba and Fergus, NIPS 2008).

https://papers.nips.cc/paper/3383-spectral-hashing

    min over y_1..y_n of sum over i, j of exp(-|x_i - x_j|^2 / epsilon^2) |y_i - y_j|^2
    with y of +1 and -1, sum over i of y_i = 0, (1 / n) sum over i of y_i y_i' = I

If y need not be binary and the features fill a box evenly, the solutions are known. Along the side v_d of the box, from
a to b, they are ``sin(pi/2 + m pi / (b - a) (v_d - a))`` for the modes m = 1, 2, .. A lower mode is better. The sides
are the leading principal directions, and a and b are the smallest and the largest training value along one of them. Of
all modes of all sides, the K with the lowest frequencies ``m pi / (b - a)`` give the bits. A long side gives several
bits, so there may be more bits than features. A mode that changes along one side only has the factor 1 for each other
side, and ``sin(pi/2 + t)`` is ``cos(t)``.

Where we differ: the box from a to b is used as it is. Public versions widen it by the smallest positive number, so that
they can divide by a side of length 0. Here such a side has no modes.
"""

from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from deephash_cli.errors import ConfigError
from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import Projection, principal_directions


class CosineProjection(Projection):
    """The encoder ``u = cos((x - mean) W)``."""

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Return continuous codes."""
        return torch.cos(super().forward(x))


class SH(ShallowHasher):
    """Fit SH on as many principal directions as there are bits, or on all directions if there are fewer.

    Args:
        **settings: Arguments of ``ShallowHasher``.
    """

    supervision = "none"

    def __init__(self, **settings):
        super().__init__(**settings)
        self.network.hash_layer = CosineProjection(self.width, self.bits)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Find the box, then its smoothest modes."""
        n, d = x.shape
        mean, directions, _ = principal_directions(x, min(self.bits, d, n - 1), "SH")
        v = (x - mean) @ directions
        low = v.min(axis=0)  # a
        sides, frequencies = smoothest_modes(v.max(axis=0) - low, self.bits)
        weight = directions[:, sides] * frequencies
        # (x - mean - directions a) weight = (v - a) frequencies, so one mean includes both offsets.
        cast(Projection, self.network.hash_layer).set(weight, mean + directions @ low)


def smoothest_modes(
    lengths: Float[np.ndarray, " sides"], bits: int
) -> tuple[Int[np.ndarray, " bits"], Float[np.ndarray, " bits"]]:
    """Return side and frequency of the lowest-frequency eigenfunctions on a box, without the constant one.

    Args:
        lengths: Lengths of the sides of the box.
        bits: Number of eigenfunctions.

    Raises:
        ConfigError: If the box is a point.
    """
    longest = lengths.max(initial=0)
    if longest == 0:
        raise ConfigError("SH divides the range of the training features, but all of them are the same")
    # Consider modes of lower frequency than mode bits + 1 of the longest side, which has enough by itself.
    most = np.maximum(np.ceil((bits + 1) * (lengths / longest)).astype(int) - 1, 0)
    sides = np.repeat(np.arange(len(lengths)), most)
    modes = np.concatenate([np.arange(1, count + 1) for count in most])
    frequencies = modes * np.pi / lengths[sides]
    smoothest = np.argsort(frequencies, kind="stable")[:bits]
    return sides[smoothest], frequencies[smoothest]

"""KMH: K-Means Hashing: An Affinity-Preserving Quantization Method for Learning Binary Compact Codes
(He, Wen and Sun, CVPR 2013).

https://openaccess.thecvf.com/content_cvpr_2013/html/He_K-Means_Hashing_An_2013_CVPR_paper.html

The space is a product of K / b subspaces. In each, the index of the nearest of 2^b centres c_i is b bits of the code,
and the centres are where distances between them are like those of their indices:

    min over c of (1 / n) sum over x of |x - c_i(x)|^2 + lambda sum over i < j of w_ij (|c_i - c_j| - d_ij)^2
    w_ij = n_i n_j / n^2,   d_ij = 2 s sqrt(Hamming distance of i and j)

with n_i the size of cell i. The subspaces are principal directions, dealt out so that the products of their variances
are alike (as in OPQ). The centres start as the corners ``+-s`` of a cube on the b leading directions, where the second
term is 0, with s the best scale for the data, ``mean |x|``. In turns: each x to its nearest centre; each centre in its
turn to a minimum by BFGS, the others, the cells and s held fixed. The first step cannot raise the first term and the
second cannot raise the sum. But cells of other sizes have other w, so that from turn to turn the sum may rise a little.

Where we differ: a subspace has ``directions_per_bit`` b directions and the rest are left out; the paper shares out all
of them. Less than b would be no cube; more cost time, and the codes that we measured were no better for them. If K is
no multiple of b the last subspace has the bits that are left. The turns end when the sum falls by less than 1e-4 of it.
A pair of centres counts once. A cell without images has w = 0: its centre stays.
"""  # noqa: D205  (the title is long)

from typing import NamedTuple, cast

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from deephash_cli.console import progress
from deephash_cli.hash_layers import Projection, principal_directions, squared_distances
from deephash_cli.methods.base import ShallowHasher

_FLAT = 1e-3  # the gradient, in units of s, at which a centre is at a minimum
_ENOUGH = 1e-4  # the share of the objective below which a fall counts as none


class NearestCentre(nn.Module):
    """The index of the nearest of ``2^bits`` centres, as bits of +1 and -1.

    Args:
        width: Length of a vector.
        bits: Of the index.
    """

    def __init__(self, width: int, bits: int):
        super().__init__()
        self.register_buffer("centres", torch.zeros(2**bits, width))
        self.register_buffer("corners", torch.from_numpy(corners(bits)).float(), persistent=False)
        self.centres: Tensor
        self.corners: Tensor

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Codes."""
        return self.corners[(2 * x @ self.centres.T - self.centres.square().sum(1)).argmax(1)]


class ProductQuantizer(nn.Module):
    """A projection, and the nearest centre of each part of what it gives.

    Args:
        width: Length of a feature vector.
        subspaces: Directions and bits of each.
    """

    def __init__(self, width: int, subspaces: list[tuple[int, int]]):
        super().__init__()
        self.directions = [directions for directions, _ in subspaces]
        self.projection = Projection(width, sum(self.directions))
        self.parts = nn.ModuleList(NearestCentre(directions, bits) for directions, bits in subspaces)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Codes of +1 and -1."""
        parts = self.projection(x).split(self.directions, dim=1)
        return torch.cat([nearest(part) for nearest, part in zip(self.parts, parts, strict=True)], dim=1)


class KMH(ShallowHasher):
    """KMH.

    Args:
        subspace_bits: Bits of a subspace (b), which has ``2^b`` centres.
        directions_per_bit: Principal directions of a subspace, for each of its bits; as many as there are at most.
        affinity_weight: Of the second term (lambda).
        iterations: Turns at most.
        **settings: Those of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of range.
    """

    supervision = "none"

    def __init__(
        self, subspace_bits: int, directions_per_bit: int, affinity_weight: float, iterations: int, **settings
    ):
        super().__init__(**settings)
        if not 1 <= subspace_bits <= 8:
            raise ValueError(f"module.subspace_bits must be between 1 and 8, got {subspace_bits}")
        if directions_per_bit < 1 or affinity_weight < 0 or iterations < 1:
            raise ValueError(
                "KMH needs module.directions_per_bit and module.iterations of 1 or more and module.affinity_weight of "
                f"0 or more, got {directions_per_bit}, {iterations} and {affinity_weight}"
            )
        self.affinity_weight = affinity_weight
        self.iterations = iterations
        available = min(self.width, len(self.train_labels) - 1)
        each = max(1, min(directions_per_bit, available // self.bits))
        whole, left = divmod(self.bits, subspace_bits)
        self.subspaces = [(each * bits, bits) for bits in [subspace_bits] * whole + [left] * (left > 0)]
        self.network.hash_layer = ProductQuantizer(self.width, self.subspaces)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """Principal directions, dealt out; then each subspace's centres."""
        layer = cast(ProductQuantizer, self.network.hash_layer)
        mean, directions, variances = principal_directions(x, sum(layer.directions), "KMH")
        shares = allocate(variances, layer.directions)
        layer.projection.set(directions[:, np.concatenate(shares)], mean)
        centred = x - mean
        with progress("fitting, subspaces", len(shares)) as update:
            for number, (share, nearest) in enumerate(zip(shares, layer.parts, strict=True)):
                v, bits = centred @ directions[:, share], self.subspaces[number][1]
                centres = self._centres(v, bits)
                cast(NearestCentre, nearest).centres.copy_(torch.from_numpy(centres))
                update(number + 1)

    def _centres(self, v: Float[np.ndarray, "n d"], bits: int) -> Float[np.ndarray, "centres d"]:
        """Centres of one subspace, whose directions come in order of variance."""
        vertices = corners(bits)
        scale = np.abs(v[:, :bits]).mean() or 1.0  # s
        v = v / scale
        centres = np.zeros((len(vertices), v.shape[1]))
        centres[:, :bits] = vertices
        targets = np.sqrt(squared_distances(vertices, vertices))  # d_ij
        last = np.inf
        for _ in range(self.iterations):
            cells = squared_distances(v, centres).argmin(axis=1)
            groups = Groups.of(v, cells, len(centres))
            centres = move_centres(centres, groups, targets, self.affinity_weight)
            value = objective(v, cells, centres, targets, self.affinity_weight)
            if last - value <= _ENOUGH * value:
                break
            last = value
        return scale * centres


class Groups(NamedTuple):
    """Cells as the objective sees them: the share of the images in each, and their means (0 if there are none)."""

    shares: Float[np.ndarray, " centres"]  # n_i / n
    means: Float[np.ndarray, "centres d"]

    @classmethod
    def of(cls, x: Float[np.ndarray, "n d"], cells: Int[np.ndarray, " n"], count: int) -> "Groups":
        """From vectors and the number of each one's cell."""
        members = np.eye(count)[cells]
        sizes = members.sum(axis=0)
        return cls(sizes / len(x), members.T @ x / np.maximum(sizes, 1)[:, None])


def corners(bits: int) -> Float[np.ndarray, "corners bits"]:
    """Every code of +1 and -1: row i has the bits of i, the lowest first."""
    return np.where(np.arange(2**bits)[:, None] >> np.arange(bits) & 1, 1.0, -1.0)


def allocate(variances: Float[np.ndarray, " d"], sizes: list[int]) -> list[Int[np.ndarray, " share"]]:
    """Deal out directions: in order of variance, each to the subspace with room whose product of variances is least.

    Args:
        variances: Largest first, as many as there is room.
        sizes: Room of each subspace.
    """
    smallest = variances[0] * 1e-12 if variances[0] > 0 else 1.0
    scaled = np.log(np.maximum(variances, smallest))
    scaled -= scaled[-1]  # products of numbers below 1 would fall, not grow
    products, shares = np.zeros(len(sizes)), [[] for _ in sizes]
    for direction, value in enumerate(scaled):
        room = [m for m, size in enumerate(sizes) if len(shares[m]) < size]
        least = min(room, key=lambda m: (products[m], len(shares[m])))
        shares[least].append(direction)
        products[least] += value
    return [np.array(share) for share in shares]


def objective(
    x: Float[np.ndarray, "n d"],
    cells: Int[np.ndarray, " n"],
    centres: Float[np.ndarray, "m d"],
    targets: Float[np.ndarray, "m m"],
    affinity_weight: float,
) -> float:
    """The sum of both terms.

    Args:
        x: Vectors.
        cells: The centre of each.
        centres: Of the cells.
        targets: Distances that pairs of centres should have (d_ij).
        affinity_weight: Of the second term (lambda).
    """
    shares = np.bincount(cells, minlength=len(centres)) / len(x)
    gaps = np.sqrt(squared_distances(centres, centres)) - targets
    pairs = np.triu(np.outer(shares, shares) * np.square(gaps), k=1).sum()
    return float(np.square(x - centres[cells]).sum(axis=1).mean() + affinity_weight * pairs)


def move_centres(
    centres: Float[np.ndarray, "m d"], groups: Groups, targets: Float[np.ndarray, "m m"], affinity_weight: float
) -> Float[np.ndarray, "m d"]:
    """Minimise the objective in each centre in its turn. A centre stays where BFGS finds nothing lower."""
    centres = centres.copy()
    for j in np.flatnonzero(groups.shares):
        others = np.delete(np.arange(len(centres)), j)
        weights = affinity_weight * groups.shares[j] * groups.shares[others]
        terms = (groups.means[j], groups.shares[j], centres[others], targets[j, others], weights)
        found = scipy.optimize.minimize(one_centre, centres[j], terms, method="BFGS", jac=True, options={"gtol": _FLAT})
        if found.fun < one_centre(centres[j], *terms)[0]:
            centres[j] = found.x
    return centres


def one_centre(
    centre: Float[np.ndarray, " d"],
    mean: Float[np.ndarray, " d"],
    share: float,
    others: Float[np.ndarray, "m d"],
    targets: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, " m"],
) -> tuple[float, Float[np.ndarray, " d"]]:
    """What the objective depends on in one centre, and its gradient.

    Args:
        centre: The centre.
        mean: Of the vectors in its cell.
        share: Of the vectors that are in its cell.
        others: The other centres.
        targets: Distances that it should have from them.
        weights: Of these, with lambda.
    """
    offsets = centre - others
    distances = np.sqrt(np.square(offsets).sum(axis=1))
    gaps = distances - targets
    away = centre - mean
    value = share * away @ away + weights @ np.square(gaps)
    pulls = weights * gaps / np.maximum(distances, 1e-12)
    return value, 2 * share * away + 2 * pulls @ offsets

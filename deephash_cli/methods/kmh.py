"""KMH: K-Means Hashing: An Affinity-Preserving Quantization Method for Learning Binary Compact Codes
(He, Wen and Sun, CVPR 2013).

https://openaccess.thecvf.com/content_cvpr_2013/html/He_K-Means_Hashing_An_2013_CVPR_paper.html

The space is a product of K / b subspaces, each with 2^b centres c_i. The index of the nearest centre gives b bits of
the code. The centres are placed so that the distances between them are like the distances between their indices:

    min over c of (1 / n) sum over x of |x - c_i(x)|^2 + lambda sum over i < j of w_ij (|c_i - c_j| - d_ij)^2
    w_ij = n_i n_j / n^2,   d_ij = 2 s sqrt(Hamming distance of i and j)

Here n_i is the size of cell i. Principal directions are distributed over the subspaces so that the products of their
variances are similar (as in OPQ). The centres start as the corners ``+-s`` of a cube on the b leading directions, where
the second term is 0. The scale s is the best one for the data, ``mean |x|``. Two steps alternate. The first assigns
each x to its nearest centre and cannot raise the first term. The second moves each centre in turn to a minimum by BFGS,
with the other centres, the cells and s fixed, and cannot raise the sum. The sizes of the cells change between the steps
and with them w, so the sum may still rise a little from one iteration to the next.

Where we differ: a subspace has ``directions_per_bit`` b directions and the remaining directions are unused; the paper
distributes all of them. Fewer than b would not give a cube. More take longer, and the codes that we measured were no
better. If K is not a multiple of b, the last subspace has the remaining bits. The iterations end when the sum falls by
less than 1e-4 of its value. Each pair of centres is counted once. A cell without images has w = 0, so its centre stays
where it is.
"""  # noqa: D205  (the title is long)

from typing import NamedTuple, cast

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from deephash_cli.console import progress
from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import Projection, principal_directions, squared_distances
from deephash_cli.methods.parts.limits import at_least

_FLAT = 1e-3  # gradient, in units of s, below which a centre counts as being at a minimum
_ENOUGH = 1e-4  # smallest fall that continues the iterations, as a share of the objective


class NearestCentre(nn.Module):
    """Encode a vector as the index of the nearest of ``2^bits`` centres, in bits of +1 and -1.

    Args:
        width: Length of a vector.
        bits: Number of bits of the index.
    """

    def __init__(self, width: int, bits: int):
        super().__init__()
        self.register_buffer("centres", torch.zeros(2**bits, width))
        self.register_buffer("corners", torch.from_numpy(corners(bits)).float(), persistent=False)
        self.centres: Tensor
        self.corners: Tensor

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Return codes of +1 and -1."""
        return self.corners[(2 * x @ self.centres.T - self.centres.square().sum(1)).argmax(1)]


class ProductQuantizer(nn.Module):
    """Project a vector, divide it into subspaces and find the nearest centre in each.

    Args:
        width: Length of a feature vector.
        subspaces: Number of directions and number of bits of each subspace.
    """

    def __init__(self, width: int, subspaces: list[tuple[int, int]]):
        super().__init__()
        self.directions = [directions for directions, _ in subspaces]
        self.projection = Projection(width, sum(self.directions))
        self.parts = nn.ModuleList(NearestCentre(directions, bits) for directions, bits in subspaces)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Return codes of +1 and -1."""
        parts = self.projection(x).split(self.directions, dim=1)
        return torch.cat([nearest(part) for nearest, part in zip(self.parts, parts, strict=True)], dim=1)


class KMH(ShallowHasher):
    """Fit KMH.

    Args:
        subspace_bits: Number of bits of a subspace (b), which has ``2^b`` centres.
        directions_per_bit: Number of principal directions of a subspace for each of its bits; fewer if the training
            set does not have as many.
        affinity_weight: Weight of the second term (lambda).
        iterations: Maximum number of iterations of both steps.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of range.
    """

    supervision = "none"

    def __init__(
        self, subspace_bits: int, directions_per_bit: int, affinity_weight: float, iterations: int, **settings
    ):
        super().__init__(**settings)
        if not 1 <= subspace_bits <= 8:
            raise ValueError(f"subspace_bits must be between 1 and 8, got {subspace_bits}")
        at_least(1, directions_per_bit=directions_per_bit, iterations=iterations)
        at_least(0, affinity_weight=affinity_weight)
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
        """Distribute the principal directions over the subspaces, then fit the centres of each."""
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
        """Return the centres of one subspace, whose directions are in order of variance."""
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
    """What the objective uses of the cells: the share of the images in each and their mean (0 for an empty cell)."""

    shares: Float[np.ndarray, " centres"]  # n_i / n
    means: Float[np.ndarray, "centres d"]

    @classmethod
    def of(cls, x: Float[np.ndarray, "n d"], cells: Int[np.ndarray, " n"], count: int) -> "Groups":
        """Compute the groups from vectors, the index of each vector's cell and the number of cells."""
        members = np.eye(count)[cells]
        sizes = members.sum(axis=0)
        return cls(sizes / len(x), members.T @ x / np.maximum(sizes, 1)[:, None])


def corners(bits: int) -> Float[np.ndarray, "corners bits"]:
    """Return every code of +1 and -1: row i has the bits of i, the lowest first."""
    return np.where(np.arange(2**bits)[:, None] >> np.arange(bits) & 1, 1.0, -1.0)


def allocate(variances: Float[np.ndarray, " d"], sizes: list[int]) -> list[Int[np.ndarray, " share"]]:
    """Distribute directions over subspaces.

    In order of variance, each direction goes to the subspace with room that has the least product of variances.

    Args:
        variances: Variances of the directions, largest first; as many as the sum of ``sizes``.
        sizes: Number of directions of each subspace.

    Returns:
        The indices of the directions of each subspace.
    """
    smallest = variances[0] * 1e-12 if variances[0] > 0 else 1.0
    scaled = np.log(np.maximum(variances, smallest))
    scaled -= scaled[-1]  # otherwise products of numbers below 1 would fall, not grow
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
    """Return the objective, the sum of both terms.

    Args:
        x: Vectors of one subspace.
        cells: Index of each vector's centre.
        centres: Centres of the cells.
        targets: Distances that pairs of centres should have (d_ij).
        affinity_weight: Weight of the second term (lambda).
    """
    shares = np.bincount(cells, minlength=len(centres)) / len(x)
    gaps = np.sqrt(squared_distances(centres, centres)) - targets
    pairs = np.triu(np.outer(shares, shares) * np.square(gaps), k=1).sum()
    return float(np.square(x - centres[cells]).sum(axis=1).mean() + affinity_weight * pairs)


def move_centres(
    centres: Float[np.ndarray, "m d"], groups: Groups, targets: Float[np.ndarray, "m m"], affinity_weight: float
) -> Float[np.ndarray, "m d"]:
    """Minimise the objective in one centre after the other. A centre stays if BFGS finds no lower value."""
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
    """Return the part of the objective that depends on one centre, and its gradient.

    Args:
        centre: The centre.
        mean: Mean of the vectors in its cell.
        share: Share of all vectors that are in its cell.
        others: The other centres.
        targets: Distances that the centre should have from the others.
        weights: Weights ``lambda w_ij`` of these distances.
    """
    offsets = centre - others
    distances = np.sqrt(np.square(offsets).sum(axis=1))
    gaps = distances - targets
    away = centre - mean
    value = share * away @ away + weights @ np.square(gaps)
    pulls = weights * gaps / np.maximum(distances, 1e-12)
    return value, 2 * share * away + 2 * pulls @ offsets

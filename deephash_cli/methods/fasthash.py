"""FastHash: Fast Supervised Hashing with Decision Trees for High-Dimensional Data (Lin et al., CVPR 2014).

    min over codes of sum_ij loss(d_ij, s_ij),   d_ij the Hamming distance of codes i and j

The bits are learned one after the other, each in two steps. For bit number r, let ``d`` be the distance in the bits
before it. Up to a constant, the sum is then ``(1/2) sum_ij a_ij z_i z_j`` with ``a_ij = loss(d_ij) - loss(d_ij + 1)``.

    hinge:  (d / r)^2 of similar pairs, max(0, 1/2 - d / r)^2 of others
    ksh:    (s - (r - 2 d) / r)^2 with s of +1 and -1

1. Binary inference minimises this sum over z of +1 and -1. It takes one block of mutually similar images at a time and
   holds the others fixed. Inside such a block every ``a_ij <= 0``, so images are pulled together.
2. Boosted trees (with the exponential loss) learn to predict z. The next bit is inferred from their predictions, not
   from z.

The blocks are built greedily in random order. Each image that is not in a block yet starts one, and is joined by the
images that are similar to it and to each other, up to ``block`` images. An image without labels is a block by itself.

Where we differ: the minimum of a block is not found by GraphCut. Instead, the images of a block are ordered by the pull
of all other images, and the best cut of that order is taken. This is the exact minimum while the images of the block
have equal codes. Then each image is flipped if that lowers the objective. Neither of these can raise the objective, and
in 13 blocks of CIFAR-10 it became as low as with a maximum flow. The first pass starts from z = 0, so a block sees only
the blocks before it; the paper does not say how it starts. The trees are scikit-learn's gradient boosting on random
parts of the images; the paper uses AdaBoost and leaves out the images of the least weight. There are half as many trees
as published (with 50 instead of 100 the mAP of CIFAR-10 is .04 to .05 lower, see experiments/canon-cifar10). A node
chooses among fewer features, and features are not reduced to 8 bits.
"""

from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from sklearn.ensemble import GradientBoostingClassifier
from torch import Tensor, nn

from deephash_cli.console import progress
from deephash_cli.methods.base import ShallowHasher
from deephash_cli.methods.parts.hash_layers import signs
from deephash_cli.methods.parts.limits import above_zero, at_least

_LARGEST = 1 << 20  # size limit of an intermediate result of the trees


class FastHash(ShallowHasher):
    """Fit boosted trees to binary codes, one bit after the other.

    Args:
        pair_loss: Loss of a pair, ``hinge`` or ``ksh``.
        passes: Number of passes over all blocks for one bit.
        block: Maximum number of images in a block.
        trees: Number of boosted trees for one bit.
        depth: Depth of a tree.
        learning_rate: Learning rate of the boosting.
        subsample: Share of the images that one tree is grown on.
        candidates: Number of features that a node may split by, drawn again for each node.
        **settings: Arguments of ``ShallowHasher``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "pairs"

    def __init__(
        self,
        pair_loss: Literal["hinge", "ksh"],
        passes: int,
        block: int,
        trees: int,
        depth: int,
        learning_rate: float,
        subsample: float,
        candidates: int,
        **settings,
    ):
        super().__init__(**settings)
        if pair_loss not in ("hinge", "ksh"):
            raise ValueError(f"pair_loss must be hinge or ksh, got {pair_loss!r}")
        at_least(1, passes=passes, block=block, trees=trees, depth=depth, candidates=candidates)
        above_zero(learning_rate=learning_rate)
        if not 0 < subsample <= 1:
            raise ValueError(f"subsample must be greater than 0 and at most 1, got {subsample}")
        self.pair_loss: Literal["hinge", "ksh"] = pair_loss
        self.passes = passes
        self.block = block
        self.boosting = {
            "loss": "exponential",
            "init": "zero",
            "n_estimators": trees,
            "max_depth": depth,
            "learning_rate": learning_rate,
            "subsample": subsample,
        }
        self.candidates = candidates
        self.network.hash_layer = BoostedTrees(self.bits, trees, depth)

    def fit(
        self, x: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, "n classes"], rng: np.random.Generator
    ) -> None:
        """For each bit, infer its values for the training set, then grow trees that predict them."""
        layer = cast(BoostedTrees, self.network.hash_layer)
        features = x.astype(np.float32)
        pairs = Pairs(labels, self.pair_loss)
        blocks = similar_blocks(labels, self.block, rng)
        with progress("fitting, bits", self.bits) as report:
            for k in range(self.bits):
                z = infer(pairs, [blocks[i] for i in rng.permutation(len(blocks))], self.passes)
                if abs(z.sum()) == len(z):
                    layer.set_constant(k, float(z[0]))
                else:
                    model = GradientBoostingClassifier(
                        **self.boosting,
                        max_features=min(self.candidates, features.shape[1]),
                        random_state=int(rng.integers(2**31)),
                    )
                    layer.set_trees(k, model.fit(features, z))
                predicted = layer.scores(torch.from_numpy(features), slice(k, k + 1))[:, 0].numpy()
                pairs.append(signs(predicted).astype(np.float32))
                report(k + 1)


class Pairs:
    """The weights ``a_ij`` of the next bit, a few rows at a time: the whole n x n matrix is never in memory.

    Args:
        labels: Multi-hot labels of the training set.
        loss: Loss of a pair, ``hinge`` or ``ksh``.
    """

    def __init__(self, labels: UInt8[np.ndarray, "n classes"], loss: Literal["hinge", "ksh"]):
        sets, which = np.unique(labels, axis=0, return_inverse=True)
        self._which = which.ravel()
        self._shared = _share(sets, sets)
        self._loss: Literal["hinge", "ksh"] = loss
        self.codes = np.empty((len(labels), 0), np.float32)

    def append(self, bit: Float32[np.ndarray, " n"]) -> None:
        """Append a bit to the codes, so that the weights are those of the next bit."""
        self.codes = np.column_stack([self.codes, bit])

    def rows(self, members: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b n"]:
        """Return the weights ``a`` of some images with all images; the weight of an image with itself is 0."""
        bits = self.codes.shape[1]
        distances = (bits - self.codes[members] @ self.codes.T) / 2
        similar = self._shared[self._which[members]][:, self._which]
        place = (distances + similar * np.float32(bits + 1)).astype(np.int32)
        weights = pair_weights(self._loss, bits).astype(np.float32).ravel()[place]
        weights[np.arange(len(members)), members] = 0
        return weights


def pair_weights(loss: Literal["hinge", "ksh"], bits: int) -> Float[np.ndarray, "2 distances"]:
    """Return ``loss(d) - loss(d + 1)`` for each distance d from 0 to ``bits``.

    The first row is for dissimilar pairs, the second for similar pairs.
    """
    r = bits + 1
    d = np.arange(bits + 2) / r
    if loss == "hinge":
        values = np.stack([np.maximum(0, 0.5 - d) ** 2, d**2])
    else:
        values = np.stack([(-1 - (1 - 2 * d)) ** 2, (1 - (1 - 2 * d)) ** 2])
    return values[:, :-1] - values[:, 1:]


def similar_blocks(
    labels: UInt8[np.ndarray, "n classes"], largest: int, rng: np.random.Generator
) -> list[Int[np.ndarray, " _"]]:
    """Divide the images into groups of mutually similar images, each grown greedily from a random image."""
    sets, which = np.unique(labels, axis=0, return_inverse=True)
    order = rng.permutation(len(labels))
    waiting = [order[which.ravel()[order] == kind] for kind in range(len(sets))]  # remaining images of each label set
    blocks = []
    for kind in dict.fromkeys(which.ravel()[order].tolist()):
        if not sets[kind].any():
            blocks += [np.array([image]) for image in waiting[kind]]
            continue
        members, open_to = [kind], _share(sets, sets[kind : kind + 1])[:, 0]
        for other in np.flatnonzero(open_to):
            if open_to[other] and other != kind and len(waiting[other]):
                members.append(int(other))
                open_to &= _share(sets, sets[other : other + 1])[:, 0]
        images = np.concatenate([waiting[member] for member in members])
        for member in members:
            waiting[member] = waiting[member][:0]
        blocks += [images[start : start + largest] for start in range(0, len(images), largest)]
    return blocks


def infer(pairs: Pairs, blocks: list[Int[np.ndarray, " _"]], passes: int) -> Float32[np.ndarray, " n"]:
    """Lower ``sum_ij a_ij z_i z_j`` over z, one block at a time (step 1)."""
    z = np.zeros(len(pairs.codes), np.float32)
    for _ in range(passes):
        before = z.copy()
        for members in blocks:
            weights = pairs.rows(members)
            inside = weights[:, members]
            pull = weights @ z - inside @ z[members]
            z[members] = best_of_block(inside, pull, z[members])
        if np.array_equal(z, before):
            break
    return z


def best_of_block(
    inside: Float32[np.ndarray, "b b"], pull: Float32[np.ndarray, " b"], z: Float32[np.ndarray, " b"]
) -> Float32[np.ndarray, " b"]:
    """Lower ``z' inside z + 2 pull' z`` over the z of a block, of +1 and -1.

    Args:
        inside: Weights between images of the block: symmetric, with zeros on the diagonal and no positive entries.
        pull: Pull of all images outside the block on each of its images.
        z: Present values of the block; zeros if none were chosen yet.
    """
    order = np.argsort(pull, kind="stable")  # the images with the strongest pull to +1 come first
    w, h = inside[order][:, order].astype(np.float64), pull[order].astype(np.float64)
    # If the first p images are +1 and the others -1, only the pulls and the pairs across the cut depend on p.
    across = np.cumsum(w.sum(axis=1) - 2 * np.tril(w).sum(axis=1))
    energies = np.concatenate([[0], 4 * (np.cumsum(h) - across)]) + w.sum() - 2 * h.sum()
    p = int(np.argmin(energies))
    if not z.any() or energies[p] < z @ (inside @ z + 2 * pull):
        z = np.empty_like(z)
        z[order[:p]], z[order[p:]] = 1, -1
    z = z.copy()
    for i in range(len(z)):
        if z[i] * (inside[i] @ z + pull[i]) > 0:
            z[i] = -z[i]
    return z


def _share(labels: UInt8[np.ndarray, "n classes"], others: UInt8[np.ndarray, "m classes"]) -> np.ndarray:
    return labels.astype(np.float32) @ others.T.astype(np.float32) > 0


class BoostedTrees(nn.Module):
    """Scores of boosted trees, one ensemble for each bit.

    Each tree is a perfect binary tree in heap order: node i has children 2i+1 and 2i+2.

    Args:
        bits: Code length.
        trees: Number of trees for one bit.
        depth: Depth of each tree.
    """

    def __init__(self, bits: int, trees: int, depth: int):
        super().__init__()
        self.register_buffer("feature", torch.zeros(bits, trees, 2**depth - 1, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(bits, trees, 2**depth - 1))
        self.register_buffer("leaf", torch.zeros(bits, trees, 2**depth))
        self.feature: Tensor
        self.threshold: Tensor
        self.leaf: Tensor

    def set_constant(self, bit: int, value: float) -> None:
        """Set a bit to the same value for all images."""
        self.leaf[bit] = value / self.leaf.shape[1]

    def set_trees(self, bit: int, model: GradientBoostingClassifier) -> None:
        """Store the ensemble for a bit. Its scores must start from zero (``init="zero"``)."""
        for tree, estimator in enumerate(model.estimators_[:, 0]):
            grown = estimator.tree_
            nodes = np.zeros(1, np.int64)  # nodes of scikit-learn's tree, for one level of the perfect tree
            start = 0
            while start < self.feature.shape[2]:
                inner = grown.children_left[nodes] >= 0
                # A leaf above the last level is copied to both of its children.
                level = slice(start, start + len(nodes))
                self.feature[bit, tree, level] = torch.from_numpy(np.where(inner, grown.feature[nodes], 0))
                threshold = np.where(inner, grown.threshold[nodes], 0.0)
                self.threshold[bit, tree, level] = torch.from_numpy(_float32_below(threshold))
                children = (grown.children_left, grown.children_right)
                start += len(nodes)
                nodes = np.stack([np.where(inner, side[nodes], nodes) for side in children], axis=1).ravel()
            values = grown.value[nodes, 0, 0] * model.learning_rate
            self.leaf[bit, tree] = torch.from_numpy(values)

    def scores(self, x: Float[Tensor, "n d"], bits: slice) -> Float[Tensor, "n k"]:
        """Return the sum over the trees for a slice of the bits."""
        feature, threshold, leaf = (part[bits].flatten(0, 1) for part in (self.feature, self.threshold, self.leaf))
        depth, trees = leaf.shape[1].bit_length() - 1, self.leaf.shape[1]
        rows = max(1, _LARGEST // leaf.numel())
        parts = []
        for chunk in x.split(rows):
            columns, value = chunk.T.contiguous(), leaf[:, :, None]
            # From the last level up, each node takes the value of the child that the image goes to. This computes all
            # nodes instead of one per level, but needs no separate path for each image.
            for level in reversed(range(depth)):
                nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
                right = columns[feature[:, nodes]] > threshold[:, nodes, None]
                value = torch.where(right, value[:, 1::2], value[:, ::2])
            parts.append(value[:, 0].unflatten(0, (-1, trees)).sum(dim=1).T)
        return torch.cat(parts)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Return continuous codes."""
        return self.scores(x, slice(None))


def _float32_below(values: Float[np.ndarray, " k"]) -> Float32[np.ndarray, " k"]:
    """Return the greatest float32 not above each value, so that comparing a float32 with either gives the same."""
    rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)

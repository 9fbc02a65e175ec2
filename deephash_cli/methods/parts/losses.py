"""Loss terms that several papers share.

A loss is a formula on tensors. It does not depend on the epoch, the order of batches or Lightning.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def signs(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return binary codes of +1 and -1. Zero becomes +1, as in ``codes.binarize``; ``torch.sign`` would give 0."""
    return torch.where(u >= 0, 1.0, -1.0).to(u.dtype)


def similar(labels: Float[Tensor, "n classes"], others: Float[Tensor, "m classes"]) -> Float[Tensor, "n m"]:
    """Return the similarity matrix S: 1 for pairs that share at least one label, else 0.

    The entries are numbers, because the likelihoods multiply by them. On the CPU, a comparison that gives booleans and
    their conversion back to numbers take a tenth of a step.
    """
    return (labels @ others.T).gt_(0)


def pair_likelihood(
    u: Float[Tensor, "n bits"], others: Float[Tensor, "m bits"], similar: Float[Tensor, "n m"], balanced: bool
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of pairs, ``log(1 + exp(t)) - s t`` with ``t = <u_i, u_j> / 2``.

    This is the likelihood of LFH (Zhang et al., SIGIR 2014), used by DPSH and DSDH.

    Args:
        u: Outputs of the batch.
        others: Outputs that the batch is paired with.
        similar: 1 for pairs that share a label, else 0.
        balanced: Whether half of the weight is on similar pairs, however few they are, and half on the others. With ten
            classes nine of ten pairs are dissimilar, so an unweighted mean hardly notices images that lose their class.
    """
    weights = _half_each(similar) if balanced else None
    return _NegativeLogLikelihood.apply((u / 2) @ others.T, similar, weights)


def _half_each(similar: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Return weights with a mean of 1: half of their sum is on similar pairs, and half on the others."""
    share = similar.mean()
    return torch.where(similar > 0, 0.5 / share, 0.5 / (1 - share))


def balanced_mean(values: Float[Tensor, "n n"], similar: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Return the mean of a value over all similar pairs of a batch, plus that over all other pairs.

    It is the mean over pairs with the weights of HashNet and DCH: ``|S| / |S1|`` for a similar pair and ``|S| / |S0|``
    for another one, where ``|S|``, ``|S1|`` and ``|S0|`` are the numbers of all, similar and dissimilar pairs of the
    batch. A batch without pairs of one kind has the mean of the other kind alone.

    Args:
        values: A value for each pair. The diagonal is ignored: a pair consists of two images.
        similar: 1 for pairs that share a label, else 0.
    """
    others = 1 - torch.eye(len(values), dtype=values.dtype, device=values.device)
    kinds = (similar * others, (1 - similar) * others)
    return torch.stack([(kind * values).sum() / kind.sum().clamp(min=1) for kind in kinds]).sum()


def margin_softmax(
    u: Float[Tensor, "n bits"],
    codes: Float[Tensor, "classes bits"],
    labels: Float[Tensor, "n classes"],
    scale: float,
    margin: float,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of ``softmax(s (cos(u, o_c) - m y_c))`` with the targets ``y / |y|_1``.

    This is the loss of OrthoHash (Hoe et al., NeurIPS 2021), also used by CRH.

    Args:
        u: Outputs of the batch.
        codes: Code o_c of each class, of +1 and -1.
        labels: Multi-hot labels y of the batch. Rows without a label do not count.
        scale: Factor s of the cosines.
        margin: Margin m, subtracted from the cosines of an image's own classes.
    """
    cosines = normalize(u) @ normalize(codes).T
    return class_entropy((scale * (cosines - margin * labels)).log_softmax(dim=1), labels)


def cubic_quantization(u: Float[Tensor, "n bits"]) -> Float[Tensor, ""]:
    """Return the mean of ``| |u| - 1 |^3`` over images and bits, the penalty of GreedyHash. At 0 it pulls to +1."""
    return (signs(u.detach()) * u - 1).abs().pow(3).mean()


def class_entropy(log_p: Float[Tensor, "n classes"], labels: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of classes, as a mean over the images that have a label.

    The labels of an image have equal shares of its target, ``y / |y|_1``.

    Args:
        log_p: Logarithms of the probabilities of the classes.
        labels: Multi-hot labels. Images without any do not count; if no image has one, the value is 0.
    """
    count = labels.sum(dim=1, keepdim=True)
    each = -(labels / count.clamp(min=1) * log_p).sum(dim=1)
    return each.sum() / (count > 0).sum().clamp(min=1)


class _NegativeLogLikelihood(torch.autograd.Function):
    """Weighted mean of ``log(1 + exp(t)) - s t``, whose gradient is ``sigmoid(t) - s`` by the number of pairs.

    ``log(1 + exp(t)) = max(t, 0) - log(sigmoid(|t|))`` is finite for every t. On the CPU this takes less than half the
    time of torch's softplus and the tensors that it saves for the gradient. With pairs against a whole training set,
    the likelihood takes half of a step.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, similar: Tensor, weights: Tensor | None) -> Tensor:  # type: ignore[override]
        similar = similar.to(theta.dtype)
        slope = theta.sigmoid().sub_(similar)
        hinge = theta.clamp(min=0).sub_(similar * theta)  # per pair: the difference of two sums would lose digits
        rest = theta.abs().sigmoid_().log_()
        if weights is not None:
            for part in (slope, hinge, rest):
                part.mul_(weights)
        ctx.save_for_backward(slope)
        return hinge.mean() - rest.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return slope * (gradient / slope.numel()), None, None

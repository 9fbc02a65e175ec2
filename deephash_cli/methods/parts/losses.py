"""Loss terms that several papers share.

A loss is a formula on tensors. It does not depend on the epoch, the order of batches or Lightning.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def signs(u: Float[Tensor, "n bits"]) -> Float[Tensor, "n bits"]:
    """Return binary codes of +1 and -1. Zero becomes +1, as in ``codes.binarize``; ``torch.sign`` would give 0."""
    return torch.where(u >= 0, 1.0, -1.0).to(u.dtype)


def similar(labels: Float[Tensor, "n classes"], others: Float[Tensor, "m classes"]) -> Float[Tensor, "n m"]:
    """Return the similarity matrix S: 1 for pairs that share at least one label, else 0.

    The entries are numbers, because the likelihoods multiply by them. On the CPU, a comparison that gives booleans and
    their conversion back to numbers take a tenth of a step.
    """
    return (labels @ others.T).gt_(0)


def pair_likelihood(
    u: Float[Tensor, "n bits"], others: Float[Tensor, "m bits"], similar: Float[Tensor, "n m"]
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of pairs, ``log(1 + exp(t)) - s t`` with ``t = <u_i, u_j> / 2``.

    This is the likelihood of LFH (Zhang et al., SIGIR 2014), used by DPSH and DSDH.
    """
    return _NegativeLogLikelihood.apply((u / 2) @ others.T, similar)


def cubic_quantization(u: Float[Tensor, "n bits"]) -> Float[Tensor, ""]:
    """Return the mean of ``| |u| - 1 |^3`` over images and bits, the penalty of GreedyHash. At 0 it pulls to +1."""
    return (signs(u.detach()) * u - 1).abs().pow(3).mean()


class _NegativeLogLikelihood(torch.autograd.Function):
    """Mean of ``log(1 + exp(t)) - s t``, whose gradient is ``sigmoid(t) - s`` divided by the number of pairs.

    ``log(1 + exp(t)) = max(t, 0) - log(sigmoid(|t|))`` is finite for every t. On the CPU this takes less than half the
    time of torch's softplus and the tensors that it saves for the gradient. With pairs against a whole training set,
    the likelihood takes half of a step.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, similar: Tensor) -> Tensor:  # type: ignore[override]
        similar = similar.to(theta.dtype)
        ctx.save_for_backward(theta.sigmoid().sub_(similar))
        hinge = theta.clamp(min=0).sub_(similar * theta)  # per pair: the difference of two sums would lose digits
        return hinge.mean() - theta.abs().sigmoid_().log_().mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return slope * (gradient / slope.numel()), None

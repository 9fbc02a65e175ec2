"""Terms that several papers share. A loss is a formula on tensors: it knows no epoch, no batch order, no Lightning."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def signs(u: Float[Tensor, "n bits"]) -> Float[Tensor, "n bits"]:
    """Binary codes as +1 and -1. Zero counts as +1, as in ``codes.binarize``; ``torch.sign`` would give 0."""
    return torch.where(u >= 0, 1.0, -1.0).to(u.dtype)


def similar(labels: Float[Tensor, "n classes"], others: Float[Tensor, "m classes"]) -> Bool[Tensor, "n m"]:
    """Pairs that share at least one label."""
    return labels @ others.T > 0


def pair_likelihood(
    u: Float[Tensor, "n bits"], others: Float[Tensor, "m bits"], similar: Bool[Tensor, "n m"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of pairs, ``log(1 + exp(t)) - s t`` with ``t = <u_i, u_j> / 2``.

    The likelihood of LFH (Zhang et al., SIGIR 2014), used by DPSH and DSDH. Softplus keeps value and gradient finite
    where ``log(1 + exp(t))`` overflows.
    """
    return _NegativeLogLikelihood.apply((u / 2) @ others.T, similar)


class _NegativeLogLikelihood(torch.autograd.Function):
    """Mean of ``max(t, 0) + log(1 + exp(-|t|)) - s t``, whose gradient is ``sigmoid(t) - s`` over the number of pairs.

    On the CPU this takes half the time of torch's softplus and what it records: with pairs against a whole training
    set that is half of a step. ``log1p`` is its slow part; what ``log`` loses against it is below the sum's rounding.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, similar: Tensor) -> Tensor:  # type: ignore[override]
        s = similar.to(theta.dtype)
        ctx.save_for_backward(theta, s)
        softplus = theta.abs().neg_().exp_().add_(1).log_().add_(theta.clamp(min=0))
        return softplus.sub_(s.mul(theta)).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        theta, s = ctx.saved_tensors
        return theta.sigmoid().sub_(s).mul_(gradient / theta.numel()), None

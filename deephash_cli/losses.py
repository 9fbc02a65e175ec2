"""Terms that several papers share. A loss is a formula on tensors: it knows no epoch, no batch order, no Lightning."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus


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

    The likelihood of LFH (Zhang et al., SIGIR 2014), used by DPSH, DTSH and DSDH. Softplus keeps value and gradient
    finite where ``log(1 + exp(t))`` overflows.
    """
    theta = u @ others.T / 2
    return (softplus(theta) - similar * theta).mean()

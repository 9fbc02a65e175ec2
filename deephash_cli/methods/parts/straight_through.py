"""Binary codes in a forward pass that a gradient passes as if nothing had been binarized."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deephash_cli.methods.parts.losses import signs


def straight_through(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the signs of ``u``, whose gradient becomes that of ``u`` unchanged (Bengio et al., arXiv:1308.3432).

    The values are +1 and -1 exactly; ``u + (signs(u) - u).detach()`` would differ by rounding.
    """
    return _StraightThrough.apply(u)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, u: Tensor) -> Tensor:  # type: ignore[override]
        return signs(u)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient

"""Binary codes in a forward pass that a gradient passes as if nothing had been binarized."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deephash_cli.methods.parts.losses import signs


def straight_through(
    u: Float[Tensor, "*shape"], codes: Float[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*shape"]:
    """Return codes, whose gradient becomes that of ``u`` unchanged (Bengio et al., arXiv:1308.3432).

    The values are those of the codes exactly; ``u + (codes - u).detach()`` would differ by rounding.

    Args:
        u: Continuous codes.
        codes: Codes that were made from ``u``; None for its signs.
    """
    return _StraightThrough.apply(u, signs(u) if codes is None else codes)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, u: Tensor, codes: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return codes.detach()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None

"""Discrete optimisation steps for binary codes that several papers share."""

import torch
from jaxtyping import Float
from torch import Tensor

from deephash_cli.methods.parts.losses import signs


def cyclic_coordinate_descent(
    b: Float[Tensor, "n bits"], q: Float[Tensor, "n bits"], w: Float[Tensor, "bits classes"], sweeps: int
) -> Float[Tensor, "n bits"]:
    """Minimise ``|B W|^2 - 2 tr(B' Q)`` over codes B of +1 and -1, one bit of all codes at a time.

    This is the discrete cyclic coordinate descent (DCC) of SDH (Shen et al., CVPR 2015, eq. 13), which DSDH uses too.
    Each update is the exact minimiser in that bit, so the objective never rises. A zero becomes +1.

    Args:
        b: Codes to start from, of +1 and -1.
        q: Linear part of the objective: ``Y W' + weight F`` for labels Y and predictions F.
        w: Linear classifier of the codes.
        sweeps: Maximum number of rounds over all bits; the descent ends earlier if no bit changes.

    Returns:
        The codes, as a new tensor.
    """
    rows, q = b.T.clone(memory_format=torch.contiguous_format), q.T.contiguous()  # one bit's values are contiguous
    gram = w @ w.T
    gram.fill_diagonal_(0)
    for _ in range(sweeps):
        before = rows.clone()
        for k in range(len(rows)):
            bit = slice(k, k + 1)
            rows[bit] = signs(q[bit] - gram[bit] @ rows)
        if torch.equal(rows, before):
            break
    return rows.T.contiguous()

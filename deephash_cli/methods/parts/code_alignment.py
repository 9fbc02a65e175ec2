"""The loss of CroVCA: outputs predict the bits of their partners, and the coding rate keeps bits different."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from deephash_cli.methods.parts.limits import above_zero, at_least


class CodeAlignmentLoss(nn.Module):
    """Cross-entropy between the bits of partners, and the coding rate, which is maximised.

    Args:
        rate_weight: Weight lambda of the coding rate divided by the number of bits.
        epsilon: Distortion epsilon of the coding rate, above 0.

    Raises:
        ValueError: If ``epsilon`` is not above 0, or ``rate_weight`` is negative.
    """

    def __init__(self, rate_weight: float, epsilon: float):
        super().__init__()
        at_least(0, rate_weight=rate_weight)
        above_zero(epsilon=epsilon)
        self.rate_weight = rate_weight
        self.epsilon = epsilon

    def forward(self, u: Float[Tensor, "m bits"], partners: Float[Tensor, "m m"]) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs, the logarithms of the odds that a bit is +1.
            partners: 1 in row i and column j if output i predicts the bits of output j, else 0. Rows without a 1 count
                in the coding rate only.
        """
        return {
            "alignment": alignment(u, partners),
            "rate": -self.rate_weight * coding_rate(u, self.epsilon) / u.shape[1],
        }


def alignment(u: Float[Tensor, "m bits"], partners: Float[Tensor, "m m"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of the bits of partners, as a mean over outputs that have one, their partners and bits.

    The cross-entropy is linear in the bit that is predicted. So the mean over the partners of an output is the
    cross-entropy of their mean bit, and needs no pairs. Bits have no gradient.

    Args:
        u: Outputs, the logarithms of the odds that a bit is +1.
        partners: 1 in row i and column j if output i predicts the bits of output j, else 0.
    """
    count = partners.sum(dim=1)
    targets = partners @ (u >= 0).to(u.dtype) / count.clamp(min=1)[:, None]
    each = binary_cross_entropy_with_logits(u, targets, reduction="none").mean(dim=1)
    return (each * (count > 0)).sum() / (count > 0).sum().clamp(min=1)


def coding_rate(u: Float[Tensor, "m bits"], epsilon: float) -> Float[Tensor, ""]:
    """Return the coding rate ``1/2 log det(I + bits / (m epsilon^2) Z'Z)`` in nats; the rows of Z have length 1.

    It is 0 for outputs of 0 and at most ``bits/2 log(1 + 1/epsilon^2)``, which outputs reach that spread equally in all
    directions. Outputs of the same direction have ``1/2 log(1 + bits/epsilon^2)``.

    Args:
        u: Outputs, whose lengths do not matter.
        epsilon: Distortion up to which the rows of Z are coded.
    """
    z = normalize(u)
    rows, bits = z.shape
    identity = torch.eye(bits, dtype=z.dtype, device=z.device)
    return torch.linalg.cholesky(identity + bits / (rows * epsilon**2) * (z.T @ z)).diagonal().log().sum()

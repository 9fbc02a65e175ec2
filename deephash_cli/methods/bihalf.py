"""Bi-half Net: wip (Li and van Gemert, AAAI 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.cosines import cosine_error
from deephash_cli.methods.parts.losses import signs
from deephash_cli.methods.parts.straight_through import straight_through


class BiHalfLoss(nn.Module):
    """Error of the balanced codes' cosines, and distance of the outputs from these codes.

    Args:
        transport_weight: Weight gamma of the distance.
        centre: Whether the mean of the batch is subtracted from the features.
    """

    def __init__(self, transport_weight: float, centre: bool):
        super().__init__()
        self.transport_weight = transport_weight
        self.centre = centre

    def forward(self, u: Float[Tensor, "n bits"], features: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """Return the loss terms."""
        target = features - features.mean(dim=0) if self.centre else features
        b = half_and_half(u.detach())
        return {
            "similarity": cosine_error(straight_through(u, b), target),
            "transport": self.transport_weight / 2 * (u - b).square().mean(),
        }


class BiHalf(HashingModule):
    """Train a network with Bi-half Net's layer and loss."""

    supervision = "none"
    compares_features = True

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the error of the cosines and the distance from the balanced codes."""
        return self.loss(u, batch.inputs)


def half_and_half(u: Float[Tensor, "n bits"]) -> Float[Tensor, "n bits"]:
    """Return codes that have +1 for the upper half of each column and -1 for the lower half.

    Of equal values, the later row is the larger one. The middle value of an odd number of rows gets its sign.
    """
    ranks = u.argsort(dim=0, stable=True).argsort(dim=0)
    from_middle = 2 * ranks + 1 - len(u)
    return signs(torch.where(from_middle == 0, u, from_middle))

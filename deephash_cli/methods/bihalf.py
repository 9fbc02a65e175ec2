"""BiHalf: Deep Unsupervised Image Hashing by Maximizing Bit Entropy (Li and van Gemert, AAAI 2021).

https://arxiv.org/abs/2012.12334

    J = mean over pairs ( cos(b_i, b_j) - cos(f_i, f_j) )^2
    b_k = +1 for the upper half of the batch's outputs u_k, -1 for the lower half, for each bit k
    dJ/du := dJ/db + gamma (u - b) / (n bits)

A bit tells most if it is +1 for half of the images. So while Bi-half Net learns, a bit is not the sign of its output
``u``: of the n images of a batch, the half with the larger outputs gets +1. Among all codes with two equal halves, this
one is nearest to the outputs (it is the optimal transport to them). The codes are to have the cosines that the
backbone's features f have, as in the unsupervised variant of GreedyHash.

The codes in training depend on the rest of the batch. The codes that are used afterwards, in validation too, are the
signs of ``u``: an image must have the same code whatever it is encoded with. The second part of the gradient brings the
two together. It draws the outputs to their balanced codes, so that their median comes to 0. It is the gradient of
``gamma / 2`` times the mean of ``(u - b)^2``, with b held fixed, which is logged as ``transport``.

Where we differ: the pairs are all pairs of two images of a batch, not only those of an image of its first half with one
of its second half. The mean over pairs has the same gradient in expectation and less noise, so gamma needs no
conversion. The paper does not say what happens to an odd number of images, or to equal outputs. Here the middle one of
an odd number gets its sign, which is the nearer code, and of equal outputs those of the later images of the batch count
as larger. The paper's features come from a pretrained VGG16 that does not learn, so they are a fixed target. This
method freezes the backbone for the same reason, and its features are computed once. With ``model.frozen=false`` the
target of a step are the features that the backbone has in this step, and the gradient flows through the codes alone.
Then the target moves as the backbone learns. With several processes, the halves are those of all their images together.
The network and the optimizer are modern ones; the paper used SGD.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.cosines import cosine_error
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import signs
from deephash_cli.methods.parts.straight_through import straight_through


class BiHalfLoss(nn.Module):
    """Error of the balanced codes' cosines, and distance of the outputs from these codes.

    Args:
        transport_weight: Weight gamma of the distance.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, transport_weight: float):
        super().__init__()
        at_least(0, transport_weight=transport_weight)
        self.transport_weight = transport_weight

    def forward(self, u: Float[Tensor, "n bits"], features: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            features: Features of the same images, without a gradient.
        """
        b = half_and_half(u.detach())
        return {
            "similarity": cosine_error(straight_through(u, b), features),
            "transport": self.transport_weight / 2 * (u - b).square().mean(),
        }


class BiHalf(HashingModule):
    """Train a network with Bi-half Net's layer and loss.

    Args:
        **settings: Arguments of ``HashingModule``.
    """

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

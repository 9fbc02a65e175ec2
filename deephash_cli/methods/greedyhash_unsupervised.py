"""GreedyHash without labels: the unsupervised variant of GreedyHash (Su, Zhang, Han and Tian, NeurIPS 2018).

https://papers.nips.cc/paper/2018/hash/13f3cf8c531952d72e5847c4183e6910-Abstract.html

    J = mean over pairs ( cos(b_i, b_j) - cos(f_i, f_j) )^2 + alpha mean over images and bits | |u| - 1 |^3
    b = sgn(u),   dJ/du := dJ/db
"""

from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.cosines import cosine_error
from deephash_cli.methods.parts.losses import cubic_quantization
from deephash_cli.methods.parts.straight_through import straight_through


class GreedyHashUnsupervisedLoss(nn.Module):
    """Error of the codes' cosines, and quantization penalty.

    Args:
        quantization_weight: Weight alpha of the penalty.
        centre: Whether the mean of the batch is subtracted from the features.
    """

    def __init__(self, quantization_weight: float, centre: bool):
        super().__init__()
        self.quantization_weight = quantization_weight
        self.centre = centre

    def forward(self, u: Float[Tensor, "n bits"], features: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """Return the loss terms."""
        target = features - features.mean(dim=0) if self.centre else features
        return {
            "similarity": cosine_error(straight_through(u), target),
            "quantization": self.quantization_weight * cubic_quantization(u),
        }


class GreedyHashUnsupervised(HashingModule):
    """Train a network with the unsupervised loss of GreedyHash."""

    supervision = "none"
    compares_features = True

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the error of the cosines and the penalty."""
        return self.loss(u, batch.inputs)

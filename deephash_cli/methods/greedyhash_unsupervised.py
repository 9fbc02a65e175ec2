"""GREEDYHASH_UNSUPERVISED: the objective without labels of Greedy Hash (Su, Zhang, Han and Tian, NeurIPS 2018).

https://papers.nips.cc/paper/2018/hash/13f3cf8c531952d72e5847c4183e6910-Abstract.html

    J = mean over pairs ( cos(b_i, b_j) - cos(f_i, f_j) )^2 + alpha mean over images and bits | |u| - 1 |^3
    b = sgn(u),   dJ/du := dJ/db

This is the variant of GreedyHash that needs no labels: the codes are to have the cosines that the backbone's features f
have. As with labels, the gradient of the code is given to the network's output ``u`` as it is, and the second term
keeps ``u`` near its code. f are the features themselves, not those that ``model.network.standardize`` makes of them.

Where we differ: the pairs are all pairs of two images of a batch, not only those of an image of its first half with one
of its second half. The mean over pairs has the same gradient in expectation and less noise. The paper's features come
from a pretrained VGG16 that does not learn, so they are a fixed target. This method freezes the backbone for the same
reason, and its features are computed once. With ``model.frozen=false`` the target of a step are the features that the
backbone has in this step, and the gradient flows through the codes alone. Then the target moves as the backbone learns.
At u = 0, where ``|u|`` has no derivative, the penalty pulls to +1. The network and the optimizer are modern ones.
"""

from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.cosines import cosine_error
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import cubic_quantization
from deephash_cli.methods.parts.straight_through import straight_through


class GreedyHashUnsupervisedLoss(nn.Module):
    """Error of the codes' cosines, and quantization penalty.

    Args:
        quantization_weight: Weight alpha of the penalty.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, quantization_weight: float):
        super().__init__()
        at_least(0, quantization_weight=quantization_weight)
        self.quantization_weight = quantization_weight

    def forward(self, u: Float[Tensor, "n bits"], features: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            features: Features of the same images, without a gradient.
        """
        return {
            "similarity": cosine_error(straight_through(u), features),
            "quantization": self.quantization_weight * cubic_quantization(u),
        }


class GreedyHashUnsupervised(HashingModule):
    """Train a network with the unsupervised loss of GreedyHash.

    Args:
        **settings: Arguments of ``HashingModule``.
    """

    supervision = "none"
    compares_features = True

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the error of the cosines and the penalty."""
        return self.loss(u, batch.inputs)

"""CROVCA_SUPERVISED: Image Hashing via Cross-View Code Alignment, with labels (Moummad et al., arXiv 2025).

https://arxiv.org/abs/2510.27584

    L = mean over images i, their partners j and bits of H(b_j, sigmoid(u_i)) - lambda R(Z) / K
    H(b, p) = - b log p - (1 - b) log(1 - p)
    R(Z) = 1/2 log det(I + K / (n epsilon^2) Z'Z)

This is the loss of ``crovca`` with another second view: an image of the same class. An image predicts the bits ``b_j``
of such images, the signs of ``u_j`` as 1 and 0, which have no gradient. The coding rate R prevents that all images get
the same code: it is large if the n outputs of a batch, the rows of Z, spread in many directions. The outputs are
normalized over the batch, so each bit is 1 for about half of the images.

The terms do not grow with the batch size or the code length: the first is a mean, and R is divided by K.

Where we differ: the partners of an image are all images of the batch that share a label with it, instead of one that is
drawn. The expected value of the loss is the same, and no image outside the batch is needed. With several labels, one
shared label is enough. An image without a label, or without a partner in the batch, counts in R only. The values of
lambda and epsilon, and the length 1 of Z's rows, are not taken from the paper: the two values were chosen on validation
queries. To convert a weight of R itself, multiply it by K. If lambda is too small, bits become copies of each other.
The paper trains for 5 epochs, on features or with low-rank changes of the backbone's weights (LoRA); here the whole
backbone learns or none of it. The hidden layer is that of the model, and the optimizer is that of the other methods.
"""

from jaxtyping import Float
from torch import Tensor

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.losses import similar


class CroVCASupervised(HashingModule):
    """Train a network with CroVCA's loss, on images of the same class."""

    supervision = "pairs"
    multi_label = False

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the alignment of images that share a label, and the coding rate."""
        return self.loss(u, similar(batch.labels, batch.labels).fill_diagonal_(0).to(u.dtype))

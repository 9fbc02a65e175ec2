"""CROVCA: Image Hashing via Cross-View Code Alignment in the Age of Foundation Models (Moummad et al., arXiv 2025).

https://arxiv.org/abs/2510.27584

    L = mean over images, their views v and bits of H(b_w, sigmoid(u_v)) - lambda R(Z) / K
    H(b, p) = - b log p - (1 - b) log(1 - p)
    R(Z) = 1/2 log det(I + K / (m epsilon^2) Z'Z)

Two random views v and w of an image predict each other's bits: ``u_v`` is the logarithm of the odds of each bit, and
``b_w`` are the signs of ``u_w`` as 1 and 0, which have no gradient. Alone, this term is smallest if all images have the
same code. The coding rate R prevents that: it is large if the m outputs of a batch, the rows of Z, spread in many
directions. The outputs are normalized over the batch, so each bit is 1 for about half of the images. The loss learns
from the images alone; ``crovca_supervised`` is the same loss with labels.

The terms do not grow with the batch size or the code length: the first is a mean, and R is divided by K.

Where we differ: the values of lambda and epsilon, and the length 1 of Z's rows, are not taken from the paper: the two
values were chosen on validation queries. To convert a weight of R itself, multiply it by K. If lambda is too small,
bits become copies of each other. Z has the rows of both views. The paper's views are changed copies of an image. A
frozen backbone computes its features once, and on them the two views differ by dropout of the features, with the shares
``augment.dropout``. On images (``model.frozen=false``) the views are crops and colours. The paper trains for 5 epochs,
on features or with low-rank changes of the backbone's weights (LoRA); here the whole backbone learns or none of it. The
hidden layer is that of the model, and the optimizer is that of the other methods.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule


class CroVCA(HashingModule):
    """Train a network with CroVCA's loss, on two views of each image."""

    supervision = "none"
    views = 2

    def losses(self, u: Float[Tensor, "n 2 bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the alignment of each view with the other one, and the coding rate. The labels are not used."""
        partners = torch.eye(2 * len(u), dtype=u.dtype, device=u.device).roll(len(u), dims=0)
        return self.loss(torch.cat([u[:, 0], u[:, 1]]), partners)

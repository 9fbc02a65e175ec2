"""DTSH: Deep Supervised Hashing with Triplet Labels (Wang, Shi and Kitani, ACCV 2016).

https://arxiv.org/abs/1612.03900

    L = - sum over triplets (q, p, n) [ d - log(1 + exp(d)) ] + lambda sum_i |b_i - u_i|^2
    d = t_qp - t_qn - alpha,   t_ij = <u_i, u_j> / 2,   b_i = sgn(u_i),   alpha = bits / 2

The query q shares a label with the positive p and no label with the negative n. ``u`` is the network's output without a
squashing function. ``U`` is a buffer with the last output for every training image. The outputs for a batch are written
into U. Each image of the batch is then a query, with positives and negatives drawn from all of U, and every positive is
combined with every negative. The gradient flows through the query alone, as in the published code.

Here the triplet term is the mean over the triplets of a query, then over the queries. The quantization term is the mean
over images. The published code has 22,500 triplets per query (50 positives, and 50 negatives from each of 9 other
classes) and lambda = 100 against their sum. Against their mean, that lambda is 100 / 22500 = 0.0044.

Where we differ: negatives are drawn from all dissimilar images, not equally from each other class. With classes of
equal size this is the same in expectation. It works for images with several labels, because it needs only pairs, not
classes. Positives and negatives are drawn with replacement. There are fewer of them, because the time of a step grows
with the number of triplets and the result hardly improves (``positives=50 negatives=450`` gives the paper's 22,500).
The paper does not mention images that have no negative, or no positive except themselves. Here they are not queries,
and only their quantization counts. An image is not its own positive. Our default lambda is larger than the paper's. The
network and the optimizer are modern ones; the paper used CNN-F and plain SGD.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import BufferedModule
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import signs, similar


class DTSHLoss(nn.Module):
    """Triplet likelihood and quantization error of a batch.

    Args:
        margin: Margin alpha, as a share of the code length.
        quantization_weight: Weight lambda, against the mean over a query's triplets.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, margin: float, quantization_weight: float):
        super().__init__()
        at_least(0, margin=margin, quantization_weight=quantization_weight)
        self.margin = margin
        self.quantization_weight = quantization_weight

    def forward(
        self,
        u: Float[Tensor, "n bits"],
        positives: Float[Tensor, "n p bits"],
        negatives: Float[Tensor, "n m bits"],
        usable: Bool[Tensor, " n"],
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            positives: Outputs of images that share a label with the row's image.
            negatives: Outputs of images that share no label with it.
            usable: Mask of the rows that have positives and negatives; other rows have no triplets.
        """
        to_positives, to_negatives = (torch.einsum("nb,nmb->nm", u, others) / 2 for others in (positives, negatives))
        alpha = self.margin * u.shape[1]
        d = to_positives[:, :, None] - to_negatives[:, None, :] - alpha
        each = softplus(-d).mean(dim=(1, 2))
        return {
            "similarity": torch.where(usable, each, 0).sum() / usable.sum().clamp(min=1),
            "quantization": self.quantization_weight * (signs(u.detach()) - u).square().sum(dim=1).mean(),
        }


class DTSH(BufferedModule):
    """Train a network with DTSH's loss.

    Args:
        positives: Number of positives drawn for each query.
        negatives: Number of negatives drawn for each query.
        **settings: Arguments of ``BufferedModule``.

    Raises:
        ValueError: If either number is less than 1.
    """

    supervision = "triplets"

    def __init__(self, positives: int, negatives: int, **settings):
        super().__init__(**settings)
        at_least(1, positives=positives, negatives=negatives)
        self.positives = positives
        self.negatives = negatives

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the triplet likelihood and the quantization term."""
        everything = self.remember(u, batch)
        near = similar(batch.labels, self.train_labels) > 0
        far = ~near
        near[torch.arange(len(near), device=near.device), batch.indices] = False
        positives, any_positive = draw(near, self.positives)
        negatives, any_negative = draw(far, self.negatives)
        return self.loss(u, everything[positives], everything[negatives], any_positive & any_negative)


def draw(choices: Bool[Tensor, "q n"], count: int) -> tuple[Int[Tensor, "q count"], Bool[Tensor, " q"]]:
    """Draw columns in each row, uniformly and with replacement, from those where the row is true.

    Args:
        choices: Mask of the columns that may be drawn in each row.
        count: Number of columns to draw in each row.

    Returns:
        The drawn columns, and a mask of the rows with at least one true column. In other rows the columns are
        meaningless.
    """
    ranks = choices.int().cumsum(dim=1, dtype=torch.int32)  # rank of a true column among its row's true columns, from 1
    available = ranks[:, -1:]
    drawn = (torch.rand(len(choices), count, device=choices.device) * available).int() + 1
    return torch.searchsorted(ranks, drawn).clamp(max=choices.shape[1] - 1), available[:, 0] > 0

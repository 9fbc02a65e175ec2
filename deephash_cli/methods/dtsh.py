"""DTSH: Deep Supervised Hashing with Triplet Labels (Wang, Shi and Kitani, ACCV 2016).

https://arxiv.org/abs/1612.03900

    L = - sum over triplets (q, p, n) [ d - log(1 + exp(d)) ] + lambda sum_i |b_i - u_i|^2
    d = t_qp - t_qn - alpha,   t_ij = <u_i, u_j> / 2,   b_i = sgn(u_i),   alpha = bits / 2

The query q shares a label with the positive p, and none with the negative n. ``u`` is the network's output without a
squashing function. ``U`` holds the last output of every training image; a batch is written into it, each image of the
batch is a query with positives and negatives drawn from the whole of U, and every positive meets every negative. The
gradient flows through the query alone, as in the published code.

Here the triplet term is the mean over a query's triplets, then over the queries, and the quantization term the mean
over images. The published code has 22,500 triplets a query (50 positives, 50 negatives from each of 9 other classes)
and lambda = 100 against their sum: that is 100 / 22500 = 0.0044 against their mean.

Where we differ: negatives are drawn from all dissimilar images instead of equally from each other class, which is the
same in expectation where classes are of equal size, and needs no classes, only pairs: it works on images with several
labels. Positives and negatives are drawn with replacement, and fewer of them, because the time of a step grows with the
number of triplets and the result hardly does (``positives=50 negatives=450`` gives the paper's 22,500). The paper is
silent on images with no positive but themselves, or no negative: they are no queries, and only their quantization
counts. An image is not its own positive. Our default lambda is larger than the paper's, and the network and the
optimizer are today's (the paper has CNN-F and plain SGD).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from deephash_cli.data.loaders import Batch
from deephash_cli.losses import signs, similar
from deephash_cli.methods.base import BufferedModule


class DTSHLoss(nn.Module):
    """Triplet likelihood and quantization error of a batch.

    Args:
        margin: alpha, in shares of the code length.
        quantization_weight: lambda, against the mean over a query's triplets.
    """

    def __init__(self, margin: float, quantization_weight: float):
        super().__init__()
        self.margin = margin
        self.quantization_weight = quantization_weight

    def forward(
        self,
        u: Float[Tensor, "n bits"],
        positives: Float[Tensor, "n p bits"],
        negatives: Float[Tensor, "n m bits"],
        usable: Bool[Tensor, " n"],
    ) -> dict[str, Tensor]:
        """Loss terms.

        Args:
            u: Outputs of the batch.
            positives: Outputs that each row is to be near to.
            negatives: Outputs that it is to be nearer to the positives than to.
            usable: Rows that have positives and negatives; what the others are given does not count.
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
    """DTSH.

    Args:
        positives: Drawn for each query.
        negatives: Drawn for each query.
        **settings: Those of ``BufferedModule``.
    """

    supervision = "triplets"

    def __init__(self, positives: int, negatives: int, **settings):
        super().__init__(**settings)
        for name, count in (("positives", positives), ("negatives", negatives)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.positives = positives
        self.negatives = negatives

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Triplet likelihood and quantization."""
        everything = self.remember(u, batch)
        near = similar(batch.labels, self.train_labels) > 0
        far = ~near
        near[torch.arange(len(near), device=near.device), batch.indices] = False
        positives, any_positive = draw(near, self.positives)
        negatives, any_negative = draw(far, self.negatives)
        return self.loss(u, everything[positives], everything[negatives], any_positive & any_negative)


def draw(choices: Bool[Tensor, "q n"], count: int) -> tuple[Int[Tensor, "q count"], Bool[Tensor, " q"]]:
    """Columns drawn from those that are true in each row, uniformly and with replacement.

    Args:
        choices: What may be drawn in each row.
        count: How many are drawn.

    Returns:
        The columns, and the rows where one is true; those drawn in other rows mean nothing.
    """
    ranks = choices.int().cumsum(dim=1, dtype=torch.int32)  # of a true column among its row's true columns, from 1
    available = ranks[:, -1:]
    drawn = (torch.rand(len(choices), count, device=choices.device) * available).int() + 1
    return torch.searchsorted(ranks, drawn).clamp(max=choices.shape[1] - 1), available[:, 0] > 0

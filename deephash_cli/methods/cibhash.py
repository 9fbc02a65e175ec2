"""CIBHash: Unsupervised Hashing with Contrastive Information Bottleneck (Qiu et al., IJCAI 2021).

https://arxiv.org/abs/2105.06138

    L = mean over images and their views v of
        - log( e(b_v, b_w) / (e(b_v, b_w) + sum over views b' of other images e(b_v, b')) ) + beta KL(p_v || p_w)
    e(b, b') = exp(cos(b, b') / tau),   p = sigmoid(u),   b = sgn(p - epsilon),   epsilon uniform in [0, 1]

Two random views v and w of an image are to have the same code, and views of different images different codes. Bits are
random while training: bit k of a view is +1 with probability ``p_k``, so that codes of +1 and -1 are compared and not
real numbers. Their gradient is that of the expectation ``2 p - 1`` (straight-through). The second term is the
Kullback-Leibler divergence of the bits of one view from those of the other, summed over the bits. It bounds what a code
says about its view and not about the image. The loss learns from the images alone. Codes of new images have epsilon =
1/2, so b = sgn(u).

The first term is the NT-Xent loss of SimCLR, with the cosine as similarity. A view is not compared with itself. Both
terms are means over images and views, so ``kl_weight`` is the paper's beta.

Where we differ: the paper's views are random crops, colours and blurs of an image, and this augmentation decides the
result. A frozen backbone computes its features once. On them the two views differ by dropout of the features, with the
shares ``augment.dropout``. This leaves other things unchanged than a crop does, so results on frozen features are not
those of the paper. On images (``model.frozen=false``) the views are crops and colours, without blur.
``stochastic=false`` takes epsilon = 1/2 while training, too, as in the authors' code. The network and the optimizer are
modern ones; the paper used a frozen VGG-16 and learned two layers above it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.straight_through import straight_through


class CIBHashLoss(nn.Module):
    """Contrastive loss of the codes of two views, and divergence of their bits.

    Args:
        temperature: Temperature tau of the cosines, above 0.
        kl_weight: Weight beta of the divergence.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, temperature: float, kl_weight: float):
        super().__init__()
        above_zero(temperature=temperature)
        at_least(0, kl_weight=kl_weight)
        self.temperature = temperature
        self.kl_weight = kl_weight

    def forward(self, u: Float[Tensor, "n 2 bits"], codes: Float[Tensor, "n 2 bits"]) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs for two views of each image, the logarithms of the odds that a bit is +1.
            codes: Codes of the views, of +1 and -1.
        """
        return {
            "contrast": nt_xent(codes, self.temperature),
            "divergence": self.kl_weight * divergence(u, u.flip(1)).mean(),
        }


class CIBHash(HashingModule):
    """Train a network with CIBHash's loss, on two views of each image.

    Args:
        stochastic: Whether bits are drawn from their probabilities while training; otherwise they are signs.
        **settings: Arguments of ``HashingModule``.
    """

    supervision = "none"
    views = 2

    def __init__(self, stochastic: bool, **settings):
        super().__init__(**settings)
        self.stochastic = stochastic

    def losses(self, u: Float[Tensor, "n 2 bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the contrastive loss and the divergence. The labels are not used."""
        epsilon = torch.rand_like(u) if self.stochastic else 0.5
        return self.loss(u, straight_through(2 * (u.sigmoid() - epsilon)))


def nt_xent(codes: Float[Tensor, "n 2 bits"], temperature: float) -> Float[Tensor, ""]:
    """Return the NT-Xent loss: the cross-entropy of finding the other view of an image among all other views.

    Args:
        codes: Vectors of the two views of each image.
        temperature: Divisor of the cosines.
    """
    views = normalize(torch.cat([codes[:, 0], codes[:, 1]]))
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    partners = torch.arange(len(views), device=views.device).roll(len(codes))
    return nn.functional.cross_entropy(logits, partners)


def divergence(u: Float[Tensor, "n 2 bits"], others: Float[Tensor, "n 2 bits"]) -> Float[Tensor, "n 2"]:
    """Return the Kullback-Leibler divergence of independent bits from other bits, summed over the bits.

    Args:
        u: Logarithms of the odds of +1 of the first distribution.
        others: Those logarithms for the second distribution.
    """
    return (u.sigmoid() * (u - others) + logsigmoid(-u) - logsigmoid(-others)).sum(dim=-1)

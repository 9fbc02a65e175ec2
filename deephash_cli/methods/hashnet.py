"""HashNet: Deep Learning to Hash by Continuation (Cao, Long, Wang and Yu, ICCV 2017).

https://arxiv.org/abs/1702.00758

    J = sum over pairs w_ij [ log(1 + exp(alpha <z_i, z_j>)) - alpha s_ij <z_i, z_j> ],   z_i = tanh(beta u_i)
    w_ij = c_ij |S| / |S1| if s_ij = 1,   |S| / |S0| if s_ij = 0
    c_ij = |y_i and y_j| / |y_i or y_j|

``|S|``, ``|S1|`` and ``|S0|`` are the numbers of all, similar and dissimilar pairs, so both kinds have the same total
weight although most pairs are dissimilar. ``c_ij`` is the share of two images' labels that they have in common: 1 for
similar images with one label each.

beta rises while the network learns, so that tanh becomes the sign function: a sequence of problems, each of which
starts from the solution of the one before. No term for quantization is needed. The codes are the signs of ``z``, which
are the signs of ``u``.

The paper raises beta in stages. The authors' code has ``beta = (1 + 0.005 step)^0.5`` for 10,000 steps, so beta
ends at 7.1. Here ``beta = (1 + growth t)^power``, where t is the share of the steps that are done, from 0 to 1, and
``growth`` is 0.005 times 10,000. So a short training goes through the same values of beta as a long one: with 0.005 a
step, the 1200 steps of 30 epochs would end at 2.6, far from the sign function. t is computed from the number of steps,
which a resumed run continues with. If the layers above a backbone are trained first (``head.epochs``), beta rises once
in this training and once more in that of the whole network.

The loss is a mean over pairs instead of a sum. ``|S|``, ``|S1|`` and ``|S0|`` are counted in the batch, so it is the
mean over similar pairs plus the mean over dissimilar pairs. ``alpha`` is divided by the number of bits, as in the
authors' code, because the inner product of two codes is at most the number of bits: alpha = 10 is 10/48 for 48 bits.

Where we differ: beta is raised after each step instead of every 200. Pairs are all pairs of two different images of a
batch. The authors' code has pairs between two halves of a batch, and a weight for similar pairs that is set by hand for
each data set. The paper counts pairs in the whole training set. A batch without similar pairs learns from dissimilar
pairs alone, and the reverse. An image without labels is similar to no image. The network and the optimizer are modern
ones; the paper used AlexNet and SGD.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.losses import balanced_mean, similar


class HashNetLoss(nn.Module):
    """Weighted pair likelihood of a batch.

    Args:
        alpha: Factor alpha of the inner product in the likelihood, times the code length.

    Raises:
        ValueError: If it is not above 0.
    """

    def __init__(self, alpha: float):
        super().__init__()
        above_zero(alpha=alpha)
        self.alpha = alpha

    def forward(self, z: Float[Tensor, "n bits"], labels: Float[Tensor, "n classes"]) -> dict[str, Tensor]:
        """Return the only term of the loss.

        Args:
            z: Relaxed codes of the batch, in [-1, 1].
            labels: Multi-hot labels.
        """
        theta = self.alpha / z.shape[1] * (z @ z.T)
        pairs = similar(labels, labels)
        likelihoods = softplus(theta) - pairs * theta
        return {"similarity": balanced_mean(torch.where(pairs > 0, overlap(labels), 1) * likelihoods, pairs)}


class HashNet(HashingModule):
    """Train a network with HashNet's loss on its outputs after a tanh that becomes steeper.

    Args:
        growth: Growth of beta over the whole training: ``beta = (1 + growth)^power`` at its end.
        power: Exponent of the growth.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If either is negative: beta would fall.
    """

    supervision = "pairs"

    def __init__(self, growth: float, power: float, **settings):
        super().__init__(**settings)
        at_least(0, growth=growth, power=power)
        self.growth = growth
        self.power = power

    def beta(self) -> float:
        """Return the factor of the outputs in this step; 1 outside a training."""
        done = self.global_step / self.trainer.estimated_stepping_batches if self.global_step else 0
        return (1 + self.growth * done) ** self.power

    def on_train_epoch_start(self) -> None:
        """Log beta."""
        self.log("continuation/beta", self.beta())

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the only term of the loss."""
        return self.loss(torch.tanh(self.beta() * u), batch.labels)


def overlap(labels: Float[Tensor, "n classes"]) -> Float[Tensor, "n n"]:
    """Return the number of labels that two images share, divided by the number of labels that either has."""
    shared, each = labels @ labels.T, labels.sum(dim=1)
    return shared / (each[:, None] + each[None, :] - shared).clamp(min=1)

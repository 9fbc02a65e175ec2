"""DHN: Deep Hashing Network for Efficient Similarity Retrieval (Zhu, Long, Wang and Cao, AAAI 2016).

https://ojs.aaai.org/index.php/AAAI/article/view/10235

    L + lambda Q,   z_i = tanh(u_i)
    L = sum over pairs [ log(1 + exp(<z_i, z_j>)) - s_ij <z_i, z_j> ]
    Q = sum over images and bits of log cosh( |z_ik| - 1 )

The pairs are formed inside a mini-batch. Q is a smooth form of the distance ``| |z_i| - 1 |_1`` to the nearest code. It
follows from a prior with a peak at each of -1 and +1. The codes are the signs of ``z``, which are the signs of ``u``.

Here L is the mean over pairs and Q is the mean over images and bits, so that neither depends on the size of the batch.
For a batch of n images, a weight lambda on the sums equals ``lambda bits / (n - 1)`` on the means.

Where we differ: a pair consists of two different images, i != j. The paper does not say this, but a pair (i, i) teaches
nothing about images and would pull an image without labels to 0. At z = 0, where ``|z|`` has no derivative, Q pulls to
+1. The network and the optimizer are modern ones; the paper used AlexNet and SGD.

Other programs called DHN implement other methods, so their results are not comparable. The program of the authors'
group replaces ``<z_i, z_j>`` by the cosine times 10 and Q by ``(|u| - 1)^2`` with weight 0, and gives similar pairs
more weight. Others use DPSH's buffer.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.losses import balanced_mean, signs, similar


class DHNLoss(nn.Module):
    """Pair likelihood and quantization of a batch.

    Args:
        theta_scale: Factor of the inner product in the likelihood: 1 in DHN, 1/2 in the related papers. None is
            5 / bits: the inner product of two codes of 48 bits is 48, where the likelihood has no slope left.
        quantization_weight: Weight lambda of the mean over images and bits.
        balanced: Whether similar and dissimilar pairs have the same weight in all, which the paper does not do; runs of
            earlier versions did not.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, theta_scale: float | None, quantization_weight: float, balanced: bool = False):
        super().__init__()
        if theta_scale is not None:
            above_zero(theta_scale=theta_scale)
        at_least(0, quantization_weight=quantization_weight)
        self.balanced = balanced
        self.theta_scale = theta_scale
        self.quantization_weight = quantization_weight

    def forward(self, z: Float[Tensor, "n bits"], similar: Float[Tensor, "n n"]) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            z: Relaxed codes of the batch, in [-1, 1].
            similar: 1 for pairs that share a label, else 0; the diagonal is ignored.
        """
        theta = (5 / z.shape[1] if self.theta_scale is None else self.theta_scale) * (z @ z.T)
        likelihoods = softplus(theta) - similar * theta
        if self.balanced:
            pairs = balanced_mean(likelihoods, similar) / 2
        else:
            pairs = likelihoods[~torch.eye(len(z), dtype=torch.bool, device=z.device)].mean()
        to_codes = signs(z.detach()) * z - 1  # |z| - 1
        return {
            "similarity": pairs,
            "quantization": self.quantization_weight * log_cosh(to_codes).mean(),
        }


class DHN(HashingModule):
    """Train a network with DHN's loss on its outputs after tanh.

    Args:
        **settings: Arguments of ``HashingModule``.
    """

    supervision = "pairs"

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the pair likelihood and the quantization term."""
        return self.loss(torch.tanh(u), similar(batch.labels, batch.labels))


def log_cosh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``log(cosh(x))`` without the overflow of ``cosh`` at 89."""
    return x.abs() + softplus(-2 * x.abs()) - math.log(2)

"""DHN: Deep Hashing Network for Efficient Similarity Retrieval (Zhu, Long, Wang and Cao, AAAI 2016).

https://ojs.aaai.org/index.php/AAAI/article/view/10235

    L + lambda Q,   z_i = tanh(u_i)
    L = sum over pairs [ log(1 + exp(<z_i, z_j>)) - s_ij <z_i, z_j> ]
    Q = sum over images and bits of log cosh( |z_ik| - 1 )

The pairs are those inside a mini-batch. Q is a smooth form of the distance ``| |z_i| - 1 |_1`` to the nearest code,
from a prior with a peak at each of -1 and +1. The codes are the signs of ``z``, which are those of ``u``.

Here L is the mean over pairs and Q the mean over images and bits, so that neither depends on the batch: for a batch of
n images a weight lambda on the sums equals ``lambda bits / (n - 1)`` on the means.

Where we differ: pairs are of two images, i != j (the paper does not say; a pair (i, i) teaches nothing about images,
and would pull an image without labels to 0). At z = 0, where ``|z|`` has no derivative, Q pulls to +1. The network and
the optimizer are today's (the paper has AlexNet and SGD).

Programs called DHN differ: one of the authors' group takes the cosine times 10 for ``<z_i, z_j>``, ``(|u| - 1)^2`` with
weight 0 for Q, and more weight on similar pairs; others have DPSH's buffer. Their results are of other methods.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from deephash_cli.data.loaders import Batch
from deephash_cli.losses import signs, similar
from deephash_cli.methods.base import HashingModule


class DHNLoss(nn.Module):
    """Pair likelihood and quantization of a batch.

    Args:
        theta_scale: Factor of the inner product in the likelihood: 1 in DHN, 1/2 in the other papers of the family.
        quantization_weight: lambda, of means.
    """

    def __init__(self, theta_scale: float, quantization_weight: float):
        super().__init__()
        self.theta_scale = theta_scale
        self.quantization_weight = quantization_weight

    def forward(self, z: Float[Tensor, "n bits"], similar: Float[Tensor, "n n"]) -> dict[str, Tensor]:
        """Loss terms.

        Args:
            z: Relaxed codes of the batch, in [-1, 1].
            similar: 1 for pairs that share a label, else 0; the diagonal does not count.
        """
        theta = self.theta_scale * (z @ z.T)
        two_images = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        to_codes = signs(z.detach()) * z - 1  # |z| - 1
        return {
            "similarity": (softplus(theta) - similar * theta)[two_images].mean(),
            "quantization": self.quantization_weight * log_cosh(to_codes).mean(),
        }


class DHN(HashingModule):
    """DHN.

    Args:
        **settings: Those of ``HashingModule``.
    """

    supervision = "pairs"

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Pair likelihood and quantization."""
        return self.loss(torch.tanh(u), similar(batch.labels, batch.labels))


def log_cosh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Logarithm of the hyperbolic cosine, without its overflow at 89."""
    return x.abs() + softplus(-2 * x.abs()) - math.log(2)

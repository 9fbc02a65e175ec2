"""DCH: Deep Cauchy Hashing for Hamming Space Retrieval (Cao, Long, Liu and Wang, CVPR 2018).

https://openaccess.thecvf.com/content_cvpr_2018/html/Cao_Deep_Cauchy_Hashing_CVPR_2018_paper.html

    L + lambda Q,   z_i = tanh(u_i)
    L = sum over pairs w_ij [ s_ij log(d_ij / gamma) + log(1 + gamma / d_ij) ]
    Q = sum over images of log(1 + d(|z_i|, 1) / gamma)
    d_ij = d(z_i, z_j),   d(a, b) = bits/2 (1 - cos(a, b))
    w_ij = |S| / |S1| if s_ij = 1,   |S| / |S0| if s_ij = 0

``d`` is the Hamming distance of two codes, extended to real values, and ``1`` is the vector of ones, so Q is the
distance from the nearest code. A pair is similar with the probability ``gamma / (gamma + d)`` of a Cauchy distribution.
Near d = 0 this falls faster than the usual sigmoid, so similar images are drawn into a small Hamming ball: DCH is made
for look-ups within radius 2 and not for rankings. ``|S|``, ``|S1|`` and ``|S0|`` are the numbers of all, similar and
dissimilar pairs. The codes are the signs of ``z``, which are the signs of ``u``.

Here L is a mean over pairs, with the numbers of pairs counted in the batch, so it is the mean over similar pairs plus
the mean over dissimilar pairs. Q is the mean over images. For a batch of n images, a weight lambda on the sums equals
``lambda / (n - 1)`` on the means.

The term of a similar pair is computed as ``log(1 + d / gamma)``, which is the same and finite at d = 0. That of a
dissimilar pair is infinite at d = 0, where two images have the same code. It is computed with ``d + floor`` in place of
d. Some programs cut the cosine off at 0.99 instead. Then nothing separates two images that are nearer than that,
although they are the ones that should be separated first.

Where we differ: a pair consists of two different images; its distance from itself is 0 and teaches nothing. A batch
without similar pairs learns from dissimilar pairs alone, and the reverse. An image without labels is similar to no
image. The network and the optimizer are modern ones; the paper used AlexNet and SGD.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.losses import balanced_mean, signs, similar

_SHORTEST = 1e-3  # shorter vectors are divided by this instead of their length: a direction at 0 has an infinite slope


class DCHLoss(nn.Module):
    """Cauchy cross-entropy of the pairs of a batch, and Cauchy quantization.

    Args:
        gamma: Scale gamma of the Cauchy distribution, in bits: the distance at which a pair is similar with probability
            1/2.
        quantization_weight: Weight lambda of the mean over images.
        floor: Distance in bits that is added to that of dissimilar pairs.

    Raises:
        ValueError: If ``gamma`` or ``floor`` is not above 0.
    """

    def __init__(self, gamma: float, quantization_weight: float, floor: float):
        super().__init__()
        above_zero(gamma=gamma, floor=floor)
        at_least(0, quantization_weight=quantization_weight)
        self.gamma = gamma
        self.quantization_weight = quantization_weight
        self.floor = floor

    def forward(self, z: Float[Tensor, "n bits"], similar: Float[Tensor, "n n"]) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            z: Relaxed codes of the batch, in [-1, 1].
            similar: 1 for pairs that share a label, else 0; the diagonal is ignored.
        """
        bits = z.shape[1]
        directions = normalize(z, eps=_SHORTEST)
        d = bits / 2 * (1 - directions @ directions.T).clamp(min=0)  # rounding may give a little less than 0
        each = torch.where(similar > 0, torch.log1p(d / self.gamma), torch.log1p(self.gamma / (d + self.floor)))
        to_ones = (signs(z.detach()) * directions).sum(dim=1) / math.sqrt(bits)  # cos(|z|, 1)
        to_code = bits / 2 * (1 - to_ones).clamp(min=0)
        return {
            "similarity": balanced_mean(each, similar),
            "quantization": self.quantization_weight * torch.log1p(to_code / self.gamma).mean(),
        }


class DCH(HashingModule):
    """Train a network with DCH's loss on its outputs after tanh.

    Args:
        **settings: Arguments of ``HashingModule``.
    """

    supervision = "pairs"

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy and the quantization term."""
        return self.loss(torch.tanh(u), similar(batch.labels, batch.labels))

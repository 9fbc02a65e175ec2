"""CSQ: Central Similarity Quantization for Efficient Image and Video Retrieval (Yuan et al., CVPR 2020).

https://arxiv.org/abs/1908.00347

    L = - mean over bits [ h' log h + (1 - h') log(1 - h) ] + lambda mean over bits (|z| - 1)^2
    z = tanh(u),   h = (z + 1) / 2,   h' = (c + 1) / 2,   b = sgn(u)

Each class has a hash centre, a code of +1 and -1, and the centres are far from each other. The network learns to output
the centre ``c`` of an image's class, bit by bit. The centres are rows of a Hadamard matrix, which are bits/2 apart. The
centre of an image with several labels has the majority of their centres in each bit. Bits with as many +1 as -1 are
taken from one random code. Centres and random code are drawn from the seed before training and are in the checkpoint.

Both terms are means over images and bits. In the paper the quantization term is a sum over bits, and the first is a
mean, so the paper's lambda is ``bits`` times as large here.

Where we differ: since ``h = sigmoid(2 u)``, the first term is computed as ``log(1 + exp(-2 c u))``, which is finite for
every u. The paper draws each bit of a centre by itself if there is no Hadamard matrix of this size or it has too few
rows. ``codebook=random`` does so, but by default centres are searched that are farther apart. The smallest distance of
two centres is logged as ``codes/smallest_distance``. The paper's quantization term is ``log cosh(|z| - 1)``, which is
half the square near a code; this is the square of the authors' code. The paper draws tied bits at random. Here they
come from one code for all images, so that images with the same labels have the same centre. Images without a label have
no centre, so only their quantization counts. The network and the optimizer are modern ones; the paper used AlexNet and
ResNet-50.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts import codebooks
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import signs


class CSQLoss(nn.Module):
    """Cross-entropy between outputs and centres, and quantization error.

    Args:
        quantization_weight: Weight lambda of the quantization error.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, quantization_weight: float):
        super().__init__()
        at_least(0, quantization_weight=quantization_weight)
        self.quantization_weight = quantization_weight

    def forward(self, u: Float[Tensor, "n bits"], centres: Float[Tensor, "n bits"]) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            centres: Centre of each image, of +1 and -1; zeros for an image that has none.
        """
        z = torch.tanh(u)
        each = softplus(-2 * centres * u) * centres.abs()
        return {
            "centre": each.sum() / centres.abs().sum().clamp(min=1),
            "quantization": self.quantization_weight * (signs(z.detach()) - z).square().mean(),
        }


class CSQ(HashingModule):
    """Train a network to output the centre of an image's class.

    The centres are in ``centres``, and the code that decides ties is in ``ties``.

    Args:
        codebook: Kind of the centres: ``hadamard``, ``search`` or ``random``, as in ``codebooks.codebook``.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If ``codebook`` is none of the three.
    """

    supervision = "labels"

    def __init__(self, codebook: str, **settings):
        super().__init__(**settings)
        bits, classes = self.network.bits, self.train_labels.shape[1]
        self.register_buffer("centres", codebooks.codebook(codebook, classes, bits, self.seed))
        self.register_buffer("ties", signs(torch.randn(1, bits, generator=torch.Generator().manual_seed(self.seed))))
        self.centres: Tensor
        self.ties: Tensor

    def on_train_epoch_start(self) -> None:
        """Log the smallest distance of two centres."""
        self.log("codes/smallest_distance", float(codebooks.smallest_distance(self.centres)))

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the distance from the centres of the images and the quantization error."""
        return self.loss(u, codebooks.code_of_labels(self.centres, batch.labels, self.ties.expand_as(u)))

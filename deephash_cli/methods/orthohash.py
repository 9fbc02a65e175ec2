"""OrthoHash: One Loss for All (Hoe et al., NeurIPS 2021).

https://arxiv.org/abs/2109.14449

    L = - sum over classes c [ t_c log p_c ],   p = softmax over classes of s (cos(u, o_c) - m y_c)
    t = y / |y|_1,   b = sgn(u)

Each class has a code ``o_c`` of +1 and -1, drawn from the seed before training and kept in the checkpoint. The codes
are orthogonal, so rows of a Hadamard matrix, or each bit is drawn by itself. The angle between an output and the code
of its class measures both whether the class is right and how far the output is from its own signs, so one term is
enough. It needs a margin m, by which the cosine of its own class has to be larger, and a scale s. An image with several
labels has a target of equal shares for them. The outputs are normalized over the batch, without a scale and a shift of
their own, so each bit is +1 for about half of the images.

The loss is a mean over images. Its two settings depend on neither the batch size nor the number of images.

Where we differ: the paper has the margin for the class of an image; here each of several labels has it. If there is no
Hadamard matrix of this size or it has too few rows, codes are searched that are as far apart as possible. The smallest
distance of two codes is logged as ``codes/smallest_distance``. Images without a label have no target, and do not count.
The network and the optimizer are modern ones; the paper used AlexNet.
"""

from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts import codebooks
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.losses import margin_softmax


class OrthoHashLoss(nn.Module):
    """Softmax of cosines with a margin.

    Args:
        scale: Factor s of the cosines, above 0.
        margin: Margin m, subtracted from the cosines of an image's own classes.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, scale: float, margin: float):
        super().__init__()
        above_zero(scale=scale)
        at_least(0, margin=margin)
        self.scale = scale
        self.margin = margin

    def forward(
        self, u: Float[Tensor, "n bits"], codes: Float[Tensor, "classes bits"], labels: Float[Tensor, "n classes"]
    ) -> dict[str, Tensor]:
        """Return the only term of the loss.

        Args:
            u: Outputs of the batch.
            codes: Code of each class, of +1 and -1.
            labels: Multi-hot labels of the batch. Rows without a label do not count.
        """
        return {"classification": margin_softmax(u, codes, labels, self.scale, self.margin)}


class OrthoHash(HashingModule):
    """Train a network to output vectors near the code of an image's class. The codes are in ``codes``.

    Args:
        codebook: Kind of the codes: ``hadamard``, ``search`` or ``random``, as in ``codebooks.codebook``.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If ``codebook`` is none of the three.
    """

    supervision = "labels"

    def __init__(self, codebook: str, **settings):
        super().__init__(**settings)
        codes = codebooks.codebook(codebook, self.train_labels.shape[1], self.network.bits, self.seed)
        self.register_buffer("codes", codes)
        self.codes: Tensor

    def on_train_epoch_start(self) -> None:
        """Log the smallest distance of two codes."""
        self.log("codes/smallest_distance", float(codebooks.smallest_distance(self.codes)))

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the softmax loss of the batch."""
        return self.loss(u, self.codes, batch.labels)

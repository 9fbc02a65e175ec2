"""DPN: Deep Polarized Network for Supervised Learning of Accurate Binary Hashing Codes (Fan et al., IJCAI 2020).

https://www.ijcai.org/proceedings/2020/115

    L = sum over images and bits of max(m - u_ik t_ik, 0),   t_i = target of the class of image i, of +1 and -1

Each class gets a target before the training, and each output of the network is polarised: pushed to the target's side
of 0, at least as far from it as the margin m. The paper proves that L bounds from above a loss on the Hamming distances
of all pairs, which asks for small distances within a class and large ones between classes. The codes are the signs of
``u``. Here L is the mean over images and bits.

The paper draws each bit of a target at random, Bernoulli with p = 1/2, and shows that this suffices. This is
``targets=random``. Two random targets can be near each other or even the same, most of all for short codes and many
classes. So the default is ``targets=hadamard``: rows of a Hadamard matrix, which differ in half of their bits. Lengths
without such a matrix, and more than 2 classes for each bit, use ``targets=search``, which draws a hundred targets for
each class and keeps the one that is farthest from those before it. Targets are drawn from the seed, and they are in the
checkpoint.

Where we differ: an image with several labels has the majority of its classes' targets for each bit. Where half of them
have +1, a random target decides, the same for all images: images with the same labels have the same target. An image
without labels has no target and does not count. The paper can update targets during the training and has a third value
of a bit, 0, for outputs near 0; neither is here. The network and the optimizer are modern ones; the paper used AlexNet
and SGD.
"""

from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.console import warn
from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.codebooks import code_of_labels, codebook, smallest_distance
from deephash_cli.methods.parts.limits import above_zero


class DPNLoss(nn.Module):
    """Polarization loss of a batch.

    Args:
        margin: Distance m from 0 that each output should have at least.

    Raises:
        ValueError: If it is not above 0: outputs of 0 would have no loss.
    """

    def __init__(self, margin: float):
        super().__init__()
        above_zero(margin=margin)
        self.margin = margin

    def forward(self, u: Float[Tensor, "n bits"], targets: Float[Tensor, "n bits"]) -> dict[str, Tensor]:
        """Return the only term of the loss.

        Args:
            u: Outputs of the batch.
            targets: Targets of +1 and -1; rows of zeros belong to images that do not count.
        """
        counted = targets.abs()
        hinges = counted * (self.margin - u * targets).clamp(min=0)
        return {"polarization": hinges.sum() / counted.sum().clamp(min=1)}


class DPN(HashingModule):
    """Train a network with DPN's loss. The targets of the classes are in ``codebook``.

    Args:
        targets: Kind of the targets: ``random``, ``hadamard`` or ``search``.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If ``targets`` is none of the three.
    """

    supervision = "labels"

    def __init__(self, targets: str, **settings):
        super().__init__(**settings)
        classes, bits = self.train_labels.shape[1], self.network.bits
        self.register_buffer("codebook", codebook(targets, classes, bits, self.seed))
        self.register_buffer("ties", codebook("random", 1, bits, self.seed + 1))
        self.codebook: Tensor
        self.ties: Tensor
        if smallest_distance(self.codebook) == 0:
            warn(
                f"two of {classes} classes have the same target of {bits} bits, so their images cannot be told apart: "
                "use module.targets=search, or more bits"
            )

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the only term of the loss."""
        labels = batch.labels.to(self.codebook)
        return self.loss(u, code_of_labels(self.codebook, labels, self.ties.expand(len(u), -1)))

"""CRH: Codebook-Centric Deep Hashing (Yin et al., AAAI 2026).

https://arxiv.org/abs/2511.12162

    L = - sum over classes c [ t_c log p_c ] + lambda mean over bits (|tanh(u)| - 1)^2
    p = softmax over classes of s (cos(u, o_c) - m y_c),   t = y / |y|_1,   b = sgn(u)

Each class has a centre ``o_c``, a code of +1 and -1. Centres that are drawn once know nothing of the classes. Here they
come from a codebook of twice as many codes as there are classes, and classes get other codes of it while the network
learns: those that the codes of their images are nearest to. So classes that look alike can have centres that are alike.

A code of K bits has K / d heads of d bits, where d is the smallest divisor of K with 2^d at least the size of the
codebook. The codebook has codes of d bits. Classes are assigned to it in each head independently, and a centre is the
codes of its class in all heads, one after the other. Before the first epoch, the assignment is random. It changes at
the start of epochs 1 to ``every_epoch_until``, and then of each epoch that is a multiple of ``then_every`` (the first
epoch is 0). The similarity of a class and a code is the mean over the images of the class of <sgn(u), code> in this
head, so the largest similarity is the smallest mean Hamming distance. The pair of a class and a code with the largest
similarity of all is assigned first, then that of the remaining classes and codes, and so on. ``sgn(u)`` are the outputs
of the epoch before, from its training steps.

Assignment, codebook and the sums of codes over each class are in the checkpoint. The share of codes that change is
logged as ``codes/reassigned``, and the smallest distance of two centres as ``codes/smallest_distance``.

Both terms are means over images, so no weight depends on the batch size.

Where we differ: the paper's text was not available when this was written. The equation, the margin, the heads and the
epochs are those of a summary. The scale s, the weight lambda and the similarity above are ours. The paper draws its
codebook at random. Here its codes are as far apart as the Gilbert-Varshamov bound guarantees, so no two are the same.
If no divisor d is large enough, there is one head, and the codebook has all codes of K bits. If there are more classes
than codes of K bits, some share one. An image with several labels counts for each of its classes, and each of them has
the margin. An image without a label has no target and counts for no class. The network and the optimizer are modern
ones.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts import codebooks
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.losses import margin_softmax, signs


class CRHLoss(nn.Module):
    """Softmax of cosines with a margin, and quantization error.

    Args:
        scale: Factor s of the cosines, above 0.
        margin: Margin m, subtracted from the cosines of an image's own classes.
        quantization_weight: Weight lambda of the quantization error.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, scale: float, margin: float, quantization_weight: float):
        super().__init__()
        above_zero(scale=scale)
        at_least(0, margin=margin, quantization_weight=quantization_weight)
        self.scale = scale
        self.margin = margin
        self.quantization_weight = quantization_weight

    def forward(
        self, u: Float[Tensor, "n bits"], centres: Float[Tensor, "classes bits"], labels: Float[Tensor, "n classes"]
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            centres: Centre of each class, of +1 and -1.
            labels: Multi-hot labels of the batch. Rows without a label do not count in the first term.
        """
        z = torch.tanh(u)
        return {
            "classification": margin_softmax(u, centres, labels, self.scale, self.margin),
            "quantization": self.quantization_weight * (signs(u.detach()) - z).square().mean(),
        }


class CRH(HashingModule):
    """Train a network to output the centres of classes, which are assigned to codes of a codebook again and again.

    The codes are in ``codebook``, the number of the code of each class in each head in ``assignment``, and the sums of
    the codes of each class's images in the current epoch in ``class_sums``.

    Args:
        every_epoch_until: Last epoch, counted from 0, of those that each start with a new assignment.
        then_every: Number of epochs from one new assignment to the next after that.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "labels"

    def __init__(self, every_epoch_until: int, then_every: int, **settings):
        super().__init__(**settings)
        at_least(0, every_epoch_until=every_epoch_until)
        at_least(1, then_every=then_every)
        self.every_epoch_until = every_epoch_until
        self.then_every = then_every
        bits, classes = self.network.bits, self.train_labels.shape[1]
        width = head_width(bits, classes)
        size = min(2 * classes, max(classes, 2**width))
        rng = np.random.default_rng(self.seed)
        assignment = np.stack([rng.permutation(size)[:classes] for _ in range(bits // width)])
        self.register_buffer("codebook", codebooks.separated(size, width, self.seed))
        self.register_buffer("assignment", torch.from_numpy(assignment))
        self.register_buffer("class_sums", torch.zeros(classes, bits))
        self.codebook: Tensor
        self.assignment: Tensor
        self.class_sums: Tensor

    def centres(self) -> Float[Tensor, "classes bits"]:
        """Return the centre of each class: its codes in all heads, one after the other."""
        return torch.cat(list(self.codebook[self.assignment]), dim=1)

    def on_train_epoch_start(self) -> None:
        """Assign the classes again from the codes of the epoch before, if it is time, and forget these.

        This happens at the start of an epoch, because at its end the checkpoint is written before the module's hook
        runs.
        """
        epoch, before = self.current_epoch, self.assignment.clone()
        if 1 <= epoch <= self.every_epoch_until or (epoch and epoch % self.then_every == 0):
            self.reassign()
        self.class_sums.zero_()
        self.log("codes/reassigned", (self.assignment != before).float().mean())
        self.log("codes/smallest_distance", float(codebooks.smallest_distance(self.centres())))

    def reassign(self) -> None:
        """Assign each class to a code that its images' codes are near to, in each head."""
        means = self.class_sums / self.train_labels.sum(dim=0).clamp(min=1)[:, None]
        for head, part in enumerate(means.split(self.codebook.shape[1], dim=1)):
            self.assignment[head] = greedy_assignment(part @ self.codebook.T).to(self.assignment.device)

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the softmax loss of the batch and the quantization error."""
        self.class_sums += batch.labels.T @ signs(u.detach())
        return self.loss(u, self.centres(), batch.labels)


def head_width(bits: int, classes: int) -> int:
    """Return the smallest divisor of a code length that has two codes or more for each class; the length if none has.

    Args:
        bits: Code length.
        classes: Number of classes.
    """
    wide = (width for width in range(1, bits) if bits % width == 0 and 2**width >= 2 * classes)
    return next(wide, bits)


def greedy_assignment(similarity: Float[Tensor, "classes codes"]) -> Int64[Tensor, " classes"]:
    """Assign each class to a code of its own: the most similar pair first, then that of the remaining ones, and so on.

    Args:
        similarity: Similarity of each class and code; as many codes as classes, or more.
    """
    left = similarity.double().cpu().numpy().copy()
    every, best, chosen = np.arange(len(left)), left.argmax(axis=1), np.empty(len(left), np.int64)
    for _ in every:
        row = left[every, best].argmax()
        chosen[row] = column = best[row]
        left[row] = left[:, column] = -np.inf
        taken = best == column
        best[taken] = left[taken].argmax(axis=1)
    return torch.from_numpy(chosen)

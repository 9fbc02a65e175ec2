"""MDSH: Deep Hashing with Minimal-Distance-Separated Hash Centers (Wang et al., CVPR 2023).

https://openaccess.thecvf.com/CVPR2023

    L = - mean over images i and classes c [ s_ic log p_ic + (1 - s_ic) log(1 - p_ic) ]
        + beta mean over positive pairs log(1 + exp(-sqrt(K) cos(u_i, u_j))) + lambda mean (|u| - 1)^2
    p_i = softmax over classes of sqrt(K) cos(u_i, c),   b = sgn(u)

Each class has a hash centre ``c``, a code of K bits, +1 and -1. Centres that are drawn at random can be arbitrarily
close to each other. Here any two centres are at least d apart, where d is the largest distance for which the
Gilbert-Varshamov bound guarantees as many codes as there are classes. The centres are drawn from the seed before
training and are in the checkpoint. Their smallest distance is logged as ``codes/smallest_distance``.

``s_ic`` is 1 if image i has class c. The first term is the cross-entropy of both kinds: an image has to be near to the
centre of its class, and away from each other centre. The second term draws images that share a label to each other. It
starts in epoch ``pairs_from_epoch`` (the first epoch is 0), when outputs of earlier steps are a fair estimate of the
current ones. Each image of a batch is paired with the last ``queue`` outputs, the batch's own included, which have no
gradient. An image is not paired with itself.

All terms are means, so no weight depends on the batch size, the queue, the number of classes or the code length.

Where we differ: the paper's text was not available when this was written. The equation and its settings are those of a
summary. The logistic form of the pair term, with the same factor sqrt(K), and the length of the queue are ours. The
paper solves an optimization problem for its centres. Here, up to 16 bits they are words of a lexicode, which meets the
bound and often exceeds it. Longer centres are chosen one after the other, each the farthest of many random codes from
those before it, of which more are drawn until one is at least d apart. ``log(1 - p)`` is computed from the other
classes' outputs, because 1 - p is rounded to 0 for an image that is close to its centre. For an image with several
labels, the equation is used as it is; its best value is near to equal shares of p for the image's classes. An image
without a label is in no pair and has no part in the first term. The network and the optimizer are modern ones; the
paper used RMSprop.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts import codebooks
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import signs, similar


class MDSHLoss(nn.Module):
    """Cross-entropy between outputs and centres, likelihood of positive pairs, and quantization error.

    Args:
        pair_weight: Weight beta of the positive pairs.
        quantization_weight: Weight lambda of the quantization error.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, pair_weight: float, quantization_weight: float):
        super().__init__()
        at_least(0, pair_weight=pair_weight, quantization_weight=quantization_weight)
        self.pair_weight = pair_weight
        self.quantization_weight = quantization_weight

    def forward(
        self,
        u: Float[Tensor, "n bits"],
        centres: Float[Tensor, "classes bits"],
        labels: Float[Tensor, "n classes"],
        others: Float[Tensor, "m bits"],
        positive: Float[Tensor, "n m"],
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            centres: Centre of each class, of +1 and -1.
            labels: Multi-hot labels of the batch. Rows without a label do not count in the first term.
            others: Outputs that the batch is paired with.
            positive: 1 for the pairs that count, two images that share a label, else 0.
        """
        unit, scale = normalize(u), u.shape[1] ** 0.5
        log_p, log_rest = log_shares(scale * unit @ normalize(centres).T)
        labelled = labels.sum(dim=1, keepdim=True) > 0
        each = -torch.where(labelled, torch.where(labels > 0, log_p, log_rest), 0)
        pairs = positive * softplus(-scale * unit @ normalize(others).T)
        return {
            "centre": each.sum() / (labelled.sum() * labels.shape[1]).clamp(min=1),
            "pairs": self.pair_weight * pairs.sum() / positive.sum().clamp(min=1),
            "quantization": self.quantization_weight * (signs(u.detach()) - u).square().mean(),
        }


class MDSH(HashingModule):
    """Train a network to output the centre of an image's class.

    The centres are in ``centres``. The last outputs are in ``queue``, the newest first, and ``queue_indices`` has the
    index of the image of each, or -1.

    Args:
        pairs_from_epoch: First epoch with the term of positive pairs, counted from 0.
        queue: Number of outputs that a batch is paired with.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "labels"
    multi_label = False

    def __init__(self, pairs_from_epoch: int, queue: int, **settings):
        super().__init__(**settings)
        at_least(0, pairs_from_epoch=pairs_from_epoch)
        at_least(1, queue=queue)
        self.pairs_from_epoch = pairs_from_epoch
        bits, classes = self.network.bits, self.train_labels.shape[1]
        self.register_buffer("centres", codebooks.separated(classes, bits, self.seed))
        self.register_buffer("queue", torch.zeros(queue, bits))
        self.register_buffer("queue_indices", torch.full((queue,), -1))
        self.centres: Tensor
        self.queue: Tensor
        self.queue_indices: Tensor

    def on_train_epoch_start(self) -> None:
        """Log the smallest distance of two centres."""
        self.log("codes/smallest_distance", float(codebooks.smallest_distance(self.centres)))

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the distance from the centres, that of positive pairs, and the quantization error."""
        for queue, newest in ((self.queue, u.detach()), (self.queue_indices, batch.indices)):
            queue.copy_(torch.cat([newest, queue])[: len(queue)])
        return self.loss(u, self.centres, batch.labels, self.queue, self.positive(batch))

    def positive(self, batch: Batch) -> Float[Tensor, "n m"]:
        """Return 1 for the images of a batch and the outputs of the queue that form a pair, else 0."""
        if self.current_epoch < self.pairs_from_epoch:
            return self.queue.new_zeros(len(batch.indices), len(self.queue))
        others = self.queue_indices >= 0
        others = others & (batch.indices[:, None] != self.queue_indices)
        return similar(batch.labels, self.train_labels[self.queue_indices]) * others


def log_shares(logits: Float[Tensor, "n classes"]) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes"]]:
    """Return log p and log(1 - p) for the softmax p, both exact if p is close to 1.

    Args:
        logits: Inputs of the softmax, of two classes or more.
    """
    log_p = logits.log_softmax(dim=1)
    largest = logits.argmax(dim=1, keepdim=True)
    rest = log_p.scatter(1, largest, -torch.inf).logsumexp(dim=1, keepdim=True)
    p = log_p.exp().scatter(1, largest, 0)  # no other p is above 1/2
    return log_p, torch.log1p(-p).scatter(1, largest, rest)

"""GreedyHash: Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN (Su et al., NeurIPS 2018).

https://papers.nips.cc/paper/2018/hash/13f3cf8c531952d72e5847c4183e6910-Abstract.html

    J = mean over images [ - sum_c y_c / |y|_1 log softmax(W b)_c ] + alpha mean over images and bits | |u| - 1 |^3
    b = sgn(u),   dJ/du := dJ/db

A linear classifier W predicts the label of an image from its code, not from a relaxation of it. The gradient of the
code is given to the network's output ``u`` as it is (the straight-through estimator), so it does not vanish where a
tanh would saturate. The second term keeps ``u`` near its code, so that this gradient is meant for about the right
place. W learns together with the network. It is only needed for training.

The paper's classification loss is a mean over the images of a batch and its penalty is used as a mean in the authors'
program, so that alpha (0.1 on CIFAR-10, 1 on ImageNet) is the paper's number here, too.

Where we differ: the paper has one label an image. For several, the target of the softmax is ``y / |y|_1``: equal shares
of the classes that the image has. With one label this is the paper's cross-entropy. One sigmoid a class would be
another loss even then, and among many classes it mostly teaches what an image is not. Other programs take the argmax of
a multi-hot label, which is its first class, and so ignore all others. Images without a label have no classification
term. The classifier has no bias, because how frequent a class is says nothing about codes. At u = 0, where ``|u|`` has
no derivative, the penalty pulls to +1. The network and the optimizer are modern ones; the paper used AlexNet and SGD.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import class_entropy, cubic_quantization
from deephash_cli.methods.parts.straight_through import straight_through


class GreedyHashLoss(nn.Module):
    """Classification by the codes, and quantization penalty.

    Args:
        quantization_weight: Weight alpha of the penalty.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, quantization_weight: float):
        super().__init__()
        at_least(0, quantization_weight=quantization_weight)
        self.quantization_weight = quantization_weight

    def forward(
        self, u: Float[Tensor, "n bits"], logits: Float[Tensor, "n classes"], labels: Float[Tensor, "n classes"]
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            logits: What the classifier says of their signs.
            labels: Multi-hot labels. Images without any do not count in the classification.
        """
        return {
            "classification": class_entropy(logits.log_softmax(dim=1), labels),
            "quantization": self.quantization_weight * cubic_quantization(u),
        }


class GreedyHash(HashingModule):
    """Train a network with GreedyHash. The classifier W is in ``classifier``, with a row for each class.

    Args:
        **settings: Arguments of ``HashingModule``.
    """

    supervision = "labels"
    multi_label = False

    def __init__(self, **settings):
        super().__init__(**settings)
        bits, classes = self.network.bits, self.train_labels.shape[1]
        generator = torch.Generator().manual_seed(self.seed)
        largest = bits**-0.5  # as torch starts a linear layer
        self.classifier = nn.Parameter(torch.empty(classes, bits).uniform_(-largest, largest, generator=generator))

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the classification loss of the codes and the penalty."""
        return self.loss(u, straight_through(u) @ self.classifier.T, batch.labels)

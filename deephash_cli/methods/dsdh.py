"""DSDH: Deep Supervised Discrete Hashing (Li, Sun, He and Tan, NIPS 2017).

https://arxiv.org/abs/1705.10999

    J = - sum over pairs [ s_ij t_ij - log(1 + exp(t_ij)) ]
        + mu sum_i |y_i - W'b_i|^2 + nu |W|^2 + eta sum_i |b_i - u_i|^2
    t_ij = <u_i, u_j> / 2,   b_i of +1 and -1

The network's output ``u`` is pulled towards a code b, and a linear classifier W predicts the labels from that code.
Before each epoch, two steps alternate for ``rounds`` rounds on the whole training set. U is a buffer with the last
output for every training image:

    W = (B'B + nu/mu I)^-1 B'Y
    B = argmin of |Y - B W|^2 + eta/mu |B - U|^2, one bit of all codes at a time, with Q = Y W' + eta/mu U

Neither step can raise the objective. The network then trains for an epoch with two terms. The first is the pair
likelihood: the outputs for a batch are written into U and paired with all of U, and the gradient flows through the rows
of the batch alone. The second is |b_i - u_i|^2, where b_i is the code from the B step, not the sign of u_i. W and B
reach the network through b_i alone: the other two terms of J have no gradient in the network's weights, so they are not
part of its loss. Their sizes are logged as ``codes/classification`` and ``codes/ridge``. Before the first epoch there
are no outputs: U is zero, so the first codes are computed from the labels alone, starting from random codes. (With
codes that start from zeros, W is zero, then B is zero, and both stay zero for the epoch.)

The network's loss consists of means over pairs and over images, which gives ``1 / (2 N batch)`` times the paper's
gradient. Its ``quantization_weight`` is ``eta / (2 N)``, so that the balance of the two terms does not depend on the
number N of training images. The 55 in the authors' code is 0.0055 for 5000 images. (DPSH's ``eta_convention=mean`` is
also a mean over bits, so the same weight is ``bits`` times as large there.) ``output_weight`` is eta/mu and
``ridge_weight`` is nu/mu. The three settings are independent: mu, which is in both steps, is
``2 N quantization_weight / output_weight``.

Where we differ: B and W are computed on the whole training set; the authors' code computes them on a batch. ``Y`` has a
one for each label of an image that has several labels. The network and the optimizer are modern ones; the paper used
CNN-F and plain SGD.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import BufferedModule
from deephash_cli.methods.parts.discrete import cyclic_coordinate_descent
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.losses import pair_likelihood, signs, similar


class DSDHLoss(nn.Module):
    """Pair likelihood of a batch, and the distance of its outputs from their codes.

    Args:
        quantization_weight: Weight ``eta / (2 N)`` of the mean over images of squared distances.
        balanced: Whether similar and dissimilar pairs have the same weight in all, which the paper does not do; runs of
            earlier versions did not.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, quantization_weight: float, balanced: bool = False):
        super().__init__()
        at_least(0, quantization_weight=quantization_weight)
        self.balanced = balanced
        self.quantization_weight = quantization_weight

    def forward(
        self,
        u: Float[Tensor, "n bits"],
        others: Float[Tensor, "m bits"],
        similar: Float[Tensor, "n m"],
        b: Float[Tensor, "n bits"],
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            others: The buffer, with the last output for every training image.
            similar: 1 for pairs that share a label, else 0.
            b: Codes of the batch, of +1 and -1.
        """
        return {
            "similarity": pair_likelihood(u, others, similar, self.balanced),
            "quantization": self.quantization_weight * (b - u).square().sum(dim=1).mean(),
        }


class DSDH(BufferedModule):
    """Train a network with DSDH. The codes B are in ``b_buffer`` and the classifier W is in ``w_buffer``.

    Args:
        output_weight: Weight eta/mu of the distance between codes and outputs.
        ridge_weight: Weight nu/mu of the classifier's ridge.
        rounds: Maximum number of rounds of both steps; they end earlier if no code changes.
        sweeps: Maximum number of sweeps over all bits in one B step.
        **settings: Arguments of ``BufferedModule``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "labels"

    def __init__(self, output_weight: float, ridge_weight: float, rounds: int, sweeps: int, **settings):
        super().__init__(**settings)
        at_least(0, output_weight=output_weight)
        above_zero(ridge_weight=ridge_weight)  # B'B has no inverse if two bits are the same
        at_least(1, rounds=rounds, sweeps=sweeps)
        self.output_weight = output_weight
        self.ridge_weight = ridge_weight
        self.rounds = rounds
        self.sweeps = sweeps
        n, classes = self.train_labels.shape
        start = torch.randn(n, self.network.bits, generator=torch.Generator().manual_seed(self.seed))
        self.register_buffer("b_buffer", signs(start))
        self.register_buffer("w_buffer", torch.zeros(self.network.bits, classes))
        self.b_buffer: Tensor
        self.w_buffer: Tensor

    def on_train_epoch_start(self) -> None:
        """Update the classifier and the codes of the whole training set from the latest outputs.

        This happens at the start of an epoch, because at its end the checkpoint is written before the module's hook
        runs.
        """
        super().on_train_epoch_start()
        self.update_codes()
        errors = (self.train_labels - self.b_buffer @ self.w_buffer).square()
        self.log_dict({"codes/classification": errors.mean(), "codes/ridge": self.w_buffer.square().sum()})

    def update_codes(self) -> None:
        """Run up to ``rounds`` rounds of the W step and the B step."""
        y = self.train_labels
        for _ in range(self.rounds):
            self.w_buffer.copy_(ridge_classifier(self.b_buffer, y, self.ridge_weight))
            q = y @ self.w_buffer.T + self.output_weight * self.u_buffer
            b = cyclic_coordinate_descent(self.b_buffer, q, self.w_buffer, self.sweeps)
            if torch.equal(b, self.b_buffer):
                break
            self.b_buffer.copy_(b)

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the pair likelihood and the distance from the codes."""
        pairs = similar(batch.labels, self.train_labels)
        return self.loss(u, self.remember(u, batch), pairs, self.b_buffer[batch.indices])


def ridge_classifier(
    b: Float[Tensor, "n bits"], y: Float[Tensor, "n classes"], weight: float
) -> Float[Tensor, "bits classes"]:
    """Return the linear classifier of codes that minimises ``|Y - B W|^2 + weight |W|^2``.

    It is ``W = (B'B + weight I)^-1 B'Y``.

    Args:
        b: Codes of +1 and -1.
        y: Multi-hot labels.
        weight: Weight of the ridge, above 0: if two bits agree on all images, B'B has no inverse.
    """
    # These sums of whole numbers are exact in single precision. The solution is not, for few codes and a small ridge.
    gram, targets = (b.T @ b).double().cpu(), (b.T @ y).double().cpu()
    gram.diagonal().add_(weight)
    return torch.linalg.solve(gram, targets).to(b)

"""DSDH: Deep Supervised Discrete Hashing (Li, Sun, He and Tan, NIPS 2017).

https://arxiv.org/abs/1705.10999

    J = - sum over pairs [ s_ij t_ij - log(1 + exp(t_ij)) ]
        + mu sum_i |y_i - W'b_i|^2 + nu |W|^2 + eta sum_i |b_i - u_i|^2
    t_ij = <u_i, u_j> / 2,   b_i of +1 and -1

A code is what the network's output ``u`` comes near to, and what a linear classifier W tells the labels from. Before
each epoch, ``rounds`` times, on the whole training set, with U the last output of every image:

    W = (B'B + nu/mu I)^-1 B'Y
    B = argmin of |Y - B W|^2 + eta/mu |B - U|^2, one bit of all codes at a time, with Q = Y W' + eta/mu U

Neither step can raise the objective. Then the network has an epoch of pair likelihood, in which a batch is written into
U and paired with the whole of it and the gradient flows through the batch's rows alone, and of |b_i - u_i|^2 with the
b_i of that step, not the sign of u_i. W and B reach the network through b_i alone: the other two terms of J have no
gradient in its weights, so that they are no part of its loss. Their size is logged as ``codes/classification`` and
``codes/ridge``. There are no outputs before the first epoch: U is zero, so its codes come from the labels alone, from
random codes on. (From zeros W is zero, then B, and both stay so for the epoch.)

The network's loss is means, over pairs and over images: it has ``1 / (2 N batch)`` times the paper's gradient, and
its ``quantization_weight`` is ``eta / (2 N)``, so that the balance of the two does not depend on the number N of
training images. The 55 of the authors' code is 0.0055 for 5000 images. (DPSH's ``eta_convention=mean`` is a mean over
bits too: the same weight is ``bits`` times as large there.) ``output_weight`` is eta/mu and ``ridge_weight`` is nu/mu.
The three are set one by one: mu, which is in both steps, is ``2 N quantization_weight / output_weight``.

Where we differ: B and W are those of the whole training set, where the authors' code has those of a batch; and ``Y``
has a one for each label of an image that has several. The network and the optimizer are today's (the paper has CNN-F
and plain SGD).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.discrete import cyclic_coordinate_descent
from deephash_cli.losses import pair_likelihood, signs, similar
from deephash_cli.methods.base import BufferedModule


class DSDHLoss(nn.Module):
    """Pair likelihood of a batch, and its distance from its codes.

    Args:
        quantization_weight: ``eta / (2 N)``, of the mean over images of squared distances.
    """

    def __init__(self, quantization_weight: float):
        super().__init__()
        self.quantization_weight = quantization_weight

    def forward(
        self,
        u: Float[Tensor, "n bits"],
        others: Float[Tensor, "m bits"],
        similar: Float[Tensor, "n m"],
        b: Float[Tensor, "n bits"],
    ) -> dict[str, Tensor]:
        """Loss terms.

        Args:
            u: Outputs of the batch.
            others: The buffer.
            similar: 1 for pairs that share a label, else 0.
            b: Codes of the batch.
        """
        return {
            "similarity": pair_likelihood(u, others, similar),
            "quantization": self.quantization_weight * (b - u).square().sum(dim=1).mean(),
        }


class DSDH(BufferedModule):
    """DSDH: the state of its codes and its classifier is ``b_buffer`` (B) and ``w_buffer`` (W).

    Args:
        output_weight: eta/mu.
        ridge_weight: nu/mu.
        rounds: Of both steps at most; they end when no code changes.
        sweeps: Over all bits in a step, at most.
        **settings: Those of ``BufferedModule``.
    """

    supervision = "labels"

    def __init__(self, output_weight: float, ridge_weight: float, rounds: int, sweeps: int, **settings):
        super().__init__(**settings)
        if output_weight < 0:
            raise ValueError(f"output_weight must be 0 or more, got {output_weight}")
        if ridge_weight <= 0:  # B'B has no inverse where two bits are the same
            raise ValueError(f"ridge_weight must be above 0, got {ridge_weight}")
        for name, count in (("rounds", rounds), ("sweeps", sweeps)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
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
        """Classifier and codes of the whole training set, from the outputs so far.

        At the start: when an epoch ends, its checkpoint is written before a module has its turn.
        """
        super().on_train_epoch_start()
        self.update_codes()
        errors = (self.train_labels - self.b_buffer @ self.w_buffer).square()
        self.log_dict({"codes/classification": errors.mean(), "codes/ridge": self.w_buffer.square().sum()})

    def update_codes(self) -> None:
        """``rounds`` of the W step and the B step."""
        y = self.train_labels
        for _ in range(self.rounds):
            self.w_buffer.copy_(ridge_classifier(self.b_buffer, y, self.ridge_weight))
            q = y @ self.w_buffer.T + self.output_weight * self.u_buffer
            b = cyclic_coordinate_descent(self.b_buffer, q, self.w_buffer, self.sweeps)
            if torch.equal(b, self.b_buffer):
                break
            self.b_buffer.copy_(b)

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Pair likelihood and distance from the codes."""
        pairs = similar(batch.labels, self.train_labels)
        return self.loss(u, self.remember(u, batch), pairs, self.b_buffer[batch.indices])


def ridge_classifier(
    b: Float[Tensor, "n bits"], y: Float[Tensor, "n classes"], weight: float
) -> Float[Tensor, "bits classes"]:
    """Linear classifier of codes, ``W = (B'B + weight I)^-1 B'Y``: the minimiser of ``|Y - B W|^2 + weight |W|^2``.

    Args:
        b: Codes of +1 and -1.
        y: Multi-hot labels.
        weight: Of the ridge; above 0, because bits that agree on all images leave B'B without an inverse.
    """
    # sums of whole numbers, exact in single precision; what follows is not, with few distinct codes and a small ridge
    gram, targets = (b.T @ b).double().cpu(), (b.T @ y).double().cpu()
    gram.diagonal().add_(weight)
    return torch.linalg.solve(gram, targets).to(b)

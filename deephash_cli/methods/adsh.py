"""ADSH: Asymmetric Deep Supervised Hashing (Jiang and Li, AAAI 2018).

https://arxiv.org/abs/1707.08325

    min over V, network of sum over i in Omega, j of (z_i'v_j - K s_ij)^2 + gamma sum over i in Omega of |v_i - z_i|^2
    z_i = tanh(u_i),   v_j of +1 and -1,   s_ij = 1 for pairs that share a label, -1 for others

The database has codes V that are learned directly: no network computes them. Queries are encoded by the network. Two
steps alternate, each round with another random sample Omega of the database as queries. In the first, the network
learns for a few epochs on the images of Omega, with V as it is. In the second, V is updated, one bit k of all codes at
a time:

    v_k = -sgn(2 V^ Z^'z_k + q_k),   Q = -2 K S'Z - 2 gamma Z_

``V^`` and ``Z^`` are V and Z without bit k, and ``Z_`` has the rows of Z for the images of Omega and 0 for all others.
Each update is the exact minimiser in that bit, so the objective never rises.

This method is **transductive**: it trains on the whole database, with the labels of every item, and the codes that are
searched were chosen to fit these labels. Numbers of methods that see 5000 labels cannot be compared with its numbers;
tables mark it. A public version encodes the database with the network instead of using V: that is another method.

Here the first term is a mean over pairs of ``(z_i'v_j / K - s_ij)^2``, and the second a mean over images and bits, so
that neither depends on the number N of items, on the size of Omega or on K: ``quantization_weight`` is
``gamma / (N K)``. The published gamma of 200 is 0.00007 for 59,000 items and 48 bits.

Where we differ: with ``dissimilar=balanced``, as in the authors' code but not in their paper, s is -r for dissimilar
pairs, with r the ratio of the number of similar to dissimilar pairs, so that both kinds count alike. A round lasts
three epochs, as published; an epoch passes over ``sample`` images, so that it is shorter than an epoch of other
methods. The last update of V happens when training has ended. Validation queries (``validation.queries``) are taken out
of the training set, and their validation mAP is that of codes of the network on both sides.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import signs, similar

_BLOCK = 8192  # database items whose similarity to Omega is computed at a time


class ADSHLoss(nn.Module):
    """Squared error of the inner products of queries with the codes of the database, and the quantization error.

    Args:
        quantization_weight: Weight ``gamma / (N K)`` of the mean over images and bits.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, quantization_weight: float):
        super().__init__()
        at_least(0, quantization_weight=quantization_weight)
        self.quantization_weight = quantization_weight

    def forward(
        self,
        u: Float[Tensor, "n bits"],
        v: Float[Tensor, "m bits"],
        targets: Float[Tensor, "n m"],
        own: Float[Tensor, "n bits"],
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            v: Codes of the database, of +1 and -1.
            targets: What the inner product of each pair should be, as a share of the code length.
            own: Codes of the batch among those of the database.
        """
        z = u.tanh()
        return {
            "similarity": (z @ v.T / u.shape[1] - targets).square().mean(),
            "quantization": self.quantization_weight * (own - z).square().mean(),
        }


class ADSH(HashingModule):
    """Train a network for queries, and codes for the database.

    Args:
        sample: Number of images in Omega, at most the number of training images.
        epochs_per_round: Number of epochs on one sample, before the codes of the database are updated.
        dissimilar: Target of dissimilar pairs: ``balanced`` or ``minus_one``.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    supervision = "pairs"
    transductive = True

    def __init__(self, sample: int, epochs_per_round: int, dissimilar: str, **settings):
        super().__init__(**settings)
        at_least(1, sample=sample, epochs_per_round=epochs_per_round)
        if dissimilar not in ("balanced", "minus_one"):
            raise ValueError(f"dissimilar must be balanced or minus_one, got {dissimilar!r}")
        n, bits = len(self.train_labels), self.network.bits
        self.epoch_sample = (sample, epochs_per_round)
        self.epochs_per_round = epochs_per_round
        self.dissimilar = dissimilar
        start = torch.randn(n, bits, generator=torch.Generator().manual_seed(self.seed))
        self.register_buffer("v", signs(start))
        self.register_buffer("z_buffer", torch.zeros(n, bits))  # outputs for the images of Omega
        self.register_buffer("in_sample", torch.zeros(n, dtype=torch.bool))
        self.register_buffer("ratio", self._ratio())
        self.v: Tensor
        self.z_buffer: Tensor
        self.in_sample: Tensor
        self.ratio: Tensor

    def on_train_epoch_start(self) -> None:
        """Update the codes of the database when a round begins, from the outputs of the round before.

        This happens at the start of an epoch, because at its end the checkpoint is written before the module's hook
        runs.
        """
        if self.current_epoch % self.epochs_per_round == 0:
            self.v.copy_(self.learned_codes())
            self.in_sample.fill_(False)

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the squared errors of the batch against the whole database, and the quantization term."""
        self.z_buffer[batch.indices] = u.detach().tanh()
        self.in_sample[batch.indices] = True
        pairs = similar(batch.labels, self.train_labels)
        return self.loss(u, self.v, self._targets(pairs), self.v[batch.indices])

    def learned_codes(self) -> Float[Tensor, "n bits"]:
        """Return the codes of the database after the update that follows the latest round, one for each image."""
        omega = self.in_sample.nonzero()[:, 0]
        if not len(omega):
            return self.v
        n, bits = self.v.shape
        z, v = self.z_buffer[omega], self.v.clone()
        q = torch.cat(
            [
                self._targets(similar(part, self.train_labels[omega])) @ z
                for part in self.train_labels.split(_BLOCK)
            ]
        ).mul_(-2 * bits)  # fmt: skip
        gamma = cast(ADSHLoss, self.loss).quantization_weight * n * bits
        q[omega] -= 2 * gamma * z
        gram = 2 * (z.T @ z).fill_diagonal_(0)
        for k in range(bits):
            bit = slice(k, k + 1)
            v[:, bit] = signs(-(v @ gram[:, bit] + q[:, bit]))
        return v

    def _targets(self, pairs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Turn similarities of 1 and 0 into the targets of inner products."""
        return pairs * (1 + self.ratio) - self.ratio

    def _ratio(self) -> Tensor:
        """Return minus the target of dissimilar pairs: 1, or the number of similar pairs by that of dissimilar ones."""
        if self.dissimilar == "minus_one":
            return torch.ones(())
        kinds, counts = self.train_labels.unique(dim=0, return_counts=True)
        counts = counts.double() / len(self.train_labels)
        matches = torch.cat([similar(part, kinds).double() @ counts for part in kinds.split(_BLOCK)])
        share = counts @ matches
        return (share / (1 - share)).float()

"""DPSH: Feature Learning based Deep Supervised Hashing with Pairwise Labels (Li, Wang and Kang, IJCAI 2016).

https://www.ijcai.org/Proceedings/16/Papers/245.pdf

    J = - sum over pairs [ s_ij t_ij - log(1 + exp(t_ij)) ] + eta sum_i |b_i - u_i|^2
    t_ij = <u_i, u_j> / 2,   b_i = sgn(u_i)

``u`` is the network's output without a squashing function. ``U`` holds the last output of every training image; a batch
is written into it and then paired with the whole of it, and the gradient flows through the batch's rows alone. Summed
over ordered pairs, the paper's gradient of one row is ``sum_j (sigmoid(t_ij) - s_ij) u_j + 2 eta (u_i - b_i)``; the
loss here has 1 / (2 N batch) times that gradient, so that its size depends on neither N nor the batch.

Where we differ: the network and the optimizer are today's (the paper has CNN-F and plain SGD); ``pairs=batch`` forms
pairs inside the batch instead of against U, which is not DPSH's published procedure and is named in the results.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.losses import pair_likelihood, signs, similar
from deephash_cli.methods.base import BufferedModule


class DPSHLoss(nn.Module):
    """Pair likelihood and quantization error of a batch.

    Args:
        quantization_weight: eta.
        eta_convention: ``paper``: eta weighs the sum over images of squared distances, against the sum over pairs.
            ``mean``: it weighs the mean over images and bits against the mean over pairs, as many re-implementations
            do; over a buffer of N rows that equals ``2 N / bits`` times as much in the paper's convention.
    """

    def __init__(self, quantization_weight: float, eta_convention: Literal["paper", "mean"]):
        super().__init__()
        if eta_convention not in ("paper", "mean"):
            raise ValueError(f"eta_convention must be paper or mean, got {eta_convention!r}")
        self.quantization_weight = quantization_weight
        self.eta_convention = eta_convention

    def forward(
        self,
        u: Float[Tensor, "n bits"],
        others: Float[Tensor, "m bits"],
        similar: Float[Tensor, "n m"],
        two_sided: bool,
    ) -> dict[str, Tensor]:
        """Loss terms.

        Args:
            u: Outputs of the batch.
            others: What the batch is paired with: the buffer, or the batch itself.
            similar: 1 for pairs that share a label, else 0.
            two_sided: Whether the gradient flows through both sides of a pair. With a buffer it flows through one, so
                the pair term weighs half as much against the same quantization.
        """
        errors = (signs(u.detach()) - u).square()
        if self.eta_convention == "mean":
            quantization = errors.mean()
        else:
            quantization = errors.sum(dim=1).mean() / (len(others) * (1 if two_sided else 2))
        return {
            "similarity": pair_likelihood(u, others, similar),
            "quantization": self.quantization_weight * quantization,
        }


class DPSH(BufferedModule):
    """DPSH with pairs against the whole training set (``buffer``) or inside the batch (``batch``).

    Args:
        pairs: ``buffer`` or ``batch``.
        buffer_init: That of ``BufferedModule``.
        **settings: Those of ``HashingModule``.
    """

    supervision = "pairs"

    def __init__(self, pairs: Literal["buffer", "batch"], buffer_init: Literal["zeros", "first_pass"], **settings):
        super().__init__(buffer_init, **settings)
        if pairs not in ("buffer", "batch"):
            raise ValueError(f"pairs must be buffer or batch, got {pairs!r}")
        self.pairs = pairs
        if pairs == "batch":
            del self.u_buffer

    def on_train_epoch_start(self) -> None:
        """Fill the buffer from the untrained network, once, if there is one and it was asked for."""
        if self.pairs == "buffer":
            super().on_train_epoch_start()

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Pair likelihood and quantization."""
        if self.pairs == "batch":
            return self.loss(u, u, similar(batch.labels, batch.labels), two_sided=True)
        return self.loss(u, self.remember(u, batch), similar(batch.labels, self.train_labels), two_sided=False)

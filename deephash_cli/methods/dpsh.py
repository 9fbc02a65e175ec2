"""DPSH: Feature Learning based Deep Supervised Hashing with Pairwise Labels (Li, Wang and Kang, IJCAI 2016).

https://www.ijcai.org/Proceedings/16/Papers/245.pdf

    J = - sum over pairs [ s_ij t_ij - log(1 + exp(t_ij)) ] + eta sum_i |b_i - u_i|^2
    t_ij = <u_i, u_j> / 2,   b_i = sgn(u_i)

``u`` is the network's output without a squashing function. ``U`` is a buffer with the last output for every training
image. The outputs for a batch are written into U and then paired with all of U. The gradient flows through the rows of
the batch alone. Summed over ordered pairs, the paper's gradient of one row is
``sum_j (sigmoid(t_ij) - s_ij) u_j + 2 eta (u_i - b_i)``. The loss here has 1 / (2 N batch) times that gradient, so that
its size depends on neither the number N of training images nor the size of the batch.

Where we differ: the network and the optimizer are modern ones; the paper used CNN-F and plain SGD. ``pairs=batch``
forms pairs inside the batch instead of against U. This is not DPSH's published procedure, and the results name it.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import BufferedModule
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import pair_likelihood, signs, similar


class DPSHLoss(nn.Module):
    """Pair likelihood and quantization error of a batch.

    Args:
        quantization_weight: Weight eta of the quantization error.
        eta_convention: ``paper`` or ``mean``. With ``paper``, eta weighs the sum over images of squared distances,
            against the sum over pairs. With ``mean``, it weighs the mean over images and bits against the mean over
            pairs, as in many re-implementations. For a buffer of N rows, an eta in the ``mean`` convention equals
            ``2 N / bits`` times that eta in the ``paper`` convention.
        balanced: Whether similar and dissimilar pairs have the same weight in all, which the paper does not do; runs of
            earlier versions did not.

    Raises:
        ValueError: If ``eta_convention`` is neither of the two.
    """

    def __init__(self, quantization_weight: float, eta_convention: Literal["paper", "mean"], balanced: bool = False):
        super().__init__()
        at_least(0, quantization_weight=quantization_weight)
        if eta_convention not in ("paper", "mean"):
            raise ValueError(f"eta_convention must be paper or mean, got {eta_convention!r}")
        self.quantization_weight = quantization_weight
        self.eta_convention = eta_convention
        self.balanced = balanced

    def forward(
        self,
        u: Float[Tensor, "n bits"],
        others: Float[Tensor, "m bits"],
        similar: Float[Tensor, "n m"],
        two_sided: bool,
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            others: Outputs that the batch is paired with: the buffer, or the batch itself.
            similar: 1 for pairs that share a label, else 0.
            two_sided: Whether the gradient flows through both sides of a pair. With a buffer it flows through one side
                alone, so the pair term has half the weight relative to the same quantization.
        """
        errors = (signs(u.detach()) - u).square()
        if self.eta_convention == "mean":
            quantization = errors.mean()
        else:
            quantization = errors.sum(dim=1).mean() / (len(others) * (1 if two_sided else 2))
        return {
            "similarity": pair_likelihood(u, others, similar, self.balanced),
            "quantization": self.quantization_weight * quantization,
        }


class DPSH(BufferedModule):
    """Train a network with DPSH's loss.

    Args:
        pairs: ``buffer`` for pairs against the whole training set, or ``batch`` for pairs inside the batch.
        buffer_init: Initial content of the buffer, as in ``BufferedModule``.
        **settings: Arguments of ``HashingModule``.

    Raises:
        ValueError: If ``pairs`` or ``buffer_init`` is not one of its values.
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
        """Fill the buffer as ``BufferedModule`` does, if there is one."""
        if self.pairs == "buffer":
            super().on_train_epoch_start()

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the pair likelihood and the quantization term."""
        if self.pairs == "batch":
            return self.loss(u, u, similar(batch.labels, batch.labels), two_sided=True)
        return self.loss(u, self.remember(u, batch), similar(batch.labels, self.train_labels), two_sided=False)

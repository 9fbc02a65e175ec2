"""LFH_DEEP: the objective of Supervised Hashing with Latent Factor Models (Zhang, Zhang, Li and Guo, SIGIR 2014).

    max over U of sum over pairs [ s_ij t_ij - log(1 + exp(t_ij)) ] - 1 / (2 beta) sum_i |u_i|^2
    t_ij = <u_i, u_j> / 2,   b_i = sgn(u_i)

Where we differ: this is not the published LFH, which is shallow. There the rows of U are free variables, found one
after the other by a quadratic bound. A ridge regression from given features to U encodes images outside the training
set. Here ``u`` is the network's output, and the same objective, negated, trains the network end to end, as DPSH does.
The Gaussian prior u ~ N(0, beta I) replaces DPSH's quantization term, so no term pulls u to +1 and -1.

``U`` is a buffer with the last output for every training image. The outputs for a batch are written into U and then
paired with all of U. The gradient flows through the rows of the batch alone. Both terms are means, over pairs and over
images, so that their balance depends on neither the number N of training images nor the size of the batch:
``prior_weight`` is ``1 / (4 N beta)``.
"""

from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import BufferedModule
from deephash_cli.methods.parts.limits import at_least
from deephash_cli.methods.parts.losses import pair_likelihood, similar


class LFHDeepLoss(nn.Module):
    """Pair likelihood of a batch against the buffer, and the prior.

    Args:
        prior_weight: Weight ``1 / (4 N beta)`` of the mean over images of ``|u|^2``, 0 or more.
        balanced: Whether similar and dissimilar pairs have the same weight in all, which the paper does not do; runs of
            earlier versions did not.

    Raises:
        ValueError: If ``prior_weight`` is negative.
    """

    def __init__(self, prior_weight: float, balanced: bool = False):
        super().__init__()
        self.balanced = balanced
        at_least(0, prior_weight=prior_weight)
        self.prior_weight = prior_weight

    def forward(
        self, u: Float[Tensor, "n bits"], others: Float[Tensor, "m bits"], similar: Float[Tensor, "n m"]
    ) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            others: The buffer, with the last output for every training image.
            similar: 1 for pairs that share a label, else 0.
        """
        return {
            "similarity": pair_likelihood(u, others, similar, self.balanced),
            "prior": self.prior_weight * u.square().sum(dim=1).mean(),
        }


class LFHDeep(BufferedModule):
    """Train a network with LFH's objective, with pairs against the whole training set."""

    supervision = "pairs"

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the pair likelihood and the prior."""
        return self.loss(u, self.remember(u, batch), similar(batch.labels, self.train_labels))

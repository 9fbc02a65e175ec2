"""SDC: Unsupervised Hashing with Similarity Distribution Calibration (Ng et al., BMVC 2023).

https://arxiv.org/abs/2302.07669

    J = mean over pairs | cos(u_i, u_j) - q_ij | + lambda mean over images ( 1 - cos(u_i, sgn(u_i)) )
    q_ij = 2 F^-1( (r_ij - 1/2) / m ) - 1,   r_ij the rank of cos(f_i, f_j) among the m pairs, from 1

F is the distribution function of Beta(alpha, beta). The cosines of features f of a pretrained backbone crowd together
in a short interval, and a code that copies them uses few of its distances: similar and dissimilar images come to lie
equally far apart. So the features give the order of the pairs alone. The cosine that each pair is to have is the
quantile of its rank in a Beta distribution that is stretched over all of [-1, 1]. The first term is the Wasserstein
distance of the two distributions if the codes have the order of the features. The second term turns the outputs ``u``
towards their codes.

Where we differ: the pairs are all pairs of two images of a batch; the authors' program takes those of an image of its
first half with one of its second half. With more pairs, the rank of a pair depends less on the batch. That program also
raises targets below 0 to 0, so that the least similar images get codes that share half of their bits (``lowest=0``);
here the targets are the formula's. The contrastive loss of two views that the program can add is left out, as in its
default. Of pairs with equal cosines of features, the order is that of the images in the batch. The paper's features
come from a backbone that does not learn, so they are a fixed target. This method freezes the backbone for the same
reason, and its features are computed once. With ``model.frozen=false`` the target of a step comes from the features
that the backbone has in this step, and the gradient flows through the codes alone. Then the target moves as the
backbone learns. The network and the optimizer are modern ones.
"""

import functools

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.cosines import pair_cosines
from deephash_cli.methods.parts.limits import above_zero, at_least
from deephash_cli.methods.parts.losses import signs


class SDCLoss(nn.Module):
    """Distance of the cosines from the quantiles of a Beta distribution, and quantization error.

    Args:
        alpha: First parameter of the Beta distribution.
        beta: Second parameter of the Beta distribution.
        lowest: Smallest target of a cosine; lower quantiles are raised to it.
        quantization_weight: Weight lambda of the quantization error.

    Raises:
        ValueError: If a parameter of the distribution is not above 0, or ``lowest`` is outside [-1, 1].
    """

    def __init__(self, alpha: float, beta: float, lowest: float, quantization_weight: float):
        super().__init__()
        above_zero(alpha=alpha, beta=beta)
        at_least(0, quantization_weight=quantization_weight)
        if not -1 <= lowest <= 1:
            raise ValueError(f"lowest must be in [-1, 1], got {lowest}")
        self.alpha = alpha
        self.beta = beta
        self.lowest = lowest
        self.quantization_weight = quantization_weight

    def forward(self, u: Float[Tensor, "n bits"], features: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """Return the loss terms.

        Args:
            u: Outputs of the batch.
            features: Features of the same images, without a gradient.
        """
        cosines = pair_cosines(u)
        ascending = cosines[pair_cosines(features).argsort(stable=True)]
        targets = torch.from_numpy(quantiles(len(cosines), self.alpha, self.beta)).to(u).clamp(min=self.lowest)
        errors = (ascending - targets).abs()
        to_codes = 1 - torch.cosine_similarity(u, signs(u.detach()), dim=1)
        return {
            "calibration": errors.sum() / max(len(errors), 1),
            "quantization": self.quantization_weight * to_codes.mean(),
        }


class SDC(HashingModule):
    """Train a network with SDC's loss.

    Args:
        **settings: Arguments of ``HashingModule``.
    """

    supervision = "none"
    compares_features = True

    def losses(self, u: Float[Tensor, "n bits"], batch: Batch) -> dict[str, Tensor]:
        """Return the calibration term and the quantization error."""
        return self.loss(u, batch.inputs)


@functools.lru_cache(maxsize=4)
def quantiles(count: int, alpha: float, beta: float) -> Float[np.ndarray, " count"]:
    """Return evenly spread quantiles of a Beta distribution that is stretched to [-1, 1], in ascending order."""
    levels = (np.arange(count) + 0.5) / count
    return 2 * scipy.stats.beta.ppf(levels, alpha, beta) - 1

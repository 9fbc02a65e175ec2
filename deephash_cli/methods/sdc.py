"""SDC: wip (Ng et al., BMVC 2023)."""

import functools

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.parts.cosines import pair_cosines
from deephash_cli.methods.parts.losses import signs


class SDCLoss(nn.Module):
    """Distance of the cosines from the quantiles of a Beta distribution, and quantization error.

    Args:
        alpha: First parameter of the Beta distribution.
        beta: Second parameter of the Beta distribution.
        lowest: Smallest target of a cosine; lower quantiles are raised to it.
        quantization_weight: Weight lambda of the quantization error.
    """

    def __init__(self, alpha: float, beta: float, lowest: float, quantization_weight: float):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.lowest = lowest
        self.quantization_weight = quantization_weight

    def forward(self, u: Float[Tensor, "n bits"], features: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """Return the loss terms."""
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
    """Train a network with SDC's loss."""

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

"""Cosines of the pairs of a batch, which unsupervised methods compare between codes and features."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def pair_cosines(x: Float[Tensor, "n d"]) -> Float[Tensor, " pairs"]:
    """Return the cosine of each pair of two different rows, each pair once; 0 for a pair with a row of zeros."""
    unit = normalize(x, eps=1e-6)
    first, second = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    return (unit @ unit.T)[first, second]


def cosine_error(codes: Float[Tensor, "n bits"], features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the mean over pairs of ``(cos(b_i, b_j) - cos(f_i, f_j))^2``; 0 for a single row.

    This is the unsupervised loss of GreedyHash (Su et al., NeurIPS 2018), also used by Bi-half Net.
    """
    errors = (pair_cosines(codes) - pair_cosines(features)).square()
    return errors.sum() / max(len(errors), 1)

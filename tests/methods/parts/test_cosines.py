"""Cosines of the pairs of a batch, against loops."""

import pytest
import torch
from fitting import cosine

from deephash_cli.methods.parts.cosines import cosine_error, pair_cosines


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_each_pair_of_two_rows_is_there_once():
    x = normal(5, 3)
    expected = [cosine(x[i], x[j]) for i in range(5) for j in range(i + 1, 5)]
    assert pair_cosines(x).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_error_is_the_mean_over_pairs():
    codes, features = normal(5, 3), normal(5, 7, seed=1)
    errors = [
        (cosine(codes[i], codes[j]) - cosine(features[i], features[j])) ** 2 for i in range(5) for j in range(i + 1, 5)
    ]
    assert cosine_error(codes, features).item() == pytest.approx(sum(errors) / 10, rel=1e-12)


def test_a_single_row_and_rows_of_zeros_have_a_finite_error_and_gradient():
    # The mean over no pairs is NaN, and the cosine with a row of zeros is 0 / 0.
    for x in (normal(1, 3), torch.zeros(4, 3)):
        x.requires_grad_()
        error = cosine_error(x, torch.zeros(len(x), 2).to(x))
        error.backward()
        assert error.item() == 0
        assert torch.isfinite(x.grad).all()

"""Codes are binary and their gradient is that of the outputs."""

import torch

from deephash_cli.methods.parts.straight_through import straight_through


def test_values_are_codes_and_the_gradient_passes_unchanged():
    u = torch.tensor([[0.3, -2.0, 0.0]], requires_grad=True)
    b = straight_through(u)
    (b * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert b.tolist() == [[1, -1, 1]]
    assert u.grad.tolist() == [[1, 2, 3]]


def test_other_codes_than_the_signs_pass_the_gradient_too():
    u = torch.tensor([0.1, 0.2], requires_grad=True)
    b = straight_through(u, torch.tensor([-1.0, 1.0]))
    (3 * b).sum().backward()
    assert b.tolist() == [-1, 1]
    assert u.grad.tolist() == [3, 3]

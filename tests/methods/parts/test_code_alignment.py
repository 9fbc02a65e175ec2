"""The loss of CroVCA against slow loops written from the paper, finite differences, and common mistakes."""

import math

import numpy as np
import pytest
import torch

from deephash_cli.methods.parts.code_alignment import CodeAlignmentLoss, coding_rate

BITS = 4
# Output 0 has two partners, output 3 has none, and outputs 1 and 2 predict each other.
PARTNERS = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)


def outputs(n=4, seed=0, scale=1.0):
    return scale * torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_alignment(u, partners):
    """Return the cross-entropy of each bit of each partner, as a mean over outputs that have one."""
    means = []
    for row, mine in zip(u.tolist(), partners.tolist(), strict=True):
        entropies = []
        for j in (j for j, is_partner in enumerate(mine) if is_partner):
            for own, other in zip(row, u[j].tolist(), strict=True):
                p = 1 / (1 + math.exp(-own))
                entropies.append(-math.log(p) if other >= 0 else -math.log(1 - p))
        if entropies:
            means.append(sum(entropies) / len(entropies))
    return sum(means) / len(means)


def paper_rate(u, epsilon):
    """Return the coding rate of rows of length 1, from the other Gram matrix, which has the same determinant."""
    z = u.numpy() / np.linalg.norm(u.numpy(), axis=1, keepdims=True)
    return 0.5 * np.log(np.linalg.det(np.eye(len(z)) + BITS / (len(z) * epsilon**2) * z @ z.T))


def test_the_loss_is_that_of_the_loops():
    u = outputs()
    terms = CodeAlignmentLoss(0.7, 0.4)(u, PARTNERS)
    assert terms["alignment"].item() == pytest.approx(paper_alignment(u, PARTNERS), rel=1e-10)
    assert terms["rate"].item() == pytest.approx(-0.7 / BITS * paper_rate(u, 0.4), rel=1e-10)


def test_the_gradient_is_that_of_finite_differences():
    loss, u = CodeAlignmentLoss(0.7, 0.4), outputs().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: torch.stack(list(loss(v, PARTNERS).values())).sum(), (u,))


def test_bits_that_are_predicted_have_no_gradient():
    # Predictions that learn and targets that come to meet them have all images at the same code in a few steps.
    u = outputs().requires_grad_()
    CodeAlignmentLoss(0.0, 0.5)(u, torch.eye(4, dtype=torch.float64)[[1, 0, 2, 3]].triu())["alignment"].backward()
    assert (u.grad[0] != 0).all()  # it predicts output 1
    assert (u.grad[1] == 0).all()  # it is predicted only


def test_the_rate_is_largest_for_outputs_in_all_directions_and_small_for_one():
    spread, same = torch.eye(BITS).double().repeat(5, 1), torch.ones(20, BITS).double()
    assert coding_rate(spread, 0.5).item() == pytest.approx(BITS / 2 * math.log(1 + 1 / 0.5**2), rel=1e-12)
    assert coding_rate(same, 0.5).item() == pytest.approx(0.5 * math.log(1 + BITS / 0.5**2), rel=1e-12)
    assert coding_rate(outputs(20), 0.5) < coding_rate(spread, 0.5)


def test_the_rate_does_not_depend_on_the_number_or_the_length_of_outputs():
    # Without lengths of 1, the rate could grow without any change of a code.
    u = outputs()
    assert torch.allclose(coding_rate(u.repeat(3, 1), 0.5), coding_rate(u, 0.5))
    assert torch.allclose(coding_rate(100 * u, 0.5), coding_rate(u, 0.5))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("partners", [PARTNERS, 0 * PARTNERS, 1 - torch.eye(4)], ids=["some", "none", "all"])
def test_degenerate_batches_have_a_finite_value_and_gradient(partners, scale):
    u = outputs(scale=scale).float().requires_grad_()
    total = sum(CodeAlignmentLoss(1.0, 0.5)(u, partners.float()).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_an_epsilon_of_zero_is_refused():
    with pytest.raises(ValueError, match="epsilon must be above 0, got 0"):
        CodeAlignmentLoss(1.0, 0)

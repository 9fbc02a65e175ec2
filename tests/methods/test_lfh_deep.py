"""LFH's objective on a network, against slow loops written from the paper and finite differences."""

import math

import pytest
import torch
from fitting import is_nearer_to_similar, learned, network_on, opposite_clusters

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.lfh_deep import LFHDeep, LFHDeepLoss
from deephash_cli.methods.parts.losses import similar

BITS = 6
SINGLE = torch.eye(4)[[0, 1, 2, 0, 3, 1, 0, 2, 2, 0, 1]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0]]).float()
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def outputs(n, seed=0, scale=1.0):
    return scale * torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_objective(u, others, labels, other_labels, beta):
    """Return the paper's -L over the pairs (i, j), and the prior of each i. Sums, as printed."""
    pairs = prior = 0.0
    for row, mine in zip(u.tolist(), labels.tolist(), strict=True):
        for column, theirs in zip(others.tolist(), other_labels.tolist(), strict=True):
            s = any(a == 1 and b == 1 for a, b in zip(mine, theirs, strict=True))
            t = sum(a * b for a, b in zip(row, column, strict=True)) / 2
            pairs -= s * t - math.log(1 + math.exp(t))
        prior += sum(value**2 for value in row) / (2 * beta)
    return pairs, prior


def paper_gradient(u, others, labels, other_labels, beta):
    """Return -dL/du_i over ordered pairs: each pair counts as (i, j) and (j, i), and Theta has the factor 1/2."""
    rows = []
    for i in range(len(u)):
        row = u[i] / beta
        for j in range(len(others)):
            s = float(labels[i] @ other_labels[j] > 0)
            row = row + (1 / (1 + math.exp(-float(u[i] @ others[j]) / 2)) - s) * others[j]
        rows.append(row)
    return torch.stack(rows)


def module(labels, prior_weight=0.1, hidden_units=0):
    torch.manual_seed(0)
    network = network_on(8, BITS, hidden_units)
    return learned(LFHDeep, network, LFHDeepLoss(prior_weight), labels, buffer_init="zeros")


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    u, others, beta = outputs(4), outputs(len(labels), seed=1), 0.7
    terms = LFHDeepLoss(1 / (4 * len(labels) * beta))(u, others, similar(labels[:4], labels))
    pairs, prior = paper_objective(u, others, labels[:4], labels, beta)
    assert terms["similarity"].item() == pytest.approx(pairs / (4 * len(labels)), rel=1e-10)
    # Half of the pair gradient flows, so the prior has half the weight too.
    assert terms["prior"].item() == pytest.approx(prior / (4 * len(labels) * 2), rel=1e-10)


@BOTH
def test_the_gradient_is_that_of_the_paper_over_2_n_batch(labels):
    u, others, beta = outputs(4).requires_grad_(), outputs(len(labels), seed=1), 0.7
    loss = LFHDeepLoss(1 / (4 * len(labels) * beta))
    sum(loss(u, others, similar(labels[:4], labels)).values()).backward()
    expected = paper_gradient(u.detach(), others, labels[:4], labels, beta) / (2 * len(labels) * 4)
    assert torch.allclose(u.grad, expected, rtol=1e-10, atol=1e-14)


def test_the_gradient_is_that_of_finite_differences():
    others, pairs, loss = outputs(len(MULTI), seed=1), similar(MULTI[:5], MULTI), LFHDeepLoss(0.3)
    assert torch.autograd.gradcheck(lambda u: sum(loss(u, others, pairs).values()), (outputs(5).requires_grad_(),))


@pytest.mark.parametrize("pairs", [1.0, 0.0], ids=["all similar", "none similar"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(pairs, scale):
    # log(1 + exp(t)) is inf from t = 89 on.
    u = outputs(4, scale=scale).float().requires_grad_()
    total = sum(LFHDeepLoss(0.1)(u, outputs(7, seed=1, scale=scale).float(), torch.full((4, 7), pairs)).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="prior_weight must be at least 0, got -1"):
        LFHDeepLoss(-1.0)


@BOTH
def test_the_batch_is_in_the_buffer_before_theta_is_computed(labels):
    lfh, rows = module(labels), [6, 2, 5]
    old = outputs(len(labels), seed=3).float()
    lfh.u_buffer.copy_(old)
    u = outputs(3).float().requires_grad_()
    terms = lfh.losses(u, Batch(torch.zeros(3, 8), labels[rows], torch.tensor(rows)))
    old[rows] = u.detach()
    assert torch.equal(lfh.u_buffer, old)
    assert not lfh.u_buffer.requires_grad
    pairs, _ = paper_objective(u.detach(), old, labels[rows], labels, 1.0)
    assert terms["similarity"].item() == pytest.approx(pairs / (3 * len(labels)), rel=1e-5)


def test_the_buffer_is_in_the_checkpoint():
    # Otherwise the buffer would be zero after a resume, and the resumed run would differ.
    assert "u_buffer" in module(SINGLE).state_dict()


def test_clusters_opposite_each_other_get_near_codes_if_they_share_a_label():
    x, labels = opposite_clusters()
    lfh, everything = module(labels, hidden_units=32), Batch(x, labels, torch.arange(60))
    optimizer = torch.optim.Adam(lfh.network.new_layers(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        sum(lfh.losses(lfh.network(x), everything).values()).backward()
        optimizer.step()
    assert all(is_nearer_to_similar(lfh.network(x) >= 0, labels))

"""CIBHash against slow loops written from the paper, finite differences, and common mistakes."""

import math

import numpy as np
import pytest
import torch
from fitting import encode, learned, network_on

from deephash_cli.data.augment import Views
from deephash_cli.data.loaders import Batch
from deephash_cli.methods.cibhash import CIBHash, CIBHashLoss

BITS = 6


def outputs(n, seed=0, scale=1.0):
    return scale * torch.randn(n, 2, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def paper_objective(u, codes, temperature):
    """Return the contrastive loss and the divergence, both as means over images and views."""
    contrast = kl = 0.0
    for i, (pair, of_pair) in enumerate(zip(codes.tolist(), u.tolist(), strict=True)):
        for v, w in ((0, 1), (1, 0)):
            own = math.exp(cosine(pair[v], pair[w]) / temperature)
            rest = [view for j, other in enumerate(codes.tolist()) if j != i for view in other]
            contrast -= math.log(own / (own + sum(math.exp(cosine(pair[v], view) / temperature) for view in rest)))
            for a, b in zip(of_pair[v], of_pair[w], strict=True):
                p, q = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
                kl += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return contrast / (2 * len(codes)), kl / (2 * len(codes))


def module(n=12, stochastic=True, loss=None, **settings):
    torch.manual_seed(0)
    loss = loss or CIBHashLoss(0.3, 0.001)
    return learned(CIBHash, network_on(8, BITS), loss, torch.zeros(n, 3), stochastic=stochastic, **settings)


def batch_of(n):
    return Batch(torch.zeros(n, 8), torch.zeros(n, 3), torch.arange(n))


class Spy(torch.nn.Module):
    """A loss that records its arguments."""

    def forward(self, u, codes):
        self.codes = codes
        return {"contrast": codes.sum()}


# the loss


def test_the_loss_is_that_of_the_loops():
    # The similarity of a view with itself is the largest of all: in the denominator it would make the loss a constant.
    u, codes = outputs(5), outputs(5, seed=1)
    terms = CIBHashLoss(0.3, 0.2)(u, codes)
    contrast, kl = paper_objective(u, codes, 0.3)
    assert terms["contrast"].item() == pytest.approx(contrast, rel=1e-10)
    assert terms["divergence"].item() == pytest.approx(0.2 * kl, rel=1e-10)


def test_the_gradient_is_that_of_finite_differences():
    u, codes, loss = outputs(4).requires_grad_(), outputs(4, seed=1).requires_grad_(), CIBHashLoss(0.3, 0.2)
    assert torch.autograd.gradcheck(lambda v, b: torch.stack(list(loss(v, b).values())).sum(), (u, codes))


def test_certain_bits_that_disagree_have_a_finite_divergence():
    # log(p / q) of probabilities that were rounded to 1 and 0 is infinite; with log(q + 1e-8) its gradient is lost.
    u = torch.tensor([[[200.0], [-200.0]]], requires_grad=True)
    term = CIBHashLoss(0.3, 1.0)(u, torch.ones(1, 2, 1))["divergence"]
    term.backward()
    assert term.item() == pytest.approx(200)
    assert u.grad.flatten().tolist() == [0.5, -0.5]


def test_views_that_agree_have_no_divergence_and_less_contrast_than_others():
    u = outputs(5)
    u[:, 1] = u[:, 0]
    same, mixed = (CIBHashLoss(0.3, 1.0)(v, v) for v in (u, torch.stack([u[:, 0], u[:, 1].roll(1, dims=0)], dim=1)))
    assert same["divergence"].item() == pytest.approx(0, abs=1e-12)
    assert same["contrast"] < mixed["contrast"]
    assert mixed["divergence"] > 0


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(n, scale):
    # A single image has no other to be told apart from, and -inf on the diagonal must not reach the gradient.
    u = outputs(n, scale=scale).float().requires_grad_()
    total = sum(module().losses(u, batch_of(n)).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


# the codes


def test_codes_have_two_values_and_the_probability_of_their_bits():
    cibhash, n = module(loss=Spy()), 4000
    u = torch.tensor([-1.0, 0.0, 2.0, 1e4, -1e4, 0.5]).repeat(n, 2, 1)
    torch.manual_seed(0)
    cibhash.losses(u, batch_of(n))
    codes = cibhash.loss.codes
    assert set(codes.unique().tolist()) == {-1, 1}
    shares = (codes > 0).float().mean(dim=(0, 1))
    assert torch.allclose(shares, u[0, 0].sigmoid(), atol=0.03)  # five standard deviations
    assert not torch.equal(codes[:, 0], codes[:, 1])  # each view has draws of its own


def test_the_gradient_of_a_bit_is_that_of_its_expectation():
    # The sign alone has a gradient of 0 everywhere, and nothing would be learned.
    cibhash, u = module(loss=Spy()), outputs(3).float().requires_grad_()
    cibhash.losses(u, batch_of(3))["contrast"].backward()
    p = u.detach().sigmoid()
    assert torch.allclose(u.grad, 2 * p * (1 - p))


def test_without_draws_codes_are_the_signs():
    cibhash, u = module(stochastic=False, loss=Spy()), outputs(3).float()
    cibhash.losses(u, batch_of(3))
    assert torch.equal(cibhash.loss.codes > 0, u > 0)


def test_the_same_step_draws_the_same_bits():
    # Otherwise a resumed run would differ from an uninterrupted one.
    cibhash, u, losses = module(), outputs(5).float(), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(cibhash.losses(u, batch_of(5))["contrast"].item())
    assert losses[0] == losses[1] != losses[2]


def test_training_brings_two_views_of_a_vector_nearer_than_those_of_two_vectors():
    x, same = torch.randn(40, 8, generator=torch.Generator().manual_seed(3)), torch.nn.Identity()
    cibhash = module(40, augment=Views(same, same, [0.3, 0.3]))
    cibhash.trainer = type("Trainer", (), {"global_step": 0})()
    optimizer = torch.optim.Adam(cibhash.network.parameters(), 0.05)

    def distance_of_own_views():
        torch.manual_seed(1)
        first, second = (encode(cibhash, view) > 0 for view in cibhash.augment(x.repeat(20, 1)))
        others = (first != np.roll(second, 1, axis=0)).mean()
        return (first != second).mean() / others

    before = distance_of_own_views()
    for step in range(80):
        cibhash.trainer.global_step = step
        optimizer.zero_grad()
        cibhash.training_step(Batch(x, torch.zeros(40, 3), torch.arange(40)), 0).backward()
        optimizer.step()
    assert distance_of_own_views() < before


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        CIBHashLoss(0, 0.001)

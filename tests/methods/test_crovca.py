"""CroVCA: which outputs are partners, and what it learns. The loss is tested in parts/test_code_alignment.py."""

import pytest
import torch
from fitting import encode, learned, network_on
from torch import nn

from deephash_cli.data.augment import Views
from deephash_cli.data.loaders import Batch
from deephash_cli.methods.crovca import CroVCA
from deephash_cli.methods.parts.code_alignment import CodeAlignmentLoss

BITS = 8


class Spy(nn.Module):
    """A loss that records its arguments."""

    def forward(self, u, partners):
        self.u, self.partners = u, partners
        return {"alignment": u.sum()}


def module(n, loss=None, **settings):
    torch.manual_seed(0)
    return learned(
        CroVCA,
        network_on(6, BITS, output_norm=True),
        loss or CodeAlignmentLoss(1.0, 0.5),
        torch.zeros(n, 3),
        **settings,
    )


def batch_of(x):
    return Batch(x, torch.zeros(len(x), 3), torch.arange(len(x)))


def test_the_partner_of_a_view_is_the_other_view_of_its_image():
    crovca, u = module(3, Spy()), torch.randn(3, 2, BITS)
    crovca.losses(u, batch_of(torch.zeros(3, 6)))
    assert torch.equal(crovca.loss.u, torch.cat([u[:, 0], u[:, 1]]))
    predicted = (crovca.loss.partners @ crovca.loss.u).reshape(2, 3, BITS)
    assert torch.equal(predicted[0], u[:, 1])
    assert torch.equal(predicted[1], u[:, 0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_a_single_image_has_a_finite_loss_and_gradient(scale):
    u = (scale * torch.randn(1, 2, BITS)).requires_grad_()
    total = sum(module(1).losses(u, batch_of(torch.zeros(1, 6))).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def trained(x, rate_weight):
    """Return CroVCA after 100 steps, and the share of bits in which two views disagree, before and after."""
    same = nn.Identity()
    crovca = module(len(x), CodeAlignmentLoss(rate_weight, 0.5), augment=Views(same, same, [0.2, 0.2]))
    crovca.trainer = type("Trainer", (), {"global_step": 0})()
    optimizer = torch.optim.Adam(crovca.network.parameters(), 0.05)

    def disagreement():
        crovca.eval()
        torch.manual_seed(2)
        first, second = (encode(crovca, view) > 0 for view in crovca.augment(x.repeat(20, 1)))
        crovca.train()
        return (first != second).mean()

    before = disagreement()
    for step in range(100):
        crovca.trainer.global_step = step
        optimizer.zero_grad()
        crovca.training_step(batch_of(x), 0).backward()
        optimizer.step()
    return crovca.eval(), before, disagreement()


def test_training_aligns_views_and_the_rate_keeps_bits_different():
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
    correlations = []
    for rate_weight in (0.0, 1.0):
        crovca, before, after = trained(x, rate_weight)
        assert after < before
        correlations.append(torch.from_numpy(encode(crovca, x)).T.corrcoef().abs().mean())
    assert correlations[1] < correlations[0]  # without the rate, bits come to be the same or opposite ones

"""CroVCA with labels: which images are partners, and what it learns; the loss: parts/test_code_alignment.py."""

import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.crovca_supervised import CroVCASupervised
from deephash_cli.methods.parts.code_alignment import CodeAlignmentLoss

BITS = 8
MULTI = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]])


class Spy(nn.Module):
    """A loss that records its arguments."""

    def forward(self, u, partners):
        self.partners = partners
        return {"alignment": u.sum()}


def module(labels, loss=None, bits=BITS):
    network = network_on(8, bits, output_norm=True)
    return learned(CroVCASupervised, network, loss or CodeAlignmentLoss(0.3, 0.5), labels)


def batch_of(labels):
    return Batch(torch.zeros(len(labels), 8), labels, torch.arange(len(labels)))


def test_partners_share_a_label():
    # An image would predict its own bits best of all and learn nothing from its class. Two images without labels have
    # the same labels, but share none.
    crovca = module(MULTI, Spy())
    crovca.losses(torch.randn(6, BITS), batch_of(MULTI))
    pairs = {(i, j) for i, j in crovca.loss.partners.nonzero().tolist()}
    assert pairs == {(0, 1), (1, 0), (0, 3), (3, 0)}


@pytest.mark.parametrize(
    "labels", [MULTI, 0 * MULTI, 0 * MULTI + 1, torch.eye(6)], ids=["some", "none", "all", "apart"]
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    u = (scale * torch.randn(6, BITS)).requires_grad_()
    total = sum(module(MULTI).losses(u, batch_of(labels)).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_training_brings_images_of_a_class_together():
    torch.manual_seed(0)
    labels = torch.eye(4).repeat_interleave(30, dim=0)
    crovca = module(labels, bits=12)
    layer = nn.Sequential(nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12, affine=False))
    assert accuracy_on_clusters(crovca, layer) > 0.9

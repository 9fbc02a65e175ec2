"""HashNet against slow loops written from the paper, finite differences, and mistakes of its re-implementations."""

import math
from types import SimpleNamespace

import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.hashnet import HashNet, HashNetLoss

BITS = 6
SINGLE = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def outputs(n, seed=0, scale=1.0):
    return scale * torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_objective(z, labels, alpha):
    """Return the paper's objective divided by the number of pairs; ``alpha`` is the paper's."""
    kinds = {0: [], 1: []}
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                mine, its = ({c for c, has in enumerate(row.tolist()) if has} for row in (labels[i], labels[j]))
                s = int(bool(mine & its))
                product = sum(a * b for a, b in zip(z[i].tolist(), z[j].tolist(), strict=True))
                c = len(mine & its) / len(mine | its) if s else 1
                kinds[s].append(c * (math.log(1 + math.exp(alpha * product)) - alpha * s * product))
    count = len(kinds[0]) + len(kinds[1])
    return sum(count / len(kind) * value for kind in kinds.values() for value in kind) / count


def module(labels, growth=50.0, power=0.5):
    torch.manual_seed(0)
    return learned(HashNet, network_on(8, BITS), HashNetLoss(10.0), labels.float(), growth=growth, power=power)


def at_step(hashnet, step, steps):
    """Let a method believe that it is at this step of a training."""
    hashnet._trainer = SimpleNamespace(global_step=step, estimated_stepping_batches=steps)
    return hashnet


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    z = torch.tanh(outputs(7))
    term = HashNetLoss(10.0)(z, labels)["similarity"]
    assert term.item() == pytest.approx(paper_objective(z, labels, 10 / BITS), rel=1e-10)


@BOTH
def test_the_gradient_is_that_of_finite_differences(labels):
    z = torch.tanh(outputs(7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: HashNetLoss(10.0)(v, labels)["similarity"], (z,))


def test_a_rare_similar_pair_weighs_as_much_as_all_others_together():
    # Without the weights, 28 dissimilar pairs hide one similar pair.
    z = torch.zeros(8, BITS)
    labels = torch.eye(7)[[0, 0, 1, 2, 3, 4, 5, 6]]
    assert HashNetLoss(10.0)(z, labels)["similarity"].item() == pytest.approx(2 * math.log(2))
    z[:2] = 1
    expected = math.log1p(math.exp(-10)) + math.log(2)
    assert HashNetLoss(10.0)(z, labels)["similarity"].item() == pytest.approx(expected, rel=1e-6)


def test_alpha_is_relative_to_the_code_length():
    # With the same alpha for every length, as in some public versions, long codes saturate the likelihood.
    for bits in (4, 64):
        code = torch.ones(2, bits)
        term = HashNetLoss(10.0)(code, torch.eye(2))["similarity"]
        assert term.item() == pytest.approx(math.log1p(math.exp(10)))


def test_pairs_with_some_labels_in_common_weigh_less():
    # With s_ij alone, an image with a third of another one's labels would be as similar as one with all of them.
    z = torch.zeros(2, BITS)
    terms = [HashNetLoss(10.0)(z, torch.tensor([[1.0, 1, 1], other]))["similarity"] for other in ([1, 0, 0], [1, 1, 1])]
    assert terms[0].item() == pytest.approx(math.log(2) / 3)
    assert terms[1].item() == pytest.approx(math.log(2))


def test_an_image_does_not_pair_with_itself():
    z = torch.tensor([[0.5, 0.5], [0.5, -0.5]], requires_grad=True)  # <z_0, z_1> = 0
    HashNetLoss(2.0)(z, torch.eye(2))["similarity"].backward()
    assert torch.allclose(z.grad, z.detach().flip(0) / 2)


@pytest.mark.parametrize("labels", [torch.ones(4, 1), torch.eye(4), torch.zeros(4, 3)], ids=["same", "other", "none"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    # Without pairs of one kind, |S| / |S1| is a division by 0; log(1 + exp(x)) overflows at 89.
    hashnet, u = module(SINGLE), outputs(4, scale=scale).float().requires_grad_()
    at_step(hashnet, 99, 100)
    (term,) = hashnet.losses(u, Batch(torch.zeros(4, 8), labels, torch.arange(4))).values()
    term.backward()
    assert 0 < term.item() < 20
    assert torch.isfinite(u.grad).all()
    assert HashNetLoss(1e4)(torch.ones(4, BITS), torch.eye(4))["similarity"].item() == pytest.approx(1e4)


def test_beta_rises_from_1_with_the_share_of_the_steps_that_are_done():
    # A beta from a counter of the object's own would begin at 1 again when a run is resumed.
    hashnet = module(SINGLE)
    assert hashnet.beta() == 1
    assert [at_step(hashnet, step, 10_000).beta() for step in (0, 200, 5_000, 10_000)] == pytest.approx(
        [1, 2**0.5, 26**0.5, 51**0.5]  # (1 + 0.005 step)^0.5, as in the authors' code
    )
    assert at_step(module(SINGLE), 600, 1200).beta() == pytest.approx(26**0.5)
    assert at_step(module(SINGLE, growth=0), 600, 1200).beta() == 1


@BOTH
def test_the_module_relaxes_with_tanh_of_beta_u(labels):
    hashnet, rows, u = at_step(module(labels), 24, 100), [5, 2, 0, 3], outputs(4, scale=0.3)
    batch = Batch(torch.zeros(4, 8), labels[rows], torch.tensor(rows))
    expected = paper_objective(torch.tanh(13**0.5 * u), labels[rows], 10 / BITS)
    assert hashnet.losses(u, batch)["similarity"].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("setting", [{"growth": -1.0}, {"power": -1.0}])
def test_a_beta_that_falls_is_refused(setting):
    with pytest.raises(ValueError, match=r"must be at least 0, got -1\.0"):
        module(SINGLE, **setting)


def test_an_alpha_of_zero_is_refused():
    with pytest.raises(ValueError, match="alpha must be above 0, got 0"):
        HashNetLoss(0.0)


def test_codes_of_clustered_data_find_their_cluster():
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0))
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25

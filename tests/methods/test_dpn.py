"""DPN against slow loops written from the paper, finite differences, and common mistakes of its re-implementations."""

import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.dpn import DPN, DPNLoss
from deephash_cli.methods.parts.codebooks import smallest_distance

BITS = 6
SINGLE = torch.eye(4)[[0, 1, 2, 0, 3, 1, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]]).float()
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def outputs(n, bits=BITS, seed=0, scale=1.0):
    return scale * torch.randn(n, bits, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def module(labels, targets="random", bits=BITS, seed=0):
    torch.manual_seed(0)
    return learned(DPN, network_on(8, bits), DPNLoss(1.0), labels, seed=seed, targets=targets)


def loss_of(dpn, u, labels):
    return dpn.losses(u, Batch(torch.zeros(len(u), 8), labels, torch.arange(len(u))))["polarization"]


def paper_objective(u, labels, codebook, ties, margin=1.0):
    """Return the paper's loss divided by the number of outputs with a target."""
    values = []
    for row, own in zip(u.tolist(), labels.tolist(), strict=True):
        classes = [c for c, has in enumerate(own) if has]
        for k, value in enumerate(row if classes else []):
            votes = sum(codebook[c, k].item() for c in classes)
            target = ties[0, k].item() if votes == 0 else votes / abs(votes)
            values.append(max(margin - value * target, 0))
    return sum(values) / len(values)


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    dpn, u = module(labels), outputs(7)
    expected = paper_objective(u, labels, dpn.codebook, dpn.ties)
    assert loss_of(dpn, u, labels).item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_is_that_of_finite_differences():
    u = outputs(7).requires_grad_()
    dpn = module(MULTI)
    assert torch.autograd.gradcheck(lambda v: loss_of(dpn, v, MULTI), (u,))


def test_outputs_beyond_the_margin_on_the_right_side_have_no_loss_and_others_do():
    # Without the hinge, as with a squared distance to the target, outputs that are right by far would be pulled back.
    targets = torch.ones(1, 4)
    u = torch.tensor([[5.0, 1.0, 0.5, -2.0]], requires_grad=True)
    term = DPNLoss(1.0)(u, targets)["polarization"]
    term.backward()
    assert term.item() == pytest.approx((0 + 0 + 0.5 + 3) / 4)
    assert u.grad[0, 0] == 0
    assert u.grad[0, 2:].tolist() == pytest.approx([-0.25, -0.25])


def test_several_labels_have_the_majority_of_their_targets_and_not_that_of_one_class():
    # Taking one of several labels by argmax, as public versions of such methods do, hides the others.
    dpn = module(torch.eye(3).repeat(2, 1), bits=40)
    votes = dpn.codebook.sum(dim=0)
    target = torch.where(votes > 0, 1.0, -1.0)
    assert loss_of(dpn, target[None], torch.ones(1, 3)).item() == 0
    assert loss_of(dpn, -target[None], torch.ones(1, 3)).item() == 2


def test_images_with_the_same_labels_have_the_same_target():
    # With ties broken for each image or each step, two images with the same labels would be pulled apart.
    dpn = module(torch.eye(2).repeat(2, 1), bits=40)
    assert (dpn.codebook.sum(dim=0) == 0).any()
    u = outputs(1, bits=40).repeat(2, 1).requires_grad_()
    loss_of(dpn, u, torch.ones(2, 2)).backward()
    assert torch.equal(u.grad[0], u.grad[1])


def test_images_without_labels_do_not_count():
    # With max(m - 0, 0) = m each, they would hide how far the others are.
    dpn, u = module(MULTI), outputs(7).requires_grad_()
    labelled = [0, 1, 2, 3, 5, 6]
    term = loss_of(dpn, u, MULTI)
    term.backward()
    assert term.item() == pytest.approx(loss_of(dpn, u[labelled], MULTI[labelled]).item())
    assert not u.grad[4].any()


@pytest.mark.parametrize("labels", [torch.eye(4)[[0] * 4], torch.eye(4), torch.zeros(4, 4)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    u = outputs(4, scale=scale).float().requires_grad_()
    term = loss_of(module(SINGLE), u, labels)
    term.backward()
    assert torch.isfinite(term)
    assert torch.isfinite(u.grad).all()
    assert (term > 0) == labels.any()


@pytest.mark.parametrize("bits", [12, 17, 24, 48])
@pytest.mark.parametrize("targets", ["random", "hadamard", "search"])
def test_targets_exist_for_every_length(bits, targets):
    # Sylvester's construction alone stops at 12, 24 and 48 bits.
    labels = torch.eye(10)[torch.arange(20) % 10]
    dpn = module(labels, targets=targets, bits=bits)
    assert dpn.codebook.shape == (10, bits)
    assert (dpn.codebook.abs() == 1).all()
    if targets == "hadamard" and bits % 4 == 0:
        assert smallest_distance(dpn.codebook) == bits / 2


def test_targets_are_state_and_depend_on_the_seed():
    # Targets that are drawn again on a resume would be those of other classes.
    first, again, other = (module(SINGLE, bits=32, seed=seed) for seed in (3, 3, 4))
    assert {"codebook", "ties"} <= first.state_dict().keys()
    assert torch.equal(first.codebook, again.codebook)
    assert not torch.equal(first.codebook, other.codebook)


def test_two_classes_with_the_same_target_are_told(capsys):
    module(torch.eye(6).repeat(2, 1), bits=2)
    assert "two of 6 classes have the same target of 2 bits" in capsys.readouterr().err


def test_an_unknown_kind_of_targets_and_a_margin_of_zero_are_refused():
    with pytest.raises(ValueError, match="hadamard, search or random, got 'gaussian'"):
        module(SINGLE, targets="gaussian")
    with pytest.raises(ValueError, match="margin must be above 0, got 0"):
        DPNLoss(0.0)


def test_codes_of_clustered_data_find_their_cluster():
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0))
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25

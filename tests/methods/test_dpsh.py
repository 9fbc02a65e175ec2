"""DPSH against slow loops written from the paper, finite differences, and common mistakes of its re-implementations."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from deephash_cli.data.dataset import ImageArray
from deephash_cli.data.loaders import Batch, Rows, train_loader
from deephash_cli.methods.dpsh import DPSH, DPSHLoss
from deephash_cli.methods.parts.losses import similar
from deephash_cli.models import HashingNetwork, SmallCNN
from deephash_cli.schedules import constant

BITS = 6
SINGLE = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1, 0, 2, 2, 0, 1]]
MULTI = torch.tensor(
    [
        [1, 1, 0],
        [0, 1, 0],
        [0, 0, 1],
        [1, 0, 1],
        [0, 0, 0],
        [1, 1, 1],
        [0, 1, 1],
        [1, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
        [1, 0, 0],
    ],
    dtype=torch.float64,
)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def outputs(n, seed=0, scale=1.0, bits=BITS):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, bits, dtype=torch.float64, generator=generator)


def paper_objective(u, others, labels, other_labels, eta):
    """Return the paper's J: the term over the pairs (i, j), and the quantization of each i. Sums, as printed."""
    pairs = 0.0
    for i in range(len(u)):
        for j in range(len(others)):
            s = any(a == 1 and b == 1 for a, b in zip(labels[i].tolist(), other_labels[j].tolist(), strict=True))
            t = sum(a * b for a, b in zip(u[i].tolist(), others[j].tolist(), strict=True)) / 2
            pairs -= s * t - math.log(1 + math.exp(t))
    quantization = 0.0
    for row in u.tolist():
        for value in row:
            quantization += ((1 if value >= 0 else -1) - value) ** 2
    return pairs, eta * quantization


def paper_gradient(u, others, labels, other_labels, eta):
    """Return dJ/du_i over ordered pairs: each pair counts as (i, j) and as (j, i), and Theta has the factor 1/2."""
    rows = []
    for i in range(len(u)):
        row = np.zeros(u.shape[1])
        for j in range(len(others)):
            s = float((labels[i] * other_labels[j]).sum() > 0)
            t = float(u[i] @ others[j]) / 2
            row += (1 / (1 + math.exp(-t)) - s) * others[j].numpy()
        b = np.where(u[i].numpy() >= 0, 1.0, -1.0)
        rows.append(row + 2 * eta * (u[i].numpy() - b))
    return torch.tensor(np.array(rows))


# the loss


@BOTH
def test_against_a_buffer_the_loss_is_that_of_the_loops(labels):
    u, others, eta = outputs(4), outputs(11, seed=1), 3.0
    terms = DPSHLoss(eta, "paper")(u, others, similar(labels[:4], labels), two_sided=False)
    pairs, quantization = paper_objective(u, others, labels[:4], labels, eta)
    assert terms["similarity"].item() == pytest.approx(pairs / (4 * 11), rel=1e-10)
    # Half of the pair gradient flows, so the quantization has half the weight too.
    assert terms["quantization"].item() == pytest.approx(quantization / (4 * 11 * 2), rel=1e-10)


@BOTH
def test_inside_the_batch_the_loss_is_that_of_the_loops(labels):
    u, eta = outputs(11), 3.0
    terms = DPSHLoss(eta, "paper")(u, u, similar(labels, labels), two_sided=True)
    pairs, quantization = paper_objective(u, u, labels, labels, eta)
    assert terms["similarity"].item() == pytest.approx(pairs / 11**2, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(quantization / 11**2, rel=1e-10)


@BOTH
def test_with_a_buffer_the_gradient_is_that_of_the_paper_over_2_n_batch(labels):
    u, others, eta = outputs(4).requires_grad_(), outputs(11, seed=1), 3.0
    terms = DPSHLoss(eta, "paper")(u, others, similar(labels[:4], labels), two_sided=False)
    sum(terms.values()).backward()
    expected = paper_gradient(u.detach(), others, labels[:4], labels, eta) / (2 * 11 * 4)
    assert torch.allclose(u.grad, expected, rtol=1e-10, atol=1e-14)


@BOTH
def test_inside_the_batch_the_gradient_is_that_of_the_paper_over_n_n(labels):
    u, eta = outputs(11).requires_grad_(), 3.0
    sum(DPSHLoss(eta, "paper")(u, u, similar(labels, labels), two_sided=True).values()).backward()
    expected = paper_gradient(u.detach(), u.detach(), labels, labels, eta) / 11**2
    assert torch.allclose(u.grad, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("convention", ["paper", "mean"])
@pytest.mark.parametrize("two_sided", [True, False])
def test_the_gradient_is_that_of_finite_differences(convention, two_sided):
    u = outputs(5)
    u = (u + 0.1 * torch.where(u >= 0, 1.0, -1.0)).requires_grad_()  # away from 0, where sgn jumps
    others, loss = outputs(11, seed=1), DPSHLoss(3.0, convention)

    def total(v):
        other_side, labels = (v, MULTI[:5]) if two_sided else (others, MULTI)
        return torch.stack(list(loss(v, other_side, similar(MULTI[:5], labels), two_sided).values())).sum()

    assert torch.autograd.gradcheck(total, (u,))


@pytest.mark.parametrize(("bits", "rounded"), [(12, 83), (24, 42), (32, 31), (48, 21), (64, 16)])
def test_eta_of_the_mean_form_is_2_n_eta_over_bits_of_the_paper(bits, rounded):
    # 0.1 in the mean form is not 0.1 in the paper's form: for 5000 images it is 16 to 83, depending on the bits.
    n, eta_mean = 5000, 0.1
    eta = 2 * n * eta_mean / bits
    assert round(eta) == rounded
    u, others, none = outputs(3, bits=bits), torch.zeros(n, bits, dtype=torch.float64), torch.zeros(3, n)
    mean = DPSHLoss(eta_mean, "mean")(u, others, none, two_sided=False)
    paper = DPSHLoss(eta, "paper")(u, others, none, two_sided=False)
    assert mean["quantization"].item() == pytest.approx(paper["quantization"].item(), rel=1e-12)


def test_the_quantization_of_the_mean_form_is_a_mean():
    u = outputs(4)
    terms = DPSHLoss(2.0, "mean")(u, outputs(11, seed=1), torch.zeros(4, 11), two_sided=False)
    assert terms["quantization"].item() == pytest.approx(2 * float(((u.abs() - 1) ** 2).mean()), rel=1e-12)


@pytest.mark.parametrize("pairs", [1, 0], ids=["all similar", "none similar"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("two_sided", [True, False])
def test_degenerate_batches_have_a_finite_value_and_gradient(pairs, scale, two_sided):
    # log(1 + exp(t)) is inf from t = 89 on, so the loss would be inf, then NaN. Clamping t would leave those pairs
    # without a gradient. At u = 0 torch.sign would give b = 0, and the quantization term would hold u there.
    u = outputs(4, scale=scale).float().requires_grad_()
    others = u if two_sided else outputs(7, seed=1, scale=scale).float()
    similar_pairs = torch.full((4, len(others)), float(pairs))
    total = sum(DPSHLoss(1.0, "paper")(u, others, similar_pairs, two_sided).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()
    assert (u.grad != 0).any(dim=1).all()


def test_a_batch_of_identical_rows_is_that_of_the_loops():
    u, labels = outputs(1).repeat(4, 1).requires_grad_(), torch.eye(4, dtype=torch.float64)
    terms = DPSHLoss(1.0, "paper")(u, u, similar(labels, labels), two_sided=True)
    sum(terms.values()).backward()
    pairs, quantization = paper_objective(u.detach(), u.detach(), labels, labels, 1.0)
    assert terms["similarity"].item() == pytest.approx(pairs / 16, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(quantization / 16, rel=1e-10)
    assert torch.allclose(u.grad, u.grad[:1].expand(4, -1))


def test_quantization_at_zero_pulls_to_plus_one():
    # With torch.sign, b would be 0 where u is 0: there would be no pull, and codes would have three values.
    u = torch.zeros(1, 3, requires_grad=True)
    DPSHLoss(1.0, "mean")(u, torch.zeros(1, 3), torch.zeros(1, 1), two_sided=False)["quantization"].backward()
    assert (u.grad < 0).all()


def test_an_unknown_convention_is_refused():
    with pytest.raises((ValueError, TypeError)):
        DPSHLoss(1.0, "sum")


# the module


def module(labels, pairs="buffer", buffer_init="zeros", eta=3.0, hidden_units=0, dropout=0.0, augment=None):
    torch.manual_seed(0)
    network = HashingNetwork(
        SmallCNN(), BITS, 16, [0.5] * 3, [0.5] * 3, frozen=False, frozen_norm=False,
        standardize=False, hidden_units=hidden_units,
        dropout=dropout, channels_last=False, mirrored=False,
    )  # fmt: skip
    return DPSH(
        pairs,
        buffer_init,
        network=network,
        loss=DPSHLoss(eta, "paper"),
        optimizer=lambda groups: torch.optim.SGD(groups, 0.1),
        scheduler=constant,
        backbone_lr=0.1,
        augment=augment or nn.Identity(),
        train_labels=labels.float(),
        seed=0,
    )


def batch_of(labels, rows):
    images = torch.randint(
        0, 256, (len(labels), 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Batch(images[rows], labels.float()[rows], torch.tensor(rows))


@BOTH
def test_the_batch_is_in_the_buffer_before_theta_is_computed(labels):
    # If the batch were written later, the pair (i, i) would use a stale row. In the first epoch that row is zero, so
    # t_ii = 0, and the constant outward pull of s_ii = 1 would be lost.
    dpsh, rows = module(labels), [7, 2, 5]
    old = outputs(11, seed=3).float()
    dpsh.u_buffer.copy_(old)
    u = outputs(3).float().requires_grad_()
    terms = dpsh.losses(u, batch_of(labels, rows))
    filled = old.clone()
    filled[rows] = u.detach()
    assert torch.equal(dpsh.u_buffer, filled)
    pairs, quantization = paper_objective(u.detach(), filled, labels[rows], labels, 3.0)
    assert terms["similarity"].item() == pytest.approx(pairs / 33, rel=1e-5)
    assert terms["quantization"].item() == pytest.approx(quantization / 66, rel=1e-5)


def test_the_buffer_is_detached():
    # If it were attached, row i would also get the gradient of column i: twice the paper's for pairs inside the batch.
    # The second step would fail with "backward through the graph a second time".
    dpsh, rows = module(SINGLE), [7, 2, 5]
    for _ in range(2):
        u = outputs(3).float().requires_grad_()
        sum(dpsh.losses(u, batch_of(SINGLE, rows)).values()).backward()
        assert not dpsh.u_buffer.requires_grad
        expected = paper_gradient(u.detach(), dpsh.u_buffer, SINGLE[rows], SINGLE, 3.0) / 66
        assert torch.allclose(u.grad, expected.float(), rtol=1e-4, atol=1e-6)


def test_pairs_inside_the_batch_have_no_buffer():
    dpsh, rows = module(SINGLE, pairs="batch"), [7, 2, 5]
    assert "u_buffer" not in dpsh.state_dict()
    u = outputs(3).float()
    terms = dpsh.losses(u, batch_of(SINGLE, rows))
    pairs, quantization = paper_objective(u, u, SINGLE[rows], SINGLE[rows], 3.0)
    assert terms["similarity"].item() == pytest.approx(pairs / 9, rel=1e-5)
    assert terms["quantization"].item() == pytest.approx(quantization / 9, rel=1e-5)


def test_the_buffer_is_state_and_the_labels_are_not():
    # If it were not in the checkpoint, the buffer would be zero after a resume, and the resumed run would differ.
    assert "u_buffer" in module(SINGLE).state_dict()
    assert "train_labels" not in module(SINGLE).state_dict()
    assert not module(SINGLE).state_dict()["u_buffer"].any()


def test_the_first_pass_fills_the_buffer_with_plain_outputs_once():
    # With dropout on while encoding, every image has a random code. With augmentation, it has the code of another crop.
    def spoil(images):
        raise AssertionError("the training transform must not be used for encoding")

    augment = nn.Identity()
    augment.forward = spoil
    dpsh = module(SINGLE, buffer_init="first_pass", hidden_units=16, dropout=0.5, augment=augment).train()
    everything = batch_of(SINGLE, list(range(11)))
    loader = train_loader(Rows(ImageArray(everything.inputs.numpy()), SINGLE.float(), np.arange(11)), 4, 0, 0, False)
    dpsh._trainer = SimpleNamespace(global_step=0, train_dataloader=loader, strategy=None)
    before = {name: value.clone() for name, value in dpsh.network.state_dict().items()}
    dpsh.on_train_epoch_start()
    assert dpsh.network.training
    assert all(torch.equal(value, before[name]) for name, value in dpsh.network.state_dict().items())
    dpsh.network.eval()
    assert torch.allclose(dpsh.u_buffer, dpsh.network(everything.inputs), atol=1e-6)
    dpsh.u_buffer.zero_()
    dpsh._trainer.global_step = 3
    dpsh.on_train_epoch_start()
    assert not dpsh.u_buffer.any()


@pytest.mark.parametrize("settings", [{"pairs": "bufer"}, {"buffer_init": "ones"}])
def test_an_unknown_choice_is_refused(settings):
    # If an unknown word silently meant one of the choices, the result would be that of a method nobody asked for.
    with pytest.raises((ValueError, TypeError)):
        module(SINGLE, **settings)

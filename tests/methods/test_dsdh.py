"""DSDH against slow loops written from the paper, finite differences, and common mistakes of its re-implementations."""

import math

import numpy as np
import pytest
import torch
from conftest import QUICK, write_photos
from fitting import is_nearer_to_similar, learned, network_on, opposite_clusters

from deephash_cli.data.loaders import Batch
from deephash_cli.errors import Stopped
from deephash_cli.methods.base import HashingModule
from deephash_cli.methods.dsdh import DSDH, DSDHLoss, ridge_classifier
from deephash_cli.methods.parts.losses import signs, similar
from deephash_cli.training.checkpoints import LAST, read_checkpoint

BITS = 6
SINGLE = torch.eye(4)[[0, 1, 2, 0, 3, 1, 0, 2, 2, 0, 1]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0]]).float()
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def outputs(n, seed=0, scale=1.0):
    return scale * torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_objective(u, others, b, labels, other_labels, eta):
    """Return the two terms of J that depend on u, over the pairs (i, j). Sums, as printed."""
    pairs = quantization = 0.0
    for i in range(len(u)):
        for j in range(len(others)):
            s = any(a == 1 and b == 1 for a, b in zip(labels[i].tolist(), other_labels[j].tolist(), strict=True))
            t = sum(a * b for a, b in zip(u[i].tolist(), others[j].tolist(), strict=True)) / 2
            pairs -= s * t - math.log(1 + math.exp(t))
        quantization += eta * sum((c - v) ** 2 for c, v in zip(b[i].tolist(), u[i].tolist(), strict=True))
    return pairs, quantization


def paper_gradient(u, others, b, labels, other_labels, eta):
    """Return dJ/du_i over ordered pairs: each pair counts as (i, j) and as (j, i), and Theta has the factor 1/2."""
    rows = []
    for i in range(len(u)):
        row = 2 * eta * (u[i] - b[i])
        for j in range(len(others)):
            s = float(labels[i] @ other_labels[j] > 0)
            row = row + (1 / (1 + math.exp(-float(u[i] @ others[j]) / 2)) - s) * others[j]
        rows.append(row)
    return torch.stack(rows)


def discrete_objective(dsdh):
    """Return the terms of J that depend on B and W, divided by mu, computed by loops."""
    y, b, w, u = (tensor.tolist() for tensor in (dsdh.train_labels, dsdh.b_buffer, dsdh.w_buffer, dsdh.u_buffer))
    total = dsdh.ridge_weight * sum(value**2 for row in w for value in row)
    for i in range(len(y)):
        for c in range(len(y[i])):
            total += (y[i][c] - sum(w[k][c] * b[i][k] for k in range(BITS))) ** 2
        total += dsdh.output_weight * sum((b[i][k] - u[i][k]) ** 2 for k in range(BITS))
    return total


def module(
    labels, output_weight=1.0, ridge_weight=0.1, rounds=10, sweeps=10, seed=0, quantization_weight=0.3, hidden_units=0
):
    torch.manual_seed(0)
    return learned(
        DSDH,
        network_on(8, BITS, hidden_units),
        DSDHLoss(quantization_weight),
        labels,
        seed,
        output_weight=output_weight,
        ridge_weight=ridge_weight,
        rounds=rounds,
        sweeps=sweeps,
        buffer_init="zeros",
    )


def batch_of(labels, rows):
    return Batch(torch.zeros(len(rows), 8), labels[rows], torch.tensor(rows))


# the network's loss


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    u, others, b, eta = outputs(4), outputs(len(labels), seed=1), signs(outputs(4, seed=2)), 3.0
    terms = DSDHLoss(eta / (2 * len(labels)))(u, others, similar(labels[:4], labels), b)
    pairs, quantization = paper_objective(u, others, b, labels[:4], labels, eta)
    assert terms["similarity"].item() == pytest.approx(pairs / (4 * len(labels)), rel=1e-10)
    # Half of the pair gradient flows, so the quantization has half the weight too.
    assert terms["quantization"].item() == pytest.approx(quantization / (4 * len(labels) * 2), rel=1e-10)


@BOTH
def test_the_gradient_is_that_of_the_paper_over_2_n_batch(labels):
    u, others, b, eta = outputs(4).requires_grad_(), outputs(len(labels), seed=1), signs(outputs(4, seed=2)), 3.0
    sum(DSDHLoss(eta / (2 * len(labels)))(u, others, similar(labels[:4], labels), b).values()).backward()
    expected = paper_gradient(u.detach(), others, b, labels[:4], labels, eta) / (2 * len(labels) * 4)
    assert torch.allclose(u.grad, expected, rtol=1e-10, atol=1e-14)


def test_the_gradient_is_that_of_finite_differences():
    others, b, pairs = outputs(len(MULTI), seed=1), signs(outputs(5, seed=2)), similar(MULTI[:5], MULTI)
    loss = DSDHLoss(0.3)
    assert torch.autograd.gradcheck(lambda u: sum(loss(u, others, pairs, b).values()), (outputs(5).requires_grad_(),))


@pytest.mark.parametrize("pairs", [1.0, 0.0], ids=["all similar", "none similar"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(pairs, scale):
    # log(1 + exp(t)) is inf from t = 89 on.
    u, b = outputs(4, scale=scale).float().requires_grad_(), signs(outputs(4, seed=2)).float()
    others = outputs(7, seed=1, scale=scale).float()
    total = sum(DSDHLoss(0.3)(u, others, torch.full((4, 7), pairs), b).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()
    assert (u.grad != 0).any(dim=1).all()


# the codes and their classifier


@BOTH
@pytest.mark.parametrize("weight", [0.1, 100.0])
def test_the_classifier_is_the_ridge_regression(labels, weight):
    # |Y - B W|^2 + weight |W|^2 is a least squares problem with one more row, of sqrt(weight), for each bit.
    b = signs(outputs(len(labels))).float()
    stacked = np.vstack([b.numpy(), math.sqrt(weight) * np.eye(BITS)])
    targets = np.vstack([labels.numpy(), np.zeros((BITS, labels.shape[1]))])
    expected = np.linalg.lstsq(stacked, targets, rcond=None)[0]
    assert np.allclose(ridge_classifier(b, labels, weight).numpy(), expected, atol=1e-6)


def test_the_classifier_of_few_distinct_codes_is_exact():
    # If codes follow from the labels, B'B has the rank of the labels, and a small ridge is lost in single precision.
    labels = torch.eye(4)[torch.arange(4000) % 4]
    b = signs(torch.randn(4, 48, generator=torch.Generator().manual_seed(0)))[torch.arange(4000) % 4]
    w = ridge_classifier(b, labels, 0.1)
    assert torch.allclose(b @ w, labels, atol=1e-3)
    assert torch.allclose(w, ridge_classifier(b.double(), labels.double(), 0.1).float(), atol=1e-6)


@BOTH
@pytest.mark.parametrize("output_weight", [0.0, 0.1, 55.0])
def test_neither_step_raises_the_objective(labels, output_weight):
    dsdh = module(labels, output_weight, rounds=1)
    dsdh.u_buffer.copy_(outputs(len(labels), seed=1))
    dsdh.w_buffer.copy_(torch.randn(BITS, labels.shape[1]))
    before = discrete_objective(dsdh)
    for _ in range(4):
        codes = dsdh.b_buffer.clone()
        dsdh.update_codes()
        after, b = discrete_objective(dsdh), dsdh.b_buffer.clone()
        dsdh.b_buffer.copy_(codes)  # with the new classifier alone
        between = discrete_objective(dsdh)
        dsdh.b_buffer.copy_(b)
        assert after <= between + 1e-4
        assert between <= before + 1e-4
        before = after


@BOTH
def test_codes_are_those_of_the_whole_training_set_and_outputs_count(labels):
    # The authors' code computes the codes of one batch at a time.
    dsdh = module(labels, output_weight=1000.0)
    u = outputs(len(labels), seed=1).float()
    dsdh.u_buffer.copy_(u)
    dsdh.update_codes()
    assert torch.equal(dsdh.b_buffer, signs(u))


def test_many_rounds_are_one_round_many_times():
    many, one = module(MULTI, rounds=3), module(MULTI, rounds=1)
    for dsdh in (many, one):
        dsdh.u_buffer.copy_(outputs(len(MULTI), seed=1))
    many.update_codes()
    for _ in range(3):
        one.update_codes()
    assert torch.equal(many.b_buffer, one.b_buffer)
    assert torch.equal(many.w_buffer, one.w_buffer)


# mistakes of re-implementations


@BOTH
def test_the_first_epoch_has_codes_of_its_own_and_a_classifier(labels):
    # If codes and outputs both start from zero, W = 0 and then B = 0: the network is pulled to 0 in the first epoch.
    dsdh = module(labels)
    assert (dsdh.b_buffer.abs() == 1).all()
    assert not dsdh.u_buffer.any()
    dsdh.update_codes()
    assert (dsdh.b_buffer.abs() == 1).all()
    assert dsdh.w_buffer.any()


def test_the_first_codes_come_from_the_labels():
    labels = SINGLE.repeat(6, 1)
    dsdh = module(labels)
    dsdh.update_codes()
    b, near = dsdh.b_buffer, similar(labels, labels) > 0
    products = b @ b.T
    assert products[near].mean() > products[~near].mean() + BITS / 2


def test_the_outputs_are_pulled_to_the_codes_not_to_their_own_signs():
    # One public version has no such term, another uses sgn(u): the codes of the B step never reach the network.
    dsdh, rows = module(SINGLE), [7, 2, 5]
    u = outputs(3).float()
    dsdh.b_buffer[rows] = -signs(u)
    u.requires_grad_()
    terms = dsdh.losses(u, batch_of(SINGLE, rows))
    terms["quantization"].backward()
    assert torch.allclose(u.grad, 2 * 0.3 * (u.detach() + signs(u.detach())) / 3, rtol=1e-5)


def test_the_loss_has_no_term_without_a_gradient():
    # The classification and ridge terms have no gradient. In the loss they would only seem to train the network.
    u = outputs(3).float().requires_grad_()
    for term in module(SINGLE).losses(u, batch_of(SINGLE, [7, 2, 5])).values():
        assert torch.autograd.grad(term, u, retain_graph=True)[0].any()


@BOTH
def test_the_batch_is_in_the_buffer_before_theta_is_computed(labels):
    dsdh, rows = module(labels), [6, 2, 5]
    old = outputs(len(labels), seed=3).float()
    dsdh.u_buffer.copy_(old)
    u = outputs(3).float().requires_grad_()
    terms = dsdh.losses(u, batch_of(labels, rows))
    old[rows] = u.detach()
    assert torch.equal(dsdh.u_buffer, old)
    assert not dsdh.u_buffer.requires_grad
    pairs, _ = paper_objective(u.detach(), old, dsdh.b_buffer[rows], labels[rows], labels, 1.0)
    assert terms["similarity"].item() == pytest.approx(pairs / (3 * len(labels)), rel=1e-5)


def test_codes_go_on_from_those_of_the_epoch_before():
    # One public version resets the codes to zeros every epoch, so that they change although no output changed.
    dsdh = module(SINGLE)
    dsdh.u_buffer.copy_(outputs(len(SINGLE), seed=1))
    dsdh.update_codes()
    before = dsdh.b_buffer.clone()
    dsdh.update_codes()
    assert torch.equal(dsdh.b_buffer, before)


def test_the_random_codes_depend_on_the_seed_alone():
    one = module(SINGLE).b_buffer
    torch.rand(7)
    assert torch.equal(module(SINGLE).b_buffer, one)
    assert not torch.equal(module(SINGLE, seed=1).b_buffer, one)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"output_weight": -1.0}, "output_weight must be at least 0"),
        ({"ridge_weight": 0.0}, "ridge_weight must be above 0"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"sweeps": 0}, "sweeps must be at least 1"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        module(SINGLE, **setting)


# whole runs


def test_an_interrupted_run_ends_with_the_codes_of_one_that_was_not(deephash, tmp_path, monkeypatch):
    # If codes and classifier were updated at the end of an epoch, its checkpoint would hold those of the epoch before.
    photos = write_photos(tmp_path / "photos")
    settings = (*QUICK, "bits=12", "loader.batch_size=16", "trainer.max_epochs=2", f"dataset.root={photos}")
    command = ("train", "method=dsdh", "dataset=image_folder", *settings)
    assert deephash(*command, f"run_dir={tmp_path / 'whole'}").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(HashingModule, "on_train_batch_start", stop_in_the_second_epoch)
        assert deephash(*command, f"run_dir={tmp_path / 'run'}").code == 130
    assert deephash(*command, f"run_dir={tmp_path / 'run'}", "resume=auto").code == 0
    whole, resumed = (
        read_checkpoint(tmp_path / name / "checkpoints" / LAST)["state_dict"] for name in ("whole", "run")
    )
    assert {"u_buffer", "b_buffer", "w_buffer"} <= whole.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


start = HashingModule.on_train_batch_start


def stop_in_the_second_epoch(module, batch, batch_idx):
    if (module.current_epoch, batch_idx) == (1, 1):
        raise Stopped(130)
    start(module, batch, batch_idx)


def test_clusters_opposite_each_other_get_near_codes_if_they_share_a_label():
    x, labels = opposite_clusters()
    dsdh, everything = module(labels, hidden_units=32), Batch(x, labels, torch.arange(60))
    optimizer = torch.optim.Adam(dsdh.network.new_layers(), 0.01)
    for _ in range(8):
        dsdh.update_codes()
        for _ in range(5):
            optimizer.zero_grad()
            sum(dsdh.losses(dsdh.network(x), everything).values()).backward()
            optimizer.step()
    assert all(is_nearer_to_similar(dsdh.network(x) >= 0, labels))

"""DTSH against slow loops written from the paper, finite differences, and common mistakes of its re-implementations."""

import math

import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.dtsh import DTSH, DTSHLoss, draw

BITS = 6
SINGLE = torch.eye(4)[[0, 1, 2, 0, 3, 1, 0, 2, 2, 0, 1]]  # row 4 has no positive
MULTI = torch.tensor(
    [[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
).float()  # row 4 has no label, and is the only negative of row 5
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def outputs(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def all_true(n):
    return torch.ones(n, dtype=torch.bool)


def paper_objective(u, positives, negatives, margin, weight):
    """Return the two terms of the paper's L, with means over the triplets of a query and over queries, not sums."""
    triplets = quantization = 0.0
    for query, near, far in zip(u.tolist(), positives.tolist(), negatives.tolist(), strict=True):
        for p in near:
            for n in far:
                t_qp = sum(a * b for a, b in zip(query, p, strict=True)) / 2
                t_qn = sum(a * b for a, b in zip(query, n, strict=True)) / 2
                d = t_qp - t_qn - margin * len(query)
                triplets -= (d - math.log(1 + math.exp(d))) / (len(near) * len(far))
        quantization += sum(((1 if value >= 0 else -1) - value) ** 2 for value in query)
    return triplets / len(u), weight * quantization / len(u)


def module(labels, positives=3, negatives=4):
    torch.manual_seed(0)
    settings = {"positives": positives, "negatives": negatives, "buffer_init": "zeros"}
    return learned(DTSH, network_on(8, BITS), DTSHLoss(0.5, 0.02), labels, **settings)


def batch_of(labels, rows):
    return Batch(torch.zeros(len(rows), 3, 16, 16, dtype=torch.uint8), labels[rows], torch.tensor(rows))


class Spy(nn.Module):
    """A loss that records its arguments."""

    def forward(self, u, positives, negatives, usable):
        self.given = u, positives, negatives, usable
        return {"similarity": u.sum()}


# the loss


def test_the_loss_is_that_of_the_loops():
    u, positives, negatives = outputs(4, BITS), outputs(4, 3, BITS, seed=1), outputs(4, 5, BITS, seed=2)
    terms = DTSHLoss(0.5, 0.3)(u, positives, negatives, all_true(4))
    triplets, quantization = paper_objective(u, positives, negatives, 0.5, 0.3)
    assert terms["similarity"].item() == pytest.approx(triplets, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(quantization, rel=1e-10)


def test_the_gradient_is_that_of_finite_differences():
    u = outputs(4, BITS)
    u = (u + 0.1 * torch.where(u >= 0, 1.0, -1.0)).requires_grad_()  # away from 0, where sgn jumps
    positives, negatives = outputs(4, 3, BITS, seed=1), outputs(4, 5, BITS, seed=2)
    usable, loss = torch.tensor([True, True, False, True]), DTSHLoss(0.5, 0.3)
    assert torch.autograd.gradcheck(
        lambda v: torch.stack(list(loss(v, positives, negatives, usable).values())).sum(), (u,)
    )


def test_theta_has_the_factor_one_half_and_the_margin_grows_with_the_code():
    # Without the 1/2, or with the same margin for every length, a pair of codes could be near enough at 64 bits only.
    for bits in (4, 64):
        code = torch.ones(1, bits)
        term = DTSHLoss(0.5, 1.0)(code, code[None], -code[None], all_true(1))["similarity"]
        assert term.item() == pytest.approx(math.log1p(math.exp(-bits / 2)), rel=1e-5)


def test_lambda_of_100_on_the_sum_is_0_0044_on_the_mean():
    # With a weight of 100 on a mean, quantization would outweigh the triplets.
    u, positives, negatives = outputs(1, BITS), outputs(1, 50, BITS, seed=1), outputs(1, 450, BITS, seed=2)
    terms = DTSHLoss(0.5, 100 / 22500)(u, positives, negatives, all_true(1))
    d = (positives[0] @ u[0] / 2)[:, None] - (negatives[0] @ u[0] / 2)[None] - BITS / 2
    published = torch.log(1 + torch.exp(-d)).sum() + 100 * (u.abs() - 1).square().sum()
    assert sum(terms.values()).item() == pytest.approx(published.item() / 22500, rel=1e-10)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_huge_outputs_have_a_finite_value_and_gradient(scale):
    # log(1 + exp(d)) is inf from d = 89 on, so the loss would be inf, then NaN.
    u = outputs(4, BITS, scale=scale).float().requires_grad_()
    others = outputs(4, 3, BITS, seed=1, scale=scale).float()
    total = sum(DTSHLoss(0.5, 1.0)(u, others, -others, all_true(4)).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()
    assert (u.grad != 0).any(dim=1).all()


def test_quantization_at_zero_pulls_to_plus_one():
    # With torch.sign, b would be 0 where u is 0: there would be no pull, and codes would have three values.
    u, others = torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 1, 3)
    DTSHLoss(0.5, 1.0)(u, others, others, all_true(1))["quantization"].backward()
    assert (u.grad < 0).all()


def test_rows_without_triplets_do_not_count():
    u, positives, negatives = outputs(4, BITS), outputs(4, 3, BITS, seed=1), outputs(4, 5, BITS, seed=2)
    kept = [0, 1, 3]
    term = DTSHLoss(0.5, 0.3)(u, positives, negatives, torch.tensor([True, True, False, True]))["similarity"]
    assert term.item() == pytest.approx(paper_objective(u[kept], positives[kept], negatives[kept], 0.5, 0.3)[0])


def test_a_batch_without_any_triplet_is_zero_and_can_be_learned_from():
    # The mean over no queries is NaN. A constant 0 has no graph: "element 0 of tensors does not require grad".
    u = outputs(2, BITS).requires_grad_()
    term = DTSHLoss(0.5, 0.3)(u, u.detach()[:, None], u.detach()[:, None], ~all_true(2))["similarity"]
    term.backward()
    assert term.item() == 0
    assert not u.grad.any()


# drawing


def test_what_is_drawn_is_uniform_over_the_choices():
    torch.manual_seed(0)
    choices = torch.tensor([[True, False, True, True, False, True], [False, False, False, False, False, True]])
    columns, usable = draw(choices, 20_000)
    assert usable.all()
    counts = torch.bincount(columns[0], minlength=6)
    assert (counts[~choices[0]] == 0).all()
    assert ((counts[choices[0]] - 5000).abs() < 300).all()  # five standard deviations
    assert (columns[1] == 5).all()


def test_a_row_without_choices_is_reported_and_its_columns_exist():
    choices = torch.tensor([[False, False], [True, False]])
    columns, usable = draw(choices, 5)
    assert usable.tolist() == [False, True]
    assert ((columns >= 0) & (columns < 2)).all()


# the module


@BOTH
def test_positives_share_a_label_negatives_none_and_a_query_is_not_its_own_positive(labels):
    # Comparing labels with == would lose most positives of multi-label data and make some of them negatives. If q were
    # among its own positives, a triplet could be satisfied by a large |u_q|^2 alone.
    dtsh, n = module(labels, positives=60, negatives=60), len(labels)
    dtsh.loss = Spy()
    numbered = torch.arange(n).float()[:, None].repeat(1, BITS)  # the output for each row is its index
    dtsh.losses(numbered, batch_of(labels, list(range(n))))
    _, positives, negatives, usable = dtsh.loss.given
    for q in range(n):
        shares = [bool((labels[q] * labels[i]).sum() > 0) for i in range(n)]
        near = {i for i in range(n) if shares[i] and i != q}
        far = {i for i in range(n) if not shares[i]}
        assert usable[q] == bool(near and far)
        if usable[q]:
            assert set(positives[q, :, 0].int().tolist()) == near
            assert set(negatives[q, :, 0].int().tolist()) == far


def test_triplets_are_drawn_from_the_whole_training_set_after_the_batch_is_written():
    # Triplets inside the batch are a different method. If the batch were written later, its images would be compared
    # with outputs of the previous epoch, which are zeros in the first epoch.
    dtsh, rows = module(SINGLE, positives=60, negatives=60), [0, 1]
    dtsh.loss = Spy()
    dtsh.u_buffer.fill_(-1)
    dtsh.losses(torch.full((2, BITS), 7.0), batch_of(SINGLE, rows))
    _, positives, negatives, _ = dtsh.loss.given
    assert set(positives.unique().tolist()) == {-1}  # other images of the class, none of them in the batch
    assert set(negatives.unique().tolist()) == {-1, 7}
    assert dtsh.u_buffer[:, 0].tolist() == [7, 7] + [-1] * 9


def test_the_gradient_flows_through_the_query_alone():
    # If the buffer were attached, the second step would fail with "backward through the graph a second time".
    dtsh, rows = module(SINGLE), [7, 2, 5]
    for step in range(2):
        u = outputs(3, BITS, seed=step).float().requires_grad_()
        sum(dtsh.losses(u, batch_of(SINGLE, rows)).values()).backward()
        assert u.grad.any(dim=1).all()
        assert not dtsh.u_buffer.requires_grad


def test_the_same_step_draws_the_same_triplets():
    # Otherwise a resumed run would differ from an uninterrupted one.
    dtsh, u, batch = module(MULTI), outputs(3, BITS).float(), batch_of(MULTI, [7, 2, 6])
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(dtsh.losses(u, batch)["similarity"].item())
    assert losses[0] == losses[1] != losses[2]


def test_the_buffer_is_state_and_the_labels_are_not():
    # If it were not in the checkpoint, the buffer would be zero after a resume, and the resumed run would differ.
    state = module(SINGLE).state_dict()
    assert state["u_buffer"].shape == (11, BITS)
    assert "train_labels" not in state


@pytest.mark.parametrize("counts", [(0, 4), (3, 0)])
def test_no_positives_or_no_negatives_to_draw_is_refused(counts):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        module(SINGLE, *counts)


def test_codes_of_clustered_data_find_their_cluster():
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0))
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25

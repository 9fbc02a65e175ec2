"""CSQ against slow loops written from the paper, finite differences, and common mistakes of its re-implementations."""

import math

import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.csq import CSQ, CSQLoss
from deephash_cli.methods.parts.codebooks import smallest_distance

BITS = 6
SINGLE = torch.eye(4)[[0, 1, 2, 0, 3, 1, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0]]).float()


def outputs(n, seed=0, scale=1.0):
    return scale * torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def centres_of(n):
    return torch.where(outputs(n, seed=1) > 0, 1.0, -1.0).double()


def paper_objective(u, centres):
    """Return the paper's L_C, with means instead of sums, and the mean of (|z| - 1)^2."""
    centre = quantization = 0.0
    for row, target in zip(u.tolist(), centres.tolist(), strict=True):
        for value, c in zip(row, target, strict=True):
            h, wanted = (math.tanh(value) + 1) / 2, (c + 1) / 2
            centre -= wanted * math.log(h) + (1 - wanted) * math.log(1 - h)
            quantization += (abs(2 * h - 1) - 1) ** 2
    return centre / u.numel(), quantization / u.numel()


def module(labels, bits=BITS, **settings):
    torch.manual_seed(0)
    return learned(CSQ, network_on(8, bits), CSQLoss(0.05), labels, **{"codebook": "hadamard", **settings})


def batch_of(labels, rows):
    return Batch(torch.zeros(len(rows), 8), labels[rows], torch.tensor(rows))


class Spy(nn.Module):
    """A loss that records its arguments."""

    def forward(self, u, centres):
        self.centres = centres
        return {"centre": u.sum()}


# the loss


def test_the_loss_is_that_of_the_loops():
    u, centres = outputs(7), centres_of(7)
    terms = CSQLoss(0.3)(u, centres)
    centre, quantization = paper_objective(u, centres)
    assert terms["centre"].item() == pytest.approx(centre, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization, rel=1e-10)


def test_the_gradient_is_that_of_finite_differences():
    u, centres, loss = outputs(5).requires_grad_(), centres_of(5), CSQLoss(0.3)
    centres[2] = 0
    assert torch.autograd.gradcheck(lambda v: torch.stack(list(loss(v, centres).values())).sum(), (u,))


def test_an_output_far_on_the_wrong_side_is_pulled_back():
    # From tanh(10) on, single precision rounds h to 1: log(1 - h) is -inf, or clamped, and its gradient is 0 or NaN.
    u = torch.full((1, BITS), 1e4, requires_grad=True)
    term = CSQLoss(0.0)(u, -torch.ones(1, BITS))["centre"]
    term.backward()
    assert term.item() == pytest.approx(2e4)
    assert torch.allclose(u.grad, torch.full((1, BITS), 2 / BITS))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("labelled", [True, False])
def test_degenerate_batches_have_a_finite_value_and_gradient(scale, labelled):
    u = outputs(4, scale=scale).float().requires_grad_()
    total = sum(CSQLoss(0.05)(u, torch.full((4, BITS), float(labelled))).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_quantization_at_zero_pulls_to_plus_one():
    # In torch the derivative of |z| at 0 is 0, so there would be no pull.
    u = torch.zeros(2, 3, requires_grad=True)
    CSQLoss(1.0)(u, torch.zeros(2, 3))["quantization"].backward()
    assert (u.grad < 0).all()


def test_images_without_a_label_are_drawn_to_no_centre():
    # As a centre, their zeros would be h' = 1/2, and pull all bits towards 0.
    u, centres = outputs(5).requires_grad_(), centres_of(5)
    centres[3] = 0
    term = CSQLoss(0.0)(u, centres)["centre"]
    term.backward()
    kept = [0, 1, 2, 4]
    assert term.item() == pytest.approx(paper_objective(u.detach()[kept], centres[kept])[0])
    assert not u.grad[3].any()


# the centres


@pytest.mark.parametrize(("bits", "distance"), [(12, 6), (24, 12), (48, 24), (64, 32), (17, 6)])
def test_centres_exist_at_every_length(bits, distance):
    # Public versions construct centres of 16, 32 and 64 bits only.
    csq = module(torch.eye(10).repeat(2, 1), bits)
    assert csq.centres.shape == (10, bits)
    assert smallest_distance(csq.centres) >= distance


def test_the_smallest_distance_of_the_centres_is_logged():
    csq, logged = module(SINGLE), {}
    csq.log = logged.__setitem__
    csq.on_train_epoch_start()
    distances = [(a != b).sum().item() for i, a in enumerate(csq.centres) for b in csq.centres[:i]]
    assert logged == {"codes/smallest_distance": min(distances)}


def test_centres_and_ties_come_from_the_seed_and_are_in_the_checkpoint():
    # If they were drawn again, a resumed run would draw its images to other centres.
    first, again, other = (module(MULTI, seed=seed).state_dict() for seed in (1, 1, 2))
    for name in ("centres", "ties"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_several_labels_have_the_majority_of_their_centres_in_each_bit():
    # The argmax of several labels would take the first one's centre, and so forget the others.
    csq, rows = module(MULTI), list(range(len(MULTI)))
    csq.loss = Spy()
    csq.losses(outputs(len(rows)).float(), batch_of(MULTI, rows))
    for labels, centre in zip(MULTI.tolist(), csq.loss.centres.tolist(), strict=True):
        own = [code for code, has in zip(csq.centres.tolist(), labels, strict=True) if has]
        for bit, value in enumerate(centre):
            votes = sum(code[bit] for code in own)
            assert value == (0 if not own else csq.ties[0, bit] if votes == 0 else math.copysign(1, votes))


def test_the_same_labels_always_have_the_same_centre():
    # With ties that are drawn for each batch, a centre would change from step to step.
    csq = module(MULTI)
    csq.loss = Spy()
    seen = []
    for rows in ([0, 1], [6, 0], [0, 6]):
        csq.losses(outputs(2).float(), batch_of(MULTI, rows))
        seen.append(csq.loss.centres[rows.index(0)])
    assert torch.equal(csq.loss.centres[0], csq.loss.centres[1])
    assert all(torch.equal(centre, seen[0]) for centre in seen)


@pytest.mark.parametrize("codebook", ["hadamard", "search", "random"])
def test_codes_of_clustered_data_find_their_cluster(codebook):
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0), codebook=codebook, seed=3)
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25


def test_an_unknown_kind_of_centres_is_refused():
    with pytest.raises(ValueError, match="must be hadamard, search or random, got 'hadamrd'"):
        module(SINGLE, codebook="hadamrd")

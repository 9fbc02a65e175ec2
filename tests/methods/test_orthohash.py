"""OrthoHash against slow loops written from the paper, finite differences, and common mistakes."""

import math

import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.orthohash import OrthoHash, OrthoHashLoss
from deephash_cli.methods.parts.codebooks import codebook, smallest_distance

BITS = 8
SINGLE = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.float64)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def outputs(n, seed=0, scale=1.0):
    return scale * torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def codes_for(labels):
    return codebook("random", labels.shape[1], BITS, seed=1).double()


def paper_objective(u, codes, labels, scale, margin):
    """Return the mean over images with a label of the cross-entropy."""
    losses = []
    for row, y in zip(u.tolist(), labels.tolist(), strict=True):
        logits = []
        for code, has in zip(codes.tolist(), y, strict=True):
            lengths = math.sqrt(sum(v * v for v in row)) * math.sqrt(sum(v * v for v in code))
            logits.append(scale * (sum(a * b for a, b in zip(row, code, strict=True)) / lengths - margin * has))
        total = sum(math.exp(v) for v in logits)
        if any(y):
            losses.append(-sum(has / sum(y) * math.log(math.exp(v) / total) for v, has in zip(logits, y, strict=True)))
    return sum(losses) / len(losses)


def module(labels, bits=BITS, **settings):
    torch.manual_seed(0)
    network = network_on(8, bits, output_norm=True)
    return learned(OrthoHash, network, OrthoHashLoss(8.0, 0.2), labels.float(), **{"codebook": "hadamard", **settings})


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    u, codes = outputs(7), codes_for(labels)
    term = OrthoHashLoss(8.0, 0.3)(u, codes, labels)["classification"]
    assert term.item() == pytest.approx(paper_objective(u, codes, labels, 8.0, 0.3), rel=1e-10)


@BOTH
def test_the_gradient_is_that_of_finite_differences(labels):
    u, codes, loss = outputs(7).requires_grad_(), codes_for(labels), OrthoHashLoss(8.0, 0.3)
    assert torch.autograd.gradcheck(lambda v: loss(v, codes, labels)["classification"], (u,))


def test_the_cosine_does_not_grow_with_the_code_or_the_output():
    # With an inner product instead of a cosine, s would have to change with the code length and u could just grow.
    for bits, size in ((8, 1.0), (64, 1.0), (64, 100.0)):
        codes = codebook("hadamard", 3, bits, seed=0)
        term = OrthoHashLoss(8.0, 0.0)(size * codes[:1], codes, torch.eye(3)[:1])["classification"]
        assert term.item() == pytest.approx(math.log1p(2 * math.exp(-8)), rel=1e-4)


def test_the_margin_makes_the_own_class_harder_and_no_other():
    # A margin that is added, or subtracted from the other classes, would make the task easier.
    u, codes = outputs(7), codes_for(SINGLE)
    without, with_margin = (OrthoHashLoss(8.0, m)(u, codes, SINGLE)["classification"].item() for m in (0.0, 0.2))
    assert with_margin > without
    assert with_margin == pytest.approx(paper_objective(u, codes, SINGLE, 8.0, 0.2))


def test_several_labels_share_the_target_equally():
    # The argmax of several labels would forget all but the first; a target of ones would count an image twice.
    u, codes = codes_for(MULTI)[:2].sum(dim=0, keepdim=True), codes_for(MULTI)
    first, second, both = (
        OrthoHashLoss(8.0, 0.0)(u, codes, torch.tensor([y], dtype=torch.float64))["classification"].item()
        for y in ([1, 0, 0], [0, 1, 0], [1, 1, 0])
    )
    assert both == pytest.approx((first + second) / 2)


def test_images_without_a_label_do_not_count():
    # y / |y|_1 would be 0 / 0 there, and NaN the loss of the whole batch.
    u, codes = outputs(7).requires_grad_(), codes_for(MULTI)
    term = OrthoHashLoss(8.0, 0.2)(u, codes, MULTI)["classification"]
    term.backward()
    kept = MULTI.any(dim=1)
    alone = OrthoHashLoss(8.0, 0.2)(u[kept], codes, MULTI[kept])["classification"]
    assert term.item() == pytest.approx(alone.item())
    assert not u.grad[~kept].any()


@pytest.mark.parametrize("labels", [torch.zeros(4, 3), torch.eye(3)[[0, 0, 0, 0]], torch.ones(4, 3)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    u = outputs(4, scale=scale).float().requires_grad_()
    total = OrthoHashLoss(8.0, 0.2)(u, codes_for(labels).float(), labels)["classification"]
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("bits", [12, 16, 24, 48])
def test_codes_are_orthogonal_where_there_is_a_hadamard_matrix(bits):
    codes = module(torch.eye(10).repeat(2, 1), bits).codes
    assert torch.equal(codes @ codes.T, bits * torch.eye(10))


def test_the_smallest_distance_of_the_codes_is_logged():
    orthohash, logged = module(SINGLE, 17), {}
    orthohash.log = logged.__setitem__
    orthohash.on_train_epoch_start()
    assert logged == {"codes/smallest_distance": smallest_distance(orthohash.codes)}


def test_the_codes_come_from_the_seed_and_are_in_the_checkpoint():
    # With other codes after a resume, the network would have to learn them again.
    first, again, other = (module(SINGLE, seed=seed).state_dict()["codes"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_module_takes_the_codes_of_its_classes():
    orthohash, rows = module(MULTI), [5, 2, 0]
    u = outputs(3).float()
    terms = orthohash.losses(u, Batch(torch.zeros(3, 8), MULTI.float()[rows], torch.tensor(rows)))
    expected = paper_objective(u, orthohash.codes, MULTI[rows], 8.0, 0.2)
    assert terms["classification"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["hadamard", "search", "random"])
def test_codes_of_clustered_data_find_their_cluster(kind):
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0), codebook=kind)
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        OrthoHashLoss(0, 0.2)

"""GreedyHash against slow loops written from the paper, finite differences, and mistakes of its re-implementations."""

import math

import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.greedyhash import GreedyHash, GreedyHashLoss

BITS = 6
SINGLE = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.float64)  # row 2 has none
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_objective(u, logits, labels):
    """Return the cross-entropy with y / |y|_1, a mean over images with labels, and the penalty, a mean over outputs."""
    entropies, penalty = [], 0.0
    for outputs, row, y in zip(u.tolist(), logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        if sum(y):
            entropies.append(
                -sum(share / sum(y) * math.log(math.exp(v) / total) for share, v in zip(y, row, strict=True))
            )
        penalty += sum(abs(abs(value) - 1) ** 3 for value in outputs)
    return sum(entropies) / len(entropies), penalty / u.numel()


def module(labels, bits=BITS, seed=0):
    return learned(GreedyHash, network_on(8, bits), GreedyHashLoss(0.1), labels.float(), seed=seed)


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    u, logits = normal(5, BITS), normal(5, 3, seed=1)
    terms = GreedyHashLoss(0.3)(u, logits, labels)
    classification, penalty = paper_objective(u, logits, labels)
    assert terms["classification"].item() == pytest.approx(classification, rel=1e-12)
    assert terms["quantization"].item() == pytest.approx(0.3 * penalty, rel=1e-12)


def test_with_one_label_it_is_the_cross_entropy_of_torch():
    logits = normal(5, 3, seed=1)
    term = GreedyHashLoss(0.3)(normal(5, BITS), logits, SINGLE)["classification"]
    assert term.item() == pytest.approx(nn.functional.cross_entropy(logits, SINGLE.argmax(dim=1)).item())


def test_the_gradient_is_that_of_finite_differences():
    u, logits = normal(5, BITS).requires_grad_(), normal(5, 3, seed=1).requires_grad_()
    loss = GreedyHashLoss(0.3)
    assert torch.autograd.gradcheck(lambda *x: torch.stack(list(loss(*x, MULTI).values())).sum(), (u, logits))


def test_every_label_of_an_image_counts():
    # The argmax of a multi-hot label is its first class: with it, the second and third class of an image would not be
    # learned, and each image without a label would be one of the first class.
    logits = torch.zeros(2, 3, requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    GreedyHashLoss(0.0)(torch.ones(2, BITS), logits, labels)["classification"].backward()
    assert logits.grad[0].tolist() == pytest.approx([-1 / 6, -1 / 6, 1 / 3])
    assert not logits.grad[1].any()


def test_the_classifier_sees_binary_codes_and_the_network_gets_their_gradient():
    # With the classifier on u, the codes would be those of a classification that was learned without them.
    greedy = module(SINGLE)
    u = torch.tensor([[0.5, -3.0, 0.0, 9.0, -0.1, 1.0]], requires_grad=True)
    b = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0, 1.0]], requires_grad=True)
    labels = torch.tensor([[0.0, 1.0, 0.0]])
    expected = nn.functional.cross_entropy(b @ greedy.classifier.T, labels)
    expected.backward()
    term = greedy.losses(u, Batch(torch.zeros(1, 8), labels, torch.tensor([0])))["classification"]
    term.backward()
    assert term.item() == pytest.approx(expected.item())
    assert torch.allclose(u.grad, b.grad)


def test_the_penalty_at_zero_pulls_to_plus_one():
    # torch's derivative of |u| is 0 at u = 0, so an output there would stay.
    u = torch.zeros(1, 3, requires_grad=True)
    GreedyHashLoss(1.0)(u, torch.zeros(1, 3), torch.ones(1, 3))["quantization"].backward()
    assert (u.grad < 0).all()


@pytest.mark.parametrize("labels", [torch.zeros(4, 3), torch.eye(3)[[0, 0, 0, 0]], torch.ones(4, 3)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    u = normal(4, BITS, scale=scale).float().requires_grad_()
    batch = Batch(torch.zeros(4, 8), labels, torch.arange(4))
    total = sum(module(SINGLE).losses(u, batch).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_the_classifier_starts_from_the_seed_and_is_in_the_checkpoint():
    first, again, other = module(SINGLE), module(SINGLE), module(SINGLE, seed=1)
    assert first.state_dict()["classifier"].shape == (3, BITS)
    assert torch.equal(first.classifier, again.classifier)
    assert not torch.equal(first.classifier, other.classifier)


def test_codes_of_clustered_data_find_their_cluster():
    torch.manual_seed(0)
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0))
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25

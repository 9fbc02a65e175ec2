"""DCH against slow loops written from the paper, finite differences, and common mistakes of its re-implementations."""

import math

import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.dch import DCH, DCHLoss
from deephash_cli.methods.parts.losses import similar

BITS = 6
SINGLE = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def outputs(n, seed=0, scale=1.0):
    return scale * torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(a, b):
    """Return d of the paper for two lists of numbers."""
    product = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return len(a) / 2 * (1 - product / lengths)


def paper_objective(z, labels, gamma):
    """Return the paper's L divided by the number of pairs of two images, and Q divided by that of images."""
    kinds = {0: [], 1: []}
    rows = z.tolist()
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                s = any(a == 1 and b == 1 for a, b in zip(labels[i].tolist(), labels[j].tolist(), strict=True))
                d = distance(rows[i], rows[j])
                kinds[int(s)].append(s * math.log(d / gamma) + math.log(1 + gamma / d))
    count = len(kinds[0]) + len(kinds[1])
    pairs = sum(count / len(kind) * value for kind in kinds.values() for value in kind) / count
    quantization = [math.log(1 + distance([abs(x) for x in row], [1] * len(row)) / gamma) for row in rows]
    return pairs, sum(quantization) / len(z)


def loss(gamma=20.0, weight=0.1, floor=1e-4):
    return DCHLoss(gamma, weight, floor)


def module(labels):
    torch.manual_seed(0)
    return learned(DCH, network_on(8, BITS), loss(weight=0.3), labels.float())


@BOTH
@pytest.mark.parametrize("gamma", [2.0, 20.0])
def test_the_loss_is_that_of_the_loops(labels, gamma):
    z = torch.tanh(outputs(7))
    terms = loss(gamma, 0.3, floor=1e-12)(z, similar(labels, labels))
    pairs, quantization = paper_objective(z, labels, gamma)
    assert terms["similarity"].item() == pytest.approx(pairs, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization, rel=1e-10)


@BOTH
def test_the_gradient_is_that_of_finite_differences(labels):
    z, pairs = torch.tanh(outputs(7)).requires_grad_(), similar(labels, labels)
    assert torch.autograd.gradcheck(lambda v: torch.stack(list(loss()(v, pairs).values())).sum(), (z,))


def test_the_distance_of_codes_is_that_of_hamming():
    codes = torch.ones(2, BITS)
    codes[1, :2] = -1
    for pairs, expected in ((1.0, math.log(1 + 2 / 20)), (0.0, math.log(1 + 20 / 2))):
        terms = loss(floor=1e-12)(codes, torch.full((2, 2), pairs))
        assert terms["similarity"].item() == pytest.approx(expected, rel=1e-5)
        assert terms["quantization"].item() == pytest.approx(0, abs=1e-6)


def test_the_floor_hardly_changes_a_distance_of_one_bit():
    codes = torch.ones(2, BITS)
    codes[1, 0] = -1
    assert loss()(codes, torch.zeros(2, 2))["similarity"].item() == pytest.approx(math.log(1 + 20), rel=1e-4)


@pytest.mark.parametrize("pairs", [1, 0], ids=["all similar", "none similar"])
def test_the_same_code_for_all_has_a_finite_value_and_gradient(pairs):
    # d = 0: log(0 / gamma) and gamma / 0 are infinite, and their gradients NaN.
    z = torch.full((3, BITS), 0.7, requires_grad=True)
    term = loss()(z, torch.full((3, 3), float(pairs)))["similarity"]
    term.backward()
    assert torch.isfinite(z.grad).all()
    assert term.item() == pytest.approx(0 if pairs else math.log(20 / 1e-4), abs=0.05)


def test_an_image_does_not_pair_with_itself():
    # The distance of an image from itself is 0: the diagonal would be the largest term of an image without labels.
    z = torch.tensor([[0.5, 0.5], [0.5, -0.5]])
    assert loss()(z, torch.zeros(2, 2))["similarity"].item() == pytest.approx(math.log(1 + 20), rel=1e-3)
    assert loss()(z, torch.eye(2))["similarity"].item() == pytest.approx(math.log(1 + 20), rel=1e-3)


def test_dissimilar_images_with_nearly_the_same_code_are_driven_apart():
    # Where the cosine is cut off at 0.99, they have no gradient.
    z = torch.tensor([[0.9, 0.9, 0.9], [0.9, 0.9, 0.85]], requires_grad=True)
    loss()(z, torch.zeros(2, 2))["similarity"].backward()
    assert torch.nn.functional.cosine_similarity(*z.detach(), dim=0) > 0.999
    step = (z - 1e-4 * z.grad / z.grad.norm()).detach()
    assert torch.nn.functional.cosine_similarity(*step, dim=0) < torch.nn.functional.cosine_similarity(*z, dim=0)
    assert z.grad.norm() > 1


def test_kinds_of_pairs_have_the_same_weight():
    # Without w_ij, the few similar pairs would not count.
    codes = torch.ones(4, BITS)
    codes[2:, :3] = -1  # rows 0 and 1 are similar and have the same code, as have 2 and 3, which are not
    labels = torch.eye(3)[[0, 0, 1, 2]]
    dissimilar = (2 * math.log(1 + 20 / 1e-12) + 8 * math.log(1 + 20 / 3)) / 10
    term = loss(floor=1e-12)(codes.double(), similar(labels, labels).double())["similarity"]
    assert term.item() == pytest.approx(0 + dissimilar, rel=1e-4)


def test_the_last_batch_may_be_smaller():
    # Public versions have a buffer of ones as long as a batch, and stop at a shorter one.
    dch = module(SINGLE)
    for n in (5, 2, 1):
        terms = dch.losses(outputs(n), Batch(torch.zeros(n, 8), SINGLE[:n], torch.arange(n)))
        assert all(torch.isfinite(term) for term in terms.values())


def test_quantization_at_zero_pulls_to_plus_one():
    # In torch the derivative of |z| at 0 is 0, like the value of torch.sign, so there would be no pull.
    z = torch.tensor([[0.0, 0.5, -0.5], [0.0, 0.5, 0.5]], requires_grad=True)
    loss()(z, torch.zeros(2, 2))["quantization"].backward()
    assert (z.grad[:, 0] < 0).all()


@pytest.mark.parametrize("labels", [torch.ones(4, 1), torch.eye(4), torch.zeros(4, 3)], ids=["same", "other", "none"])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    # The direction of a vector of zeros has no derivative, and near it an enormous one.
    u = outputs(4, scale=scale).float().requires_grad_()
    total = sum(module(SINGLE).losses(u, Batch(torch.zeros(4, 8), labels, torch.arange(4))).values())
    total.backward()
    assert torch.isfinite(total)
    assert u.grad.abs().max() < 1e4


@BOTH
def test_the_module_relaxes_with_tanh_and_pairs_inside_the_batch(labels):
    dch, rows, u = module(labels), [5, 2, 0, 3], outputs(4, scale=3.0)
    terms = dch.losses(u, Batch(torch.zeros(4, 8), labels[rows], torch.tensor(rows)))
    pairs, quantization = paper_objective(torch.tanh(u), labels[rows], 20.0)
    assert terms["similarity"].item() == pytest.approx(pairs, rel=1e-4)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization, rel=1e-10)


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"floor": 0.0}])
def test_a_scale_or_a_floor_of_zero_is_refused(settings):
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        loss(**settings)


def test_codes_of_clustered_data_find_their_cluster():
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0))
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25

"""The unsupervised loss of GreedyHash against slow loops, finite differences, and common mistakes."""

import pytest
import torch
from fitting import accuracy_on_clusters, cosine, learned, network_on
from torch import nn

from deephash_cli.methods.greedyhash_unsupervised import GreedyHashUnsupervised, GreedyHashUnsupervisedLoss

BITS = 6


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_objective(u, features):
    """Return the mean over pairs of the squared difference of cosines, and the penalty as a mean over outputs."""
    codes = [[1 if value >= 0 else -1 for value in row] for row in u.tolist()]
    features = features.tolist()
    errors = [
        (cosine(codes[i], codes[j]) - cosine(features[i], features[j])) ** 2
        for i in range(len(u))
        for j in range(len(u))
        if i < j
    ]
    penalty = sum(abs(abs(value) - 1) ** 3 for row in u.tolist() for value in row)
    return sum(errors) / len(errors), penalty / u.numel()


def test_the_loss_is_that_of_the_loops():
    u, features = normal(7, BITS), normal(7, 9, seed=1).abs()
    terms = GreedyHashUnsupervisedLoss(0.3)(u, features)
    similarity, penalty = paper_objective(u, features)
    assert terms["similarity"].item() == pytest.approx(similarity, rel=1e-12)
    assert terms["quantization"].item() == pytest.approx(0.3 * penalty, rel=1e-12)


def test_the_gradient_of_the_outputs_is_that_of_the_codes():
    # Cosines of u itself would be learned by outputs whose signs are all the same.
    u, features = normal(5, BITS).requires_grad_(), normal(5, 9, seed=1)
    GreedyHashUnsupervisedLoss(0.3)(u, features)["similarity"].backward()
    b = torch.where(u.detach() >= 0, 1.0, -1.0).double()
    for row, bit in ((0, 0), (3, 4)):
        sides = []
        for change in (1e-6, -1e-6):
            moved = b.clone()
            moved[row, bit] += change
            others = [i for i in range(5) if i != row]
            errors = [(cosine(moved[row], b[i]) - cosine(features[row], features[i])) ** 2 for i in others]
            sides.append(sum(errors) / 10)
        assert u.grad[row, bit].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)


def test_the_penalty_has_the_gradient_of_finite_differences():
    u, features = normal(5, BITS).requires_grad_(), normal(5, 9, seed=1)
    assert torch.autograd.gradcheck(lambda v: GreedyHashUnsupervisedLoss(0.3)(v, features)["quantization"], (u,))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("features", [torch.zeros(5, 9), torch.ones(5, 9), normal(5, 9).float()])
def test_degenerate_batches_have_a_finite_value_and_gradient(features, scale, n):
    # A single image has no pair, and the mean over none is NaN. Features without any difference have no order.
    u = normal(n, BITS, scale=scale).float().requires_grad_()
    total = sum(GreedyHashUnsupervisedLoss(0.1)(u, features[:n]).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_codes_of_clustered_data_find_their_cluster_without_labels():
    torch.manual_seed(0)
    labels = torch.eye(4).repeat_interleave(30, dim=0)
    module = learned(GreedyHashUnsupervised, network_on(8, 16), GreedyHashUnsupervisedLoss(0.1), labels)
    assert accuracy_on_clusters(module, nn.Linear(8, 16)) > 0.9  # chance is 0.25

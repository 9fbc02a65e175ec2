"""Bi-half Net against slow loops, finite differences, and common mistakes of its re-implementations."""

import pytest
import torch
from fitting import accuracy_on_clusters, cosine, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.bihalf import BiHalf, BiHalfLoss, half_and_half

BITS = 6


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def halves(u):
    """Return +1 for the upper half of each column of an even number of rows, and -1 for the lower half."""
    codes = [[0] * u.shape[1] for _ in u]
    for bit in range(u.shape[1]):
        order = sorted(range(len(u)), key=lambda row: u[row, bit].item())
        for place, row in enumerate(order):
            codes[row][bit] = 1 if place >= len(u) / 2 else -1
    return codes


def test_the_loss_is_that_of_the_loops():
    u, features = normal(8, BITS), normal(8, 9, seed=1).abs()
    terms = BiHalfLoss(6.0)(u, features)
    b, f = halves(u), features.tolist()
    errors = [(cosine(b[i], b[j]) - cosine(f[i], f[j])) ** 2 for i in range(8) for j in range(8) if i < j]
    assert terms["similarity"].item() == pytest.approx(sum(errors) / len(errors), rel=1e-12)


def test_the_gradient_is_that_of_the_codes_and_gamma_times_the_distance_from_them():
    u, features = normal(8, BITS).requires_grad_(), normal(8, 9, seed=1)
    terms = BiHalfLoss(6.0)(u, features)
    (of_codes,) = torch.autograd.grad(terms["similarity"], u, retain_graph=True)
    b = torch.tensor(halves(u.detach()), dtype=torch.float64)
    for row, bit in ((0, 0), (5, 3)):
        sides = []
        for change in (1e-6, -1e-6):
            moved = b.clone()
            moved[row, bit] += change
            others = [i for i in range(8) if i != row]
            errors = [(cosine(moved[row], b[i]) - cosine(features[row], features[i])) ** 2 for i in others]
            sides.append(sum(errors) / 28)
        assert of_codes[row, bit].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)
    (whole,) = torch.autograd.grad(sum(terms.values()), u)
    assert torch.allclose(whole, of_codes + 6.0 * (u - b).detach() / (8 * BITS), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_half_of_the_batch_has_each_bit(n):
    u = 3 + normal(n, BITS)  # all positive: signs would all be +1
    b = half_and_half(u)
    assert set(b.unique().tolist()) <= {-1, 1}
    assert (b == 1).sum(dim=0).tolist() == [(n + 1) // 2] * BITS  # the middle one of an odd number is positive
    assert (b == -half_and_half(-u))[:, 0].all()


def test_the_balanced_code_is_the_nearest_one():
    u = normal(4, 1)
    balanced = [torch.tensor(c).double()[:, None] for c in ([1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1])]
    best = min((c for code in balanced for c in (code, -code)), key=lambda code: (u - code).square().sum().item())
    assert torch.equal(half_and_half(u), best)


def test_equal_outputs_are_halved_in_the_order_of_the_batch():
    # With a comparison to the median, all of them would be +1.
    assert half_and_half(torch.zeros(6, 1))[:, 0].tolist() == [-1, -1, -1, 1, 1, 1]
    assert half_and_half(torch.tensor([[2.0], [1.0], [1.0], [0.0]]))[:, 0].tolist() == [1, -1, 1, -1]


def test_the_code_of_an_image_does_not_depend_on_what_it_is_encoded_with():
    # Encoding with the layer of the training would give half of any batch each bit, and a single query all bits.
    torch.manual_seed(0)
    module = learned(BiHalf, network_on(8, BITS), BiHalfLoss(6.0), torch.zeros(10, 2)).eval()
    x = normal(10, 8).float()
    with torch.no_grad():
        together = module.validation_step(Batch(x, torch.zeros(10, 2), torch.arange(10)), 0)
        alone = [module.validation_step(Batch(x[i : i + 1], torch.zeros(1, 2), torch.arange(1)), 0) for i in range(10)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("features", [torch.zeros(5, 9), torch.ones(5, 9), normal(5, 9).float()])
def test_degenerate_batches_have_a_finite_value_and_gradient(features, scale, n):
    u = normal(n, BITS, scale=scale).float().requires_grad_()
    total = sum(BiHalfLoss(6.0)(u, features[:n]).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_each_bit_becomes_one_for_half_of_the_images():
    torch.manual_seed(0)
    module = learned(BiHalf, network_on(8, BITS), BiHalfLoss(6.0), torch.zeros(200, 2))
    x = 2 + normal(200, 8).float()  # the mean is far from 0, and so are the bits at the start
    module.network.hash_layer.bias.data.fill_(2)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(100):
        loss = sum(module.losses(module.network(x), Batch(x, module.train_labels, torch.arange(200))).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = (module.network(x) >= 0).float().mean(dim=0)
    assert ((shares - 0.5).abs() < 0.15).all()


def test_codes_of_clustered_data_find_their_cluster_without_labels():
    torch.manual_seed(0)
    labels = torch.eye(4).repeat_interleave(30, dim=0)
    module = learned(BiHalf, network_on(8, 16), BiHalfLoss(6.0), labels)
    assert accuracy_on_clusters(module, nn.Linear(8, 16)) > 0.9  # chance is 0.25

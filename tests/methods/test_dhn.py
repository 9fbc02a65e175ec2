"""DHN against slow loops written from the paper, finite differences, and common mistakes of its re-implementations."""

import math

import numpy as np
import pytest
import torch
from fitting import accuracy_on_clusters, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.dhn import DHN, DHNLoss, log_cosh
from deephash_cli.methods.parts.losses import similar

BITS = 6
SINGLE = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def relaxed_codes(n, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.tanh(scale * torch.randn(n, BITS, dtype=torch.float64, generator=generator))


def paper_objective(z, labels, theta_scale):
    """Return the paper's L over pairs of two images, and its Q, both as sums, as printed."""
    pairs = quantization = 0.0
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                s = any(a == 1 and b == 1 for a, b in zip(labels[i].tolist(), labels[j].tolist(), strict=True))
                theta = theta_scale * sum(a * b for a, b in zip(z[i].tolist(), z[j].tolist(), strict=True))
                pairs += math.log(1 + math.exp(theta)) - s * theta
        for value in z[i].tolist():
            quantization += math.log(math.cosh(abs(value) - 1))
    return pairs, quantization


def module(labels):
    torch.manual_seed(0)
    return learned(DHN, network_on(8, BITS), DHNLoss(1.0, 0.3), labels.float())


@BOTH
@pytest.mark.parametrize("theta_scale", [1.0, 0.5])
def test_the_loss_is_that_of_the_loops(labels, theta_scale):
    z = relaxed_codes(7)
    terms = DHNLoss(theta_scale, 0.3)(z, similar(labels, labels))
    pairs, quantization = paper_objective(z, labels, theta_scale)
    assert terms["similarity"].item() == pytest.approx(pairs / (7 * 6), rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization / (7 * BITS), rel=1e-10)


def test_lambda_of_the_sums_is_lambda_bits_over_the_other_images_of_the_means():
    z, paper_weight = relaxed_codes(7), 2.0
    terms = DHNLoss(1.0, paper_weight * BITS / 6)(z, similar(MULTI, MULTI))
    pairs, quantization = paper_objective(z, MULTI, 1.0)
    assert sum(terms.values()).item() == pytest.approx((pairs + paper_weight * quantization) / (7 * 6), rel=1e-10)


def test_the_published_theta_has_no_factor_one_half():
    # With DPSH's factor 1/2, which some programs called DHN have, this would be log(1 + e^3).
    z = torch.ones(2, BITS)
    assert DHNLoss(1.0, 0.0)(z, torch.zeros(2, 2))["similarity"].item() == pytest.approx(math.log1p(math.e**6))


def test_the_gradient_is_that_of_finite_differences():
    z, pairs, loss = relaxed_codes(7).requires_grad_(), similar(MULTI, MULTI), DHNLoss(1.0, 0.3)
    assert torch.autograd.gradcheck(lambda v: torch.stack(list(loss(v, pairs).values())).sum(), (z,))


def test_log_cosh_is_that_of_the_standard_library_where_that_has_one():
    for x in (-20.0, -1.0, -0.1, 0.0, 1e-3, 0.7, 3.0, 300.0):
        assert log_cosh(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(
            math.log(math.cosh(x)), rel=1e-10, abs=1e-15
        )


def test_log_cosh_does_not_overflow_and_its_slope_is_tanh():
    # cosh(89) is inf in single precision, so the gradient would be inf / inf.
    x = torch.tensor([-1e4, -90.0, -1.0, 0.0, 0.5, 90.0, 1e4], requires_grad=True)
    value = log_cosh(x)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.allclose(x.grad, torch.tanh(x.detach()), atol=1e-6)


def test_quantization_is_zero_at_codes_and_nowhere_negative():
    # With the bracket misplaced, log(cosh(|z|)) - 1 has a negative minimum at z = 0 and pulls away from the codes.
    z = torch.linspace(-1, 1, 41)[:, None]
    none = torch.zeros(41, 41)
    values = [DHNLoss(1.0, 1.0)(row.repeat(2, 1), none[:2, :2])["quantization"].item() for row in z]
    assert min(values) > -1e-6
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[-1] == pytest.approx(0, abs=1e-6)
    assert np.argmax(values) == 20


def test_quantization_at_zero_pulls_to_plus_one():
    # In torch the derivative of |z| at 0 is 0, like the value of torch.sign, so there would be no pull.
    z = torch.zeros(2, 3, requires_grad=True)
    DHNLoss(1.0, 1.0)(z, torch.zeros(2, 2))["quantization"].backward()
    assert (z.grad < 0).all()


def test_an_image_does_not_pair_with_itself():
    # An image without labels is similar to no image. A pair with itself would pull it to 0.
    z = torch.tensor([[0.5, 0.5], [0.5, -0.5]], requires_grad=True)  # <z_0, z_1> = 0
    term = DHNLoss(1.0, 0.0)(z, torch.zeros(2, 2))["similarity"]
    term.backward()
    assert term.item() == pytest.approx(math.log(2))
    assert torch.allclose(z.grad, z.detach().flip(0) / 2)


@pytest.mark.parametrize("pairs", [1, 0], ids=["all similar", "none similar"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(pairs, scale):
    u = (scale * torch.randn(4, BITS, generator=torch.Generator().manual_seed(0))).requires_grad_()
    total = sum(DHNLoss(1.0, 1.0)(torch.tanh(u), torch.full((4, 4), float(pairs))).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


@BOTH
def test_the_module_relaxes_with_tanh_and_pairs_inside_the_batch(labels):
    # Without tanh, log cosh(|u| - 1) grows without limit, and so does the inner product.
    dhn, rows = module(labels), [5, 2, 0]
    u = 3 * torch.randn(3, BITS, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    terms = dhn.losses(u, Batch(images, labels.float()[rows], torch.tensor(rows)))
    pairs, quantization = paper_objective(torch.tanh(u), labels[rows], 1.0)
    assert terms["similarity"].item() == pytest.approx(pairs / 6, rel=1e-5)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization / (3 * BITS), rel=1e-5)
    assert not any("buffer" in name for name in dhn.state_dict())


def test_codes_of_clustered_data_find_their_cluster():
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0))
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25

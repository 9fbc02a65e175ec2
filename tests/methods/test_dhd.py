"""DHD against slow loops written from the paper, finite differences, and common mistakes."""

import math
from types import SimpleNamespace

import pytest
import torch
from fitting import accuracy_on_clusters, cosine, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.dhd import DHD, DHDLoss, gaussian_quantization

BITS = 6
SINGLE = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.float64)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])
LOSS = DHDLoss(0.2, 0.7, 0.3, 0.5)


def normal(n=5, seed=0):
    return torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def arguments(labels):
    """Relaxed codes of both views, proxies, and labels."""
    return normal().tanh(), normal(seed=1).tanh(), normal(3, seed=2), labels


def paper_terms(weak, strong, proxies, labels, tau, sigma):
    """Return the three terms without weights: means over images, the first over those with a label."""
    classification, distillation, quantization = [], 0.0, 0.0
    for h, changed, y in zip(weak, strong, labels.tolist(), strict=True):
        logits = [cosine(h, proxy) / tau for proxy in proxies]
        total = sum(math.exp(v) for v in logits)
        if any(y):
            shares = [has / sum(y) for has in y]
            classification.append(-sum(s * math.log(math.exp(v) / total) for s, v in zip(shares, logits, strict=True)))
        distillation += (1 - cosine(changed, h)) / len(weak)
        for value in h.tolist():
            plus, minus = (math.exp(-((value - m) ** 2) / (2 * sigma**2)) for m in (1, -1))
            b = 1 if value >= 0 else 0
            entropy = -b * math.log(plus) - (1 - b) * math.log(1 - plus)
            entropy += -(1 - b) * math.log(minus) - b * math.log(1 - minus)
            quantization += entropy / weak.numel()
    return sum(classification) / len(classification), distillation, quantization


def module(labels, bits=BITS, **settings):
    torch.manual_seed(0)
    return learned(DHD, network_on(8, bits), LOSS, labels.float(), **settings)


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    terms = LOSS(*arguments(labels))
    classification, distillation, quantization = paper_terms(*arguments(labels), 0.2, 0.5)
    assert terms["classification"].item() == pytest.approx(classification, rel=1e-10)
    assert terms["distillation"].item() == pytest.approx(0.7 * distillation, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization, rel=1e-10)


@BOTH
def test_the_gradient_is_that_of_finite_differences(labels):
    weak, strong, proxies, _ = arguments(labels)
    target = weak.clone()  # the target of the distillation is a constant

    def total(weak, strong, proxies):
        terms, distilled = LOSS(weak, strong, proxies, labels), LOSS(target, strong, proxies, labels)
        return terms["classification"] + terms["quantization"] + distilled["distillation"]

    assert torch.autograd.gradcheck(total, [tensor.requires_grad_() for tensor in (weak, strong, proxies)])


def test_the_strong_view_learns_from_the_weak_one_and_not_the_reverse():
    # With a gradient to both, the clean view would be drawn to codes that the changed one happens to have.
    weak, strong, proxies, labels = arguments(SINGLE)
    weak.requires_grad_()
    strong.requires_grad_()
    LOSS(weak, strong, proxies, labels)["distillation"].backward()
    assert weak.grad is None
    assert (strong.grad != 0).all()


def test_views_are_weak_and_strong_in_this_order():
    dhd, u = module(SINGLE).double(), torch.stack([normal(), normal(seed=1)], dim=1)
    terms = dhd.losses(u, Batch(torch.zeros(5, 8), SINGLE, torch.arange(5)))
    expected = LOSS(u[:, 0].tanh(), u[:, 1].tanh(), dhd.proxies, SINGLE)
    assert {name: value.item() for name, value in terms.items()} == {k: v.item() for k, v in expected.items()}


def test_quantization_is_smallest_at_the_bits_and_has_no_singular_value():
    # log(1 - g) of a likelihood that was rounded to 1 is infinite; the far Gaussian is at least 1 away.
    values = torch.tensor([-1.0, -0.5, -1e-6, 1e-6, 0.5, 1.0])
    terms = [gaussian_quantization(value[None, None], 0.5).item() for value in values]
    assert terms == pytest.approx(terms[::-1])
    assert terms[0] < terms[1] < terms[2] < 2.2


@pytest.mark.parametrize("labels", [SINGLE, MULTI, 0 * MULTI, 0 * MULTI + 1], ids=["single", "multi", "none", "all"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    dhd, u = module(SINGLE), (scale * torch.stack([normal(), normal(seed=1)], dim=1)).float().requires_grad_()
    total = sum(dhd.losses(u, Batch(torch.zeros(5, 8), labels.float(), torch.arange(5))).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()
    assert torch.isfinite(dhd.proxies.grad).all()


def test_proxies_are_drawn_from_the_seed_and_learned():
    torch.manual_seed(5)
    first, again, other = module(SINGLE, seed=3), module(SINGLE, seed=3), module(SINGLE, seed=4)
    assert torch.equal(first.proxies, again.proxies)
    assert not torch.equal(first.proxies, other.proxies)
    assert "proxies" in first.state_dict()


def test_training_brings_images_of_a_class_together():
    torch.manual_seed(0)
    dhd = module(torch.eye(4).repeat_interleave(30, dim=0), bits=12)

    def losses(u, batch):
        return dhd.losses(torch.stack([u, u], dim=1), batch)

    with_equal_views = SimpleNamespace(train_labels=dhd.train_labels, losses=losses)
    assert accuracy_on_clusters(with_equal_views, nn.Linear(8, 12)) > 0.9


@pytest.mark.parametrize("name", ["temperature", "sigma"])
def test_settings_of_zero_are_refused(name):
    settings = {"temperature": 0.2, "distillation_weight": 0.1, "quantization_weight": 0.1, "sigma": 0.5}
    with pytest.raises(ValueError, match=f"{name} must be above 0, got 0"):
        DHDLoss(**{**settings, name: 0})

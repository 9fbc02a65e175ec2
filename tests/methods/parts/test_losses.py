"""Shared loss terms against loops written from the papers, in double precision."""

import math

import pytest
import torch

from deephash_cli.methods.parts.losses import balanced_mean, class_entropy, pair_likelihood, signs, similar
from deephash_cli.retrieval.codes import binarize


def outputs(n, bits, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, bits, dtype=torch.float64, generator=generator)


def by_hand(u, others, pairs):
    """Return the mean of -log p(s | t), with p = sigmoid(t) for similar pairs and 1 - sigmoid(t) for others."""
    total = 0.0
    for i in range(len(u)):
        for j in range(len(others)):
            t = 0.5 * sum(float(a) * float(b) for a, b in zip(u[i], others[j], strict=True))
            p = 1 / (1 + math.exp(-t))
            total -= math.log(p if pairs[i, j] else 1 - p)
    return total / (len(u) * len(others))


def test_pair_likelihood_is_that_of_the_loop():
    u, others = outputs(5, 6), outputs(8, 6, seed=1)
    pairs = (torch.rand(5, 8, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    assert pair_likelihood(u, others, pairs, balanced=False).item() == pytest.approx(
        by_hand(u, others, pairs), rel=1e-12
    )


def test_theta_has_the_factor_one_half():
    # One public version and several ports leave the factor out: this loss is then log(1 + e^2), not log(1 + e).
    u = torch.tensor([[1.0, 1.0]])
    assert pair_likelihood(u, u, torch.zeros(1, 1), balanced=False).item() == pytest.approx(math.log(1 + math.e))


def test_balanced_pairs_are_half_the_mean_of_each_kind():
    u, others = outputs(5, 6), outputs(8, 6, seed=1)
    pairs = torch.zeros(5, 8)
    pairs[0, :3] = 1
    kinds = {True: [], False: []}
    for i in range(5):
        for j in range(8):
            kinds[bool(pairs[i, j])].append(by_hand(u[i : i + 1], others[j : j + 1], pairs[i : i + 1, j : j + 1]))
    expected = sum(sum(values) / len(values) for values in kinds.values()) / 2
    assert pair_likelihood(u, others, pairs, balanced=True).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
def test_pair_likelihood_has_the_gradient_of_finite_differences(balanced):
    u, others = outputs(3, 4).requires_grad_(), outputs(5, 4, seed=1).requires_grad_()
    pairs = (torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    assert torch.autograd.gradcheck(lambda a, b: pair_likelihood(a, b, pairs, balanced), (u, others))


@pytest.mark.parametrize("pairs", [torch.ones(4, 6), torch.zeros(4, 6)], ids=["all similar", "none similar"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("balanced", [False, True])
def test_one_sided_batches_and_huge_outputs_stay_finite(pairs, scale, balanced):
    # log(1 + exp(t)) overflows to inf at t = 89 in single precision, and its gradient is inf / inf: training would show
    # NaN after some epochs. Clamping t instead would leave no gradient outside the clamp.
    u = (scale * outputs(4, 8)).float().requires_grad_()
    loss = pair_likelihood(u, (scale * outputs(6, 8, seed=1)).float(), pairs, balanced)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(u.grad).all()
    assert u.grad.abs().sum() > 0


def test_a_wrong_pair_pulls_however_wrong_it_is():
    # With t clamped at 50 the gradient would be zero here, so the pair could never be corrected.
    u, other = torch.full((1, 4), 20.0, requires_grad=True), torch.full((1, 4), 20.0)
    pair_likelihood(u, other, torch.zeros(1, 1), balanced=False).backward()
    assert u.grad.flatten().tolist() == [10.0] * 4  # sigmoid(400) u_j / 2


def test_identical_rows_are_a_batch_like_any_other():
    u = outputs(1, 6).repeat(4, 1)
    pairs = torch.eye(4)
    assert pair_likelihood(u, u, pairs, balanced=False).item() == pytest.approx(by_hand(u, u, pairs), rel=1e-12)


def test_both_kinds_of_pairs_have_the_same_weight_and_the_diagonal_none():
    values = outputs(5, 5)
    pairs = (outputs(5, 5, seed=1) > 0.5).double()
    assert pairs.diagonal().any()
    kinds = {
        s: [values[i, j].item() for i in range(5) for j in range(5) if i != j and pairs[i, j] == s] for s in (0, 1)
    }
    expected = sum(sum(kind) / len(kind) for kind in kinds.values())
    assert balanced_mean(values, pairs).item() == pytest.approx(expected, rel=1e-12)


def test_a_kind_without_pairs_has_no_weight():
    # |S| / |S1| is infinite if no pair is similar.
    values = torch.full((3, 3), 2.0)
    for pairs in (torch.zeros(3, 3), torch.eye(3), torch.ones(3, 3)):
        assert balanced_mean(values, pairs).item() == pytest.approx(2)
    assert balanced_mean(values[:1, :1], torch.ones(1, 1)).item() == 0


def test_labels_of_an_image_share_its_target_and_images_without_one_do_not_count():
    log_p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    labels = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 0, 0]])
    expected = (-math.log(0.2) - (math.log(0.5) + math.log(0.2)) / 2) / 2
    assert class_entropy(log_p, labels).item() == pytest.approx(expected)
    assert class_entropy(log_p, 0 * labels).item() == 0


def test_signs_have_two_values():
    # torch.sign(0) is 0, so codes would have three values, and the quantization term would hold u at 0.
    u = torch.tensor([[0.0, -0.0, 1e-30, -1e-30, math.inf, -math.inf]])
    assert signs(u).tolist() == [[1, 1, 1, -1, 1, -1]]
    assert ((signs(u) > 0).numpy() == binarize(u.numpy())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_signs_keep_the_type(dtype):
    assert signs(torch.zeros(1, 2, dtype=dtype)).dtype == dtype


def test_pairs_are_similar_by_a_shared_label():
    # With ==, {cat, sofa} and {cat} would be dissimilar, and most similar pairs of multi-label data would be lost.
    labels = torch.tensor([[1.0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    by_loop = [[float(any(a and b for a, b in zip(one, two, strict=True))) for two in labels] for one in labels]
    assert similar(labels, labels).tolist() == by_loop
    assert similar(labels, labels)[0].tolist() == [1, 1, 0, 0]


def test_an_image_without_labels_is_similar_to_none_not_even_itself():
    nothing = torch.zeros(1, 3)
    assert not similar(nothing, nothing).any()

"""CRH against slow loops written from the equation, finite differences, and common mistakes."""

import math

import pytest
import torch
from fitting import accuracy_on_clusters, cosine, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.crh import CRH, CRHLoss, greedy_assignment, head_width
from deephash_cli.methods.parts.codebooks import codebook, smallest_distance

BITS = 8
SINGLE = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.float64)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])
LOSS = CRHLoss(scale=5.0, margin=0.2, quantization_weight=0.3)


def outputs(n, bits=BITS, seed=0, scale=1.0):
    return scale * torch.randn(n, bits, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def centres_for(labels):
    return codebook("random", labels.shape[1], BITS, seed=1).double()


def paper_objective(u, centres, labels):
    """Return the mean cross-entropy of the images with a label, and the mean of (|tanh u| - 1)^2."""
    classification = []
    for row, y in zip(u, labels.tolist(), strict=True):
        weights = [math.exp(5.0 * (cosine(row, c) - 0.2 * has)) for c, has in zip(centres, y, strict=True)]
        if any(y):
            shares = [has / sum(y) * math.log(w / sum(weights)) for w, has in zip(weights, y, strict=True)]
            classification.append(-sum(shares))
    quantization = [(abs(math.tanh(value)) - 1) ** 2 for value in u.flatten().tolist()]
    return sum(classification) / len(classification), sum(quantization) / len(quantization)


def module(labels, bits=BITS, **settings):
    torch.manual_seed(0)
    settings = {"every_epoch_until": 20, "then_every": 5, **settings}
    return learned(CRH, network_on(8, bits), LOSS, labels.float(), **settings)


def batch_of(labels, rows):
    rows = torch.tensor(rows)
    return Batch(torch.zeros(len(rows), 8), labels.float()[rows], rows)


class At(CRH):
    """CRH in an epoch without a trainer, which records what it logs."""

    current_epoch = 0

    def log(self, name, value):
        self.logged = {**getattr(self, "logged", {}), name: float(value)}


def at(labels, epoch, bits=BITS, **settings):
    crh = module(labels, bits, **settings)
    crh.__class__, crh.current_epoch = At, epoch
    return crh


# the loss


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    u, centres = outputs(7), centres_for(labels)
    terms = LOSS(u, centres, labels)
    classification, quantization = paper_objective(u, centres, labels)
    assert terms["classification"].item() == pytest.approx(classification, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization, rel=1e-10)


@BOTH
def test_the_gradient_is_that_of_finite_differences(labels):
    u, centres = outputs(7).requires_grad_(), centres_for(labels)
    assert torch.autograd.gradcheck(lambda v: torch.stack(list(LOSS(v, centres, labels).values())).sum(), (u,))


def test_images_without_a_label_do_not_break_the_loss():
    # y / |y|_1 would be 0 / 0 there, and NaN the loss of the whole batch.
    u, centres = outputs(7).requires_grad_(), centres_for(MULTI)
    term = LOSS(u, centres, MULTI)["classification"]
    term.backward()
    kept = MULTI.any(dim=1)
    assert term.item() == pytest.approx(LOSS(u[kept], centres, MULTI[kept])["classification"].item())
    assert not u.grad[~kept].any()


@pytest.mark.parametrize("labels", [torch.zeros(4, 3), torch.eye(3)[[0, 0, 0, 0]], torch.eye(4), torch.ones(4, 3)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    u = outputs(4, scale=scale).float().requires_grad_()
    total = sum(LOSS(u, centres_for(labels).float(), labels).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_quantization_at_zero_pulls_to_plus_one():
    # In torch the derivative of |z| at 0 is 0, so there would be no pull.
    u = torch.zeros(2, BITS, dtype=torch.float64, requires_grad=True)
    LOSS(u, centres_for(SINGLE), SINGLE[:2])["quantization"].backward()
    assert (u.grad < 0).all()


# the heads and the centres


@pytest.mark.parametrize(
    ("bits", "classes", "width"),
    [(48, 10, 6), (16, 10, 8), (12, 10, 6), (17, 10, 17), (64, 100, 8), (24, 128, 8), (24, 129, 12), (5, 100, 5)],
)
def test_heads_have_the_smallest_divisor_with_two_codes_for_each_class(bits, classes, width):
    assert head_width(bits, classes) == width


def test_a_centre_is_the_codes_of_its_class_in_all_heads():
    crh = module(torch.eye(10).repeat(2, 1), 24)
    assert crh.codebook.shape == (20, 6)
    assert crh.assignment.shape == (4, 10)
    for number, centre in enumerate(crh.centres()):
        by_hand = [crh.codebook[crh.assignment[head, number]] for head in range(4)]
        assert torch.equal(centre, torch.cat(by_hand))


@pytest.mark.parametrize(("bits", "classes"), [(5, 20), (5, 32), (3, 10)])
def test_short_codes_get_as_many_different_centres_as_there_are(bits, classes):
    centres = module(torch.eye(classes).repeat(2, 1), bits).centres()
    assert len(torch.unique(centres, dim=0)) == min(classes, 2**bits)


def test_assignment_and_codebook_come_from_the_seed_and_are_in_the_checkpoint():
    first, again, other = (module(SINGLE, 12, seed=seed).state_dict() for seed in (1, 1, 2))
    for name in ("codebook", "assignment"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert "class_sums" in first


# the assignment


def test_the_greedy_assignment_is_that_of_the_loops():
    similarity = outputs(5, 9)
    left, expected = similarity.tolist(), {}
    while len(expected) < 5:
        pairs = [(left[i][j], i, j) for i in range(5) for j in range(9)]
        _, i, j = max(pair for pair in pairs if pair[1] not in expected and pair[2] not in expected.values())
        expected[i] = j
    assert greedy_assignment(similarity).tolist() == [expected[i] for i in range(5)]


def test_two_classes_never_get_the_same_code():
    # Each class's nearest code by itself would be the same one for classes that look alike.
    assert sorted(greedy_assignment(torch.ones(6, 6)).tolist()) == list(range(6))


@BOTH
def test_a_class_is_as_similar_to_a_code_as_its_images_are(labels):
    crh = at(labels, epoch=1)
    u = outputs(7).float()
    for rows in ([0, 1, 2, 3], [4, 5, 6]):
        crh.losses(u[rows], batch_of(labels, rows))
    codes, width = torch.where(u >= 0, 1, -1).tolist(), crh.codebook.shape[1]
    crh.on_train_epoch_start()
    for head in range(BITS // width):
        similarity = torch.tensor(
            [
                [
                    sum(
                        sum(a * b for a, b in zip(code[head * width :], word.tolist(), strict=False))
                        for code, y in zip(codes, labels.tolist(), strict=True)
                        if y[number]
                    )
                    / sum(y[number] for y in labels.tolist())
                    for word in crh.codebook
                ]
                for number in range(labels.shape[1])
            ]
        )
        assert crh.assignment[head].tolist() == greedy_assignment(similarity).tolist()


def test_a_class_with_many_images_does_not_come_first():
    # Sums instead of means would give it the code, although its images are less similar.
    crh = at(SINGLE, epoch=1)
    word = crh.codebook[5]
    crh.class_sums[0, : len(word)] = word * 3 / 2  # half of what its three images would have
    crh.class_sums[2, : len(word)] = word
    crh.on_train_epoch_start()
    assert crh.assignment[0, 2] == 5


def test_classes_are_assigned_in_the_first_epochs_and_then_in_some():
    changing = []
    for epoch in range(13):
        crh = at(SINGLE, epoch, every_epoch_until=3, then_every=5)
        crh.class_sums[:, :] = -crh.centres()  # each class would rather have another code
        crh.on_train_epoch_start()
        assert not crh.class_sums.any()  # an epoch's codes are not counted twice
        if crh.logged["codes/reassigned"] > 0:
            changing.append(epoch)
    assert changing == [1, 2, 3, 5, 10]


def test_classes_keep_codes_that_their_images_have():
    crh = at(SINGLE, epoch=1)
    before = crh.centres()
    crh.class_sums += before * crh.train_labels.sum(dim=0)[:, None]
    crh.on_train_epoch_start()
    assert torch.equal(crh.centres(), before)
    assert crh.logged == {"codes/reassigned": 0, "codes/smallest_distance": smallest_distance(before)}


def test_codes_of_clustered_data_find_their_cluster():
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0))
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"every_epoch_until": -1}, "must be at least 0, got -1"), ({"then_every": 0}, "must be at least 1, got 0")],
)
def test_a_setting_out_of_its_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        module(SINGLE, **setting)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        CRHLoss(0, 0.2, 0.05)

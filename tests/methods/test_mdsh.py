"""MDSH against slow loops written from the equation, finite differences, and common mistakes."""

import math

import pytest
import torch
from fitting import accuracy_on_clusters, cosine, learned, network_on
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.methods.mdsh import MDSH, MDSHLoss, log_shares
from deephash_cli.methods.parts.codebooks import codebook, guaranteed_distance, smallest_distance

BITS = 8
SINGLE = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1, 0]]
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.float64)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])
LOSS = MDSHLoss(0.7, 0.3)


def outputs(n, seed=0, scale=1.0):
    return scale * torch.randn(n, BITS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def arguments(labels):
    """Outputs of a batch and of a queue, with pairs by hand: of images that share a label."""
    others, other_labels = outputs(9, seed=1), labels[[0, 3, 1, 2, 5, 6, 4, 4, 0]]
    pairs = [[float(any(a * b for a, b in zip(x, y, strict=True))) for y in other_labels] for x in labels]
    centres = codebook("random", labels.shape[1], BITS, seed=1).double()
    return outputs(7), centres, labels, others, torch.tensor(pairs, dtype=torch.float64)


def paper_objective(u, centres, labels, others, positive):
    """Return the two kinds of cross-entropy, the positive pairs, and the quantization error, each as a mean."""
    centre, pairs, scale = [], [], math.sqrt(BITS)
    for row, y in zip(u, labels.tolist(), strict=True):
        weights = [math.exp(scale * cosine(row, c)) for c in centres]
        if any(y):
            for weight, has in zip(weights, y, strict=True):
                p = weight / sum(weights)
                centre.append(-(has * math.log(p) + (1 - has) * math.log(1 - p)))
    for row, kinds in zip(u, positive.tolist(), strict=True):
        pairs += [
            math.log1p(math.exp(-scale * cosine(row, other))) for other, kind in zip(others, kinds, strict=True) if kind
        ]
    quantization = [(abs(value) - 1) ** 2 for value in u.flatten().tolist()]
    return [sum(values) / len(values) for values in (centre, pairs, quantization)]


def module(labels, bits=BITS, **settings):
    torch.manual_seed(0)
    settings = {"pairs_from_epoch": 0, "queue": 6, **settings}
    return learned(MDSH, network_on(8, bits), LOSS, labels.float(), **settings)


def batch_of(labels, rows):
    rows = torch.tensor(rows)
    return Batch(torch.zeros(len(rows), 8), labels.float()[rows], rows)


# the loss


@BOTH
def test_the_loss_is_that_of_the_loops(labels):
    terms = LOSS(*arguments(labels))
    centre, pairs, quantization = paper_objective(*arguments(labels))
    assert terms["centre"].item() == pytest.approx(centre, rel=1e-10)
    assert terms["pairs"].item() == pytest.approx(0.7 * pairs, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization, rel=1e-10)


@BOTH
def test_the_gradient_is_that_of_finite_differences(labels):
    u, *rest = arguments(labels)
    assert torch.autograd.gradcheck(lambda v: torch.stack(list(LOSS(v, *rest).values())).sum(), (u.requires_grad_(),))


def test_an_image_close_to_its_centre_has_a_finite_loss():
    # Single precision rounds 1 - p to 0 there, and log(1 - p) of a class that the image has not is -inf.
    logits = torch.tensor([[30.0, 0.0, -1.0], [0.0, 0.0, -90.0]], requires_grad=True)
    log_p, log_rest = log_shares(logits)
    exact = logits.double().softmax(dim=1)
    rest = torch.stack([exact[:, [1, 2]].sum(1), exact[:, [0, 2]].sum(1), exact[:, [0, 1]].sum(1)], dim=1)
    assert torch.allclose(log_p.double(), exact.log())
    assert torch.allclose(log_rest.double(), rest.log())
    (log_p.sum() + log_rest.sum()).backward()
    assert torch.isfinite(logits.grad).all()


def test_images_without_a_label_are_not_pushed_from_all_centres():
    # With s = 0 for all classes, the second kind of cross-entropy would do so.
    u, *rest = arguments(MULTI)
    LOSS(u.requires_grad_(), *rest)["centre"].backward()
    assert not u.grad[4].any()
    assert u.grad[[0, 1, 2, 3, 5, 6]].any(dim=1).all()


@pytest.mark.parametrize("labels", [torch.zeros(4, 3), torch.eye(3)[[0, 0, 0, 0]], torch.eye(4), torch.ones(4, 3)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_degenerate_batches_have_a_finite_value_and_gradient(labels, scale):
    u = outputs(4, scale=scale).float().requires_grad_()
    centres = codebook("random", labels.shape[1], BITS, seed=1)
    total = sum(LOSS(u, centres, labels, u.detach(), (labels @ labels.T > 0).float()).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


def test_quantization_at_zero_pulls_to_plus_one():
    # In torch the derivative of |u| at 0 is 0, so there would be no pull.
    _, *rest = arguments(SINGLE)
    u = torch.zeros(7, BITS, dtype=torch.float64, requires_grad=True)
    LOSS(u, *rest)["quantization"].backward()
    assert (u.grad < 0).all()


# the centres


@pytest.mark.parametrize(("classes", "bits"), [(10, 12), (10, 17), (10, 48), (100, 16), (100, 24)])
def test_centres_are_as_far_apart_as_the_bound_guarantees(classes, bits):
    # Centres that are drawn at random have no smallest distance.
    centres = module(torch.eye(classes).repeat(2, 1), bits).centres
    assert centres.shape == (classes, bits)
    assert smallest_distance(centres) >= guaranteed_distance(classes, bits) > 0


def test_the_smallest_distance_of_the_centres_is_logged():
    mdsh, logged = module(SINGLE), {}
    mdsh.log = logged.__setitem__
    mdsh.on_train_epoch_start()
    assert logged == {"codes/smallest_distance": smallest_distance(mdsh.centres)}


def test_centres_come_from_the_seed_and_are_in_the_checkpoint():
    first, again, other = (module(SINGLE, seed=seed).state_dict()["centres"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# the queue


def test_the_queue_has_the_last_outputs_and_is_in_the_checkpoint():
    mdsh = module(SINGLE)
    first, second = outputs(4).float(), outputs(3, seed=1).float()
    mdsh.losses(first, batch_of(SINGLE, [3, 1, 0, 6]))
    mdsh.losses(second.requires_grad_(), batch_of(SINGLE, [2, 3, 5]))
    state = mdsh.state_dict()
    assert torch.equal(state["queue"], torch.cat([second.detach(), first])[:6])
    assert state["queue_indices"].tolist() == [2, 3, 5, 3, 1, 0]
    assert not mdsh.queue.requires_grad


def test_pairs_share_a_label_and_are_two_images_and_not_empty_places():
    # The last image of the training set would be paired with empty places, whose index is -1.
    mdsh, rows = module(MULTI, queue=9), [6, 1, 4, 2]
    mdsh.losses(outputs(4).float(), batch_of(MULTI, rows))
    pairs = mdsh.positive(batch_of(MULTI, rows)).tolist()
    for i, found in zip(rows, pairs, strict=True):
        expected = [float(i != j and any(a * b for a, b in zip(MULTI[i], MULTI[j], strict=True))) for j in rows]
        assert found == expected + [0.0] * 5


def test_the_pair_term_starts_in_its_epoch():
    before, during = (
        module(SINGLE, pairs_from_epoch=first).losses(outputs(7).float(), batch_of(SINGLE, range(7)))["pairs"].item()
        for first in (1, 0)  # without a trainer, it is epoch 0
    )
    assert before == 0
    assert during > 0


def test_codes_of_clustered_data_find_their_cluster():
    clustered = module(torch.eye(4).repeat_interleave(30, dim=0), queue=60)
    assert accuracy_on_clusters(clustered, nn.Linear(8, BITS)) > 0.9  # chance is 0.25


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"queue": 0}, "queue must be at least 1, got 0"), ({"pairs_from_epoch": -1}, "must be at least 0, got -1")],
)
def test_a_setting_out_of_its_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        module(SINGLE, **setting)

"""ADSH against loops written from the paper, brute force, and the mistakes of its re-implementations."""

import itertools
import math

import numpy as np
import pytest
import torch
from fitting import learned, network_on

from deephash_cli.data.loaders import Batch
from deephash_cli.files import read_json
from deephash_cli.methods.adsh import ADSH, ADSHLoss
from deephash_cli.retrieval.codes_folder import load_codes
from deephash_cli.training.checkpoints import LAST, read_checkpoint

BITS = 4
MULTI = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]]).float()  # row 4 has no label


def module(labels=MULTI, weight=0.05, dissimilar="minus_one", **settings):
    torch.manual_seed(0)
    settings = {"sample": 3, "epochs_per_round": 2, "dissimilar": dissimilar, **settings}
    return learned(ADSH, network_on(8, BITS), ADSHLoss(weight), labels, **settings)


def objective(z, v, labels, omega, gamma, r=1.0):
    """Return the paper's objective, by loops over the images of Omega and over the database."""
    total = 0.0
    for row, i in zip(z.tolist(), omega, strict=True):
        for j in range(len(v)):
            s = 1 if any(a and b for a, b in zip(labels[i], labels[j], strict=True)) else -r
            total += (sum(a * b for a, b in zip(row, v[j].tolist(), strict=True)) - BITS * s) ** 2
        total += gamma * sum((a - b) ** 2 for a, b in zip(v[i].tolist(), row, strict=True))
    return total


def one_round(adsh, rows, seed=0):
    u = torch.randn(len(rows), BITS, generator=torch.Generator().manual_seed(seed))
    terms = adsh.losses(u, Batch(torch.zeros(len(rows), 8), MULTI[rows], torch.tensor(rows)))
    return u, terms


def test_the_loss_is_the_objective_of_the_loops_as_means():
    adsh, rows = module(), [5, 0, 4]
    u, terms = one_round(adsh, rows)
    gamma = 0.05 * len(MULTI) * BITS
    total = objective(u.tanh(), adsh.v, MULTI, rows, gamma)
    assert sum(terms.values()).item() * len(rows) * len(MULTI) * BITS**2 == pytest.approx(total, rel=1e-5)


def test_the_gradient_is_that_of_finite_differences():
    adsh, loss = module().double(), ADSHLoss(0.3)
    u = torch.randn(3, BITS, dtype=torch.float64, requires_grad=True)
    targets = torch.where(torch.rand(3, 6) > 0.5, 1.0, -1.0).double()
    assert torch.autograd.gradcheck(lambda x: sum(loss(x, adsh.v, targets, adsh.v[:3]).values()), (u,))


@pytest.mark.parametrize("dissimilar", ["minus_one", "balanced"])
def test_each_bit_of_the_database_is_the_best_of_all_given_the_others(dissimilar):
    adsh, omega = module(dissimilar=dissimilar), [5, 0, 4]
    u, _ = one_round(adsh, omega)
    gamma, r = 0.05 * len(MULTI) * BITS, float(adsh.ratio)
    before, after = adsh.v.clone(), adsh.learned_codes()
    lowest = objective(u.tanh(), before, MULTI, omega, gamma, r)
    for k in range(BITS):
        before[:, k] = after[:, k]  # bits up to k are new, those after it are old
        reached = objective(u.tanh(), before, MULTI, omega, gamma, r)
        assert reached <= lowest + 1e-4
        lowest = reached
        for column in itertools.product((1.0, -1.0), repeat=len(MULTI)):
            other = before.clone()
            other[:, k] = torch.tensor(column)
            assert reached <= objective(u.tanh(), other, MULTI, omega, gamma, r) + 1e-4


def test_a_balanced_target_makes_both_kinds_of_pairs_count_alike():
    similar = sum(bool((a * b).any()) for a in MULTI for b in MULTI)
    assert float(module(dissimilar="balanced").ratio) == pytest.approx(similar / (36 - similar))


def test_only_the_images_of_the_round_decide_the_codes():
    # z_buffer still has outputs of earlier rounds; they belong to weights that the network had then.
    adsh = module()
    one_round(adsh, [0, 1, 2])
    adsh.trainer = type("Trainer", (), {"current_epoch": 2})()
    adsh.on_train_epoch_start()
    assert not adsh.in_sample.any()
    one_round(adsh, [3, 4], seed=1)
    expected = adsh.learned_codes()
    adsh.z_buffer[:3] = 100.0
    assert torch.equal(adsh.learned_codes(), expected)


def test_codes_change_only_when_a_round_begins_and_survive_an_epoch_without_a_step():
    adsh = module()
    start = adsh.v.clone()
    for epoch, moved in ((0, False), (1, False), (2, True)):
        adsh.trainer = type("Trainer", (), {"current_epoch": epoch})()
        adsh.on_train_epoch_start()
        assert bool((adsh.v != start).any()) == moved
        one_round(adsh, [0, 3, 5])


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_outputs_have_a_finite_value_and_gradient(scale):
    adsh = module()
    u = (scale * torch.randn(3, BITS)).requires_grad_()
    total = sum(adsh.losses(u, Batch(torch.zeros(3, 8), MULTI[:3], torch.arange(3))).values())
    total.backward()
    assert math.isfinite(total.item())
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": 0}, "sample must be at least 1, got 0"),
        ({"epochs_per_round": 0}, "epochs_per_round must be at least 1, got 0"),
        ({"dissimilar": "zero"}, "dissimilar must be balanced or minus_one, got 'zero'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        module(**settings)


def test_the_database_has_the_learned_codes_and_the_run_says_so(deephash, tmp_path):
    # Encoding the database with the network instead is a mistake of a public version, and another method.
    rng = np.random.default_rng(0)
    kinds = np.arange(200) % 5
    np.save(tmp_path / "x.npy", (rng.normal(size=(5, 16))[kinds] + rng.normal(size=(200, 16))).astype(np.float32))
    np.save(tmp_path / "y.npy", kinds)
    data = ("dataset=vectors", f"dataset.vectors={tmp_path / 'x.npy'}", f"dataset.labels={tmp_path / 'y.npy'}")
    settings = ("method=adsh", "module.sample=60", "trainer.max_epochs=10", "bits=12", "trainer=cpu", "logger=none")
    result = deephash("train", *data, *settings, f"run_dir={tmp_path / 'run'}")
    assert result.code == 0, result.err
    query, database, _ = load_codes(tmp_path / "run" / "codes")
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / LAST)["state_dict"]
    assert len(state["v"]) == database.n == 180  # the whole database, of which 5 labels each would be the training set
    assert len(np.unique(database.packed, axis=0)) < 20  # one code for a class, or nearly; the network has more
    assert set(np.unique(database.u).tolist()) == {-1, 1}  # they are no outputs of a network
    assert len(np.unique(query.u)) > 2
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["transductive"] is True
    assert metrics["map"] > 0.6
    told = deephash("compare", str(tmp_path / "run"))
    assert "adsh ‡" in told.out
    assert "transductive: trained on the whole database with its labels" in " ".join(told.out.split())
    refused = deephash("train", *data, *settings, "nested=[6]")
    assert refused.code == 2
    assert "ADSH learns codes for the database, and those of one length do not begin those of another" in refused.err

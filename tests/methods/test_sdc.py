"""SDC against slow loops, finite differences, and degenerate batches."""

import pytest
import scipy.stats
import torch
from fitting import accuracy_on_clusters, cosine, learned, network_on
from torch import nn

from deephash_cli.methods.sdc import SDC, SDCLoss, quantiles

BITS = 6


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_objective(u, features, lowest):
    """Return the mean distance of the pairs' cosines from the quantiles of their ranks, and the quantization error."""
    n, u, features = len(u), u.tolist(), features.tolist()
    pairs = sorted(
        ((i, j) for i in range(n) for j in range(n) if i < j), key=lambda pair: cosine(*(features[k] for k in pair))
    )
    calibration = 0.0
    for rank, (i, j) in enumerate(pairs, start=1):
        target = 2 * scipy.stats.beta(5, 5).ppf((rank - 0.5) / len(pairs)) - 1
        calibration += abs(cosine(u[i], u[j]) - max(target, lowest))
    quantization = sum(1 - cosine(row, [1 if value >= 0 else -1 for value in row]) for row in u)
    return calibration / len(pairs), quantization / n


@pytest.mark.parametrize("lowest", [-1.0, 0.0])
def test_the_loss_is_that_of_the_loops(lowest):
    u, features = normal(7, BITS), normal(7, 9, seed=1).abs()
    terms = SDCLoss(5.0, 5.0, lowest, 0.3)(u, features)
    calibration, quantization = paper_objective(u, features, lowest)
    assert terms["calibration"].item() == pytest.approx(calibration, rel=1e-10)
    assert terms["quantization"].item() == pytest.approx(0.3 * quantization, rel=1e-10)


def test_the_gradient_is_that_of_finite_differences():
    u, features = normal(5, BITS).requires_grad_(), normal(5, 9, seed=1)
    loss = SDCLoss(5.0, 5.0, -1.0, 0.3)
    assert torch.autograd.gradcheck(lambda v: torch.stack(list(loss(v, features).values())).sum(), (u,))


def test_features_matter_by_the_order_of_their_cosines_alone():
    # With the cosines themselves as targets, codes of features that are all alike would be all alike.
    u, unit = normal(7, BITS), nn.functional.normalize(normal(7, 9, seed=1))
    crowded = torch.cat([unit, 3 * torch.ones(7, 1)], dim=1)  # each cosine c becomes (c + 9) / 10
    terms = [SDCLoss(5.0, 5.0, -1.0, 1.0)(u, features)["calibration"].item() for features in (unit, crowded)]
    assert terms[0] == pytest.approx(terms[1], rel=1e-12)


def test_the_loss_is_zero_if_the_cosines_are_the_quantiles():
    u = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # codes whose only pair has the median of the distribution
    terms = SDCLoss(5.0, 5.0, -1.0, 1.0)(u, normal(2, 9).float())
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-6)


def test_quantiles_ascend_over_both_signs():
    targets = quantiles(1001, 5.0, 5.0)
    assert (targets[1:] > targets[:-1]).all()
    assert targets[500] == pytest.approx(0, abs=1e-12)
    assert -1 < targets[0] < -0.8
    assert 0.8 < targets[-1] < 1


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("features", [torch.zeros(5, 9), torch.ones(5, 9), normal(5, 9).float()])
def test_degenerate_batches_have_a_finite_value_and_gradient(features, scale, n):
    u = normal(n, BITS, scale=scale).float().requires_grad_()
    total = sum(SDCLoss(5.0, 5.0, -1.0, 1.0)(u, features[:n]).values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize(
    ("settings", "named"), [((0.0, 5.0, -1.0), "alpha must be above 0"), ((5.0, 5.0, -2.0), "lowest")]
)
def test_settings_out_of_their_range_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        SDCLoss(*settings, 1.0)


def test_codes_of_clustered_data_find_their_cluster_without_labels():
    torch.manual_seed(0)
    labels = torch.eye(4).repeat_interleave(30, dim=0)
    module = learned(SDC, network_on(8, BITS), SDCLoss(5.0, 5.0, -1.0, 1.0), labels)
    assert accuracy_on_clusters(module, nn.Linear(8, BITS)) > 0.9  # chance is 0.25

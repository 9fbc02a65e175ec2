"""KMH against loops written from the paper and finite differences, and the fall of its objective."""

import math

import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.errors import ConfigError
from deephash_cli.methods.kmh import KMH, Groups, allocate, corners, move_centres, objective, one_centre

SETTINGS = {"subspace_bits": 4, "directions_per_bit": 1, "affinity_weight": 10.0, "iterations": 10}
WEIGHT = 10.0


def problem(n=50, width=4, bits=3, seed=0):
    """Return vectors, their cells, centres near the corners of a cube, and the target distances."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, width))
    centres = np.zeros((2**bits, width))
    centres[:, :bits] = corners(bits)
    centres += 0.2 * rng.standard_normal(centres.shape)
    targets = np.array([[math.dist(a, b) for b in corners(bits)] for a in corners(bits)])
    return x, nearest(x, centres), centres, targets


def nearest(x, centres):
    return np.array([min(range(len(centres)), key=lambda i: math.dist(row, centres[i])) for row in x])


def paper_objective(x, cells, centres, targets):
    """Return the distortion plus the weighted errors of the distances between centres, as printed in the paper."""
    n, total = len(x), 0.0
    for row, cell in zip(x, cells, strict=True):
        total += math.dist(row, centres[cell]) ** 2 / n
    for i in range(len(centres)):
        for j in range(i + 1, len(centres)):
            w = sum(cells == i) * sum(cells == j) / n**2
            total += WEIGHT * w * (math.dist(centres[i], centres[j]) - targets[i, j]) ** 2
    return total


def terms_of(j, x, cells, centres, targets):
    groups, others = Groups.of(x, cells, len(centres)), np.delete(np.arange(len(centres)), j)
    weights = WEIGHT * groups.shares[j] * groups.shares[others]
    return groups.means[j], groups.shares[j], centres[others], targets[j, others], weights


def test_the_objective_is_that_of_the_loops():
    x, cells, centres, targets = problem()
    assert objective(x, cells, centres, targets, WEIGHT) == pytest.approx(paper_objective(x, cells, centres, targets))


def test_what_is_minimised_in_a_centre_is_the_objective():
    # They are equal up to terms without this centre. The two would differ if one counted pairs twice.
    x, cells, centres, targets = problem()
    j = cells[0]
    moved = centres.copy()
    moved[j] += 0.3
    rise = paper_objective(x, cells, moved, targets) - paper_objective(x, cells, centres, targets)
    terms = terms_of(j, x, cells, centres, targets)
    assert one_centre(moved[j], *terms)[0] - one_centre(centres[j], *terms)[0] == pytest.approx(rise)


def test_its_gradient_is_that_of_finite_differences():
    x, cells, centres, targets = problem()
    terms = terms_of(cells[0], x, cells, centres, targets)
    centre = centres[cells[0]]
    gradient = one_centre(centre, *terms)[1]
    for i, step in enumerate(1e-6 * np.eye(len(centre))):
        slope = (one_centre(centre + step, *terms)[0] - one_centre(centre - step, *terms)[0]) / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-6)


def test_moving_the_centres_never_raises_the_objective():
    x, cells, centres, targets = problem()
    values = [objective(x, cells, centres, targets, WEIGHT)]
    for _ in range(5):
        centres = move_centres(centres, Groups.of(x, cells, len(centres)), targets, WEIGHT)
        values.append(objective(x, cells, centres, targets, WEIGHT))
        cells = nearest(x, centres)
        values.append(objective(x, cells, centres, targets, WEIGHT))
    assert values[1] < values[0]
    assert all(after <= before for before, after in zip(values[::2], values[1::2], strict=False))


def test_without_affinity_centres_are_means():
    x, cells, centres, targets = problem()
    groups = Groups.of(x, cells, len(centres))
    moved = move_centres(centres, groups, targets, 0.0)
    for j in set(cells):
        assert np.allclose(moved[j], x[cells == j].mean(axis=0), atol=0.01)


def test_an_empty_cell_keeps_its_centre():
    x, _, centres, targets = problem(n=3)
    cells = nearest(x, centres)
    moved = move_centres(centres, Groups.of(x, cells, len(centres)), targets, WEIGHT)
    empty = np.setdiff1d(np.arange(len(centres)), cells)
    assert len(empty)
    assert (moved[empty] == centres[empty]).all()
    assert np.isfinite(moved).all()


def test_centres_that_coincide_have_a_finite_gradient():
    value, gradient = one_centre(np.ones(2), np.zeros(2), 0.5, np.ones((1, 2)), np.ones(1), np.ones(1))
    assert math.isfinite(value)
    assert np.isfinite(gradient).all()


def test_directions_are_dealt_out_so_that_products_of_variances_are_alike():
    variances = np.array([64.0, 32.0, 16.0, 8.0, 4.0, 2.0])
    shares = allocate(variances, [3, 3])
    # 64 goes to the first and 32 to the second, then 16 to the second (32 < 64) and 8 to the first (64 < 32 x 16).
    # The products are then equal: 4 goes to the first subspace, and 2 to the one that has room.
    assert [share.tolist() for share in shares] == [[0, 3, 4], [1, 2, 5]]
    assert [share.tolist() for share in allocate(variances / 1e6, [3, 3])] == [share.tolist() for share in shares]
    assert sorted(np.concatenate(allocate(variances, [4, 2])).tolist()) == list(range(6))


@pytest.mark.parametrize("bits", [1, 4, 6, 11, 12])
def test_any_code_length_works(bits):
    x, labels = clusters(40, 14, 2)
    u = encode(fitted(KMH, x, labels, bits, **SETTINGS), x)
    assert u.shape == (40, bits)
    assert set(np.unique(u)) == {-1.0, 1.0}


def test_codes_are_the_bits_of_the_nearest_centres():
    x, labels = clusters(40, 14, 2)
    module = fitted(KMH, x, labels, 6, **{**SETTINGS, "directions_per_bit": 2})
    layer = module.network.hash_layer
    v = (x - layer.projection.mean.numpy()) @ layer.projection.weight.numpy()
    for row, u in zip(v, encode(module, x), strict=True):
        expected = []
        for part, centres in ((row[:8], layer.parts[0].centres), (row[8:], layer.parts[1].centres)):
            index = nearest([part], centres.numpy())[0]
            expected += [1 if index >> k & 1 else -1 for k in range(int(math.log2(len(centres))))]
        assert u.tolist() == expected


def test_directions_are_those_that_the_training_set_has():
    x, labels = clusters(20, 14, 2)
    module = fitted(KMH, x, labels, 4, **{**SETTINGS, "directions_per_bit": 100})
    assert module.network.hash_layer.directions == [12]  # 3 for each bit of the 14


def test_more_bits_than_directions_are_refused():
    x, labels = clusters(20, 5, 2)
    with pytest.raises(ConfigError, match="KMH needs as many principal directions as bits, 8, but"):
        fitted(KMH, x, labels, 8, **SETTINGS)


@pytest.mark.parametrize(
    "setting", [{"subspace_bits": 9}, {"directions_per_bit": 0}, {"affinity_weight": -1.0}, {"iterations": 0}]
)
def test_settings_out_of_range_are_refused(setting):
    x, labels = clusters(10, 5, 2)
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} must be"):
        fitted(KMH, x, labels, 4, **{**SETTINGS, **setting})


def test_identical_features_have_one_code():
    u = encode(fitted(KMH, np.ones((10, 6)), np.eye(2)[np.arange(10) % 2], 4, **SETTINGS), np.ones((10, 6)))
    assert len(np.unique(u, axis=0)) == 1


def test_its_codes_find_neighbours():
    x, labels = clusters(80, 10, 4)
    assert mean_average_precision(encode(fitted(KMH, x, labels, 8, **SETTINGS), x), labels) > 2 / 4  # twice chance

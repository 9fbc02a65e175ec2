"""COSDISH against slow loops and exhaustive search, and common mistakes of its re-implementations."""

import itertools

import numpy as np
import pytest
from fitting import clusters, encode, fitted, mean_average_precision

from deephash_cli.methods import cosdish
from deephash_cli.methods.cosdish import COSDISH, balanced, columns_step, errors, local_search, rows_step
from deephash_cli.methods.parts.hash_layers import RBF

SETTINGS = {
    "columns": None,
    "samples": 5,
    "rounds": 3,
    "restarts": 2,
    "encoder": "linear",
    "ridge_weight": 1.0,
    "anchors": 20,
    "sigma": 1.0,
}
SINGLE = np.eye(4)[np.arange(40) % 4]
MULTI = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]] * 5)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def signs(*shape, seed=0):
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=shape)


def objective(b, columns, s):
    """Return |K S_Omega - B B_Omega'|^2, computed pair by pair."""
    total = 0.0
    for i in range(len(b)):
        for j, column in enumerate(columns):
            total += (b.shape[1] * s[i, j] - sum(x * y for x, y in zip(b[i], b[column], strict=True))) ** 2
    return total


def problem(labels, bits, count, seed=0):
    order = np.random.default_rng(seed).permutation(len(labels))
    columns, rows = order[:count], order[count:]
    return signs(len(labels), bits, seed=seed), columns, rows, balanced(labels @ labels[columns].T > 0)


@BOTH
def test_no_step_raises_the_objective(labels):
    for seed in range(3):
        b, columns, rows, s = problem(labels, 8, 6, seed)
        before = first = objective(b, columns, s)
        for _ in range(3):
            b[columns] = columns_step(b[columns], b[rows], s[columns], s[rows], signs(8, 2, 6))
            middle = objective(b, columns, s)
            b[rows] = rows_step(b[rows], b[columns], s[rows])
            after = objective(b, columns, s)
            assert after <= middle + 1e-9
            assert middle <= before + 1e-9
            before = after
        assert before < first


@BOTH
def test_the_error_of_the_rows_adds_up_to_the_objective(labels):
    b, columns, _, s = problem(labels, 8, 6)
    assert errors(b, b[columns], s).sum() == pytest.approx(objective(b, columns, s), rel=1e-12)


@BOTH
@pytest.mark.parametrize("k", [0, 2])
def test_a_bit_of_the_columns_is_the_best_of_all_given_the_others(labels, k):
    # The search starts from every vector, so its result is the minimiser if Q and p are those of the objective.
    b, columns, rows, s = problem(labels, 3, 5)
    every = np.array(list(itertools.product([-1.0, 1.0], repeat=5)))
    new = columns_step(b[columns], b[rows], s[columns], s[rows], np.broadcast_to(every, (3, *every.shape)))
    # the bits up to k are new when bit k is found, those after it are old
    given = b.copy()
    given[np.ix_(columns, range(k + 1))] = new[:, : k + 1]
    found = objective(given, columns, s)
    values = []
    for candidate in every:
        given[columns, k] = candidate
        values.append(objective(given, columns, s))
    assert found == pytest.approx(min(values), rel=1e-12)


def test_local_search_ends_where_no_flip_helps_and_not_above_its_start():
    rng = np.random.default_rng(0)
    for _ in range(20):
        q, p, start = rng.standard_normal((9, 9)), rng.standard_normal(9), signs(1, 9)
        q = q + q.T
        np.fill_diagonal(q, 0)

        def value(b, q=q, p=p):
            return b @ q @ b + p @ b

        b = local_search(q, p, start)
        assert value(b) <= value(start[0])
        for i in range(9):
            flipped = b.copy()
            flipped[i] *= -1
            assert value(flipped) >= value(b) - 1e-6
        every = np.array(list(itertools.product([-1.0, 1.0], repeat=9)))
        assert value(local_search(q, p, every)) == pytest.approx(min(value(row) for row in every))


def test_rows_get_the_sign_of_their_vote_and_keep_a_bit_without_one():
    columns = np.array([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])
    s = np.array([[1.0, 1.0], [-1.0, -1.0]])
    old = np.array([[-1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
    # The votes are (2, 0, -2) and (-2, 0, 2), so numpy's sign would make the second bit 0.
    assert rows_step(old, columns, s).tolist() == [[1, -1, -1], [-1, 1, 1]]


def test_the_published_vote_alone_raises_the_objective():
    # Dissimilar pairs have the target -r, and K r is below K: the most distant codes are then too far apart.
    b, columns, rows, s = problem(SINGLE, 8, 6)
    for _ in range(2):
        b[columns] = columns_step(b[columns], b[rows], s[columns], s[rows], signs(8, 2, 6))
        b[rows] = rows_step(b[rows], b[columns], s[rows])
    voted = b.copy()
    voted[rows] = np.where(s[rows] @ b[columns] >= 0, 1.0, -1.0)
    assert objective(voted, columns, s) > objective(b, columns, s)


def test_similar_and_dissimilar_pairs_weigh_the_same():
    similar = np.array([[True, False, False], [True, False, False], [False, False, False]])
    s = balanced(similar)
    assert s[similar].tolist() == [1, 1]
    assert s[~similar] == pytest.approx([-2 / 7] * 7)
    assert s.sum() == pytest.approx(0)
    assert balanced(np.ones((2, 2), dtype=bool)).tolist() == [[1, 1], [1, 1]]
    assert not balanced(np.zeros((2, 2), dtype=bool)).any()


def test_codes_of_different_classes_are_apart():
    # With +r for dissimilar pairs, as in a public version, every pair is similar and all codes are close together.
    x, labels = clusters(40, 6, 4)

    def between(module):
        b = module.codes(labels.astype(np.uint8), np.random.default_rng(0))
        return (b @ b.T)[labels @ labels.T == 0].mean()

    module = fitted(COSDISH, x, labels, 8, **SETTINGS)
    assert between(module) < 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosdish, "balanced", lambda similar: np.abs(balanced(similar)))
        assert between(module) > 0


def test_the_linear_encoder_is_the_ridge_regression_of_codes_on_centred_features():
    x, labels = clusters(40, 6, 4)
    module = fitted(COSDISH, x + 10, labels, 8, seed=5, **{**SETTINGS, "ridge_weight": 2.0})
    b, centred = module.codes(labels.astype(np.uint8), np.random.default_rng(5)), x - x.mean(axis=0)
    w = np.linalg.inv(centred.T @ centred + 2 * np.eye(6)) @ centred.T @ b
    assert np.allclose(encode(module, x + 10), centred @ w, atol=1e-4)


def test_the_kernel_encoder_follows_the_scale_of_features():
    x, labels = clusters(60, 6, 3)
    settings = {**SETTINGS, "encoder": "kernel", "ridge_weight": 0.01}
    one, other = (encode(fitted(COSDISH, scale * x, labels, 8, **settings), scale * x) for scale in (1.0, 1e3))
    assert np.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("encoder", ["linear", "kernel"])
def test_its_codes_retrieve(encoder):
    x, labels = clusters(150, 20, 5)
    others, other_labels = clusters(100, 20, 5, seed=9)
    u = encode(fitted(COSDISH, x, labels, 8, **{**SETTINGS, "encoder": encoder}), others)
    assert mean_average_precision(u, other_labels) > 3 / 5  # chance is 1 / 5


@pytest.mark.parametrize("encoder", ["linear", "kernel"])
@pytest.mark.parametrize("columns", [None, 1, 1000])
def test_several_labels_none_and_few_images_work(encoder, columns):
    x = np.random.default_rng(0).standard_normal((8, 4))
    module = fitted(COSDISH, x, MULTI[:8], 16, **{**SETTINGS, "encoder": encoder, "columns": columns})
    assert np.isfinite(encode(module, x)).all()
    if encoder == "kernel":
        rbf = module.network.hash_layer[0]
        assert isinstance(rbf, RBF)
        assert rbf.anchors.shape == (8, 4)


def test_without_restarts_the_search_goes_on_from_the_present_bit():
    x, labels = clusters(40, 6, 4)
    u = encode(fitted(COSDISH, x, labels, 8, **{**SETTINGS, "restarts": 0}), x)
    assert mean_average_precision(u, labels) > 2 / 4  # chance is 1 / 4


@pytest.mark.parametrize("encoder", ["linear", "kernel"])
def test_images_that_are_all_the_same_work(encoder):
    module = fitted(COSDISH, np.ones((8, 4)), SINGLE[:8], 4, **{**SETTINGS, "encoder": encoder})
    assert np.isfinite(encode(module, np.ones((2, 4)))).all()


@pytest.mark.parametrize(
    "change",
    [
        {"columns": 0},
        {"samples": 0},
        {"rounds": 0},
        {"restarts": -1},
        {"encoder": "trees"},
        {"ridge_weight": 0.0},
        {"anchors": 0},
        {"sigma": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(change):
    x, labels = clusters(12, 4, 3)
    with pytest.raises((ValueError, TypeError)):  # a TypeError if the annotations are checked first
        fitted(COSDISH, x, labels, 4, **{**SETTINGS, **change})

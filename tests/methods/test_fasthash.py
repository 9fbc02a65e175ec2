"""FastHash against slow loops written from the paper, and its trees against those of scikit-learn."""

import itertools
from typing import Literal, cast

import numpy as np
import pytest
import torch
from fitting import clusters, encode, fitted, mean_average_precision
from sklearn.ensemble import GradientBoostingClassifier

from deephash_cli.methods import fasthash
from deephash_cli.methods.fasthash import (
    BoostedTrees,
    FastHash,
    Pairs,
    best_of_block,
    infer,
    pair_weights,
    similar_blocks,
)

SETTINGS = {
    "pair_loss": "hinge",
    "passes": 2,
    "block": 100,
    "trees": 10,
    "depth": 3,
    "learning_rate": 0.3,
    "subsample": 0.5,
    "candidates": 3,
}
SINGLE = np.eye(3, dtype=np.uint8)[np.arange(12) % 3]
MULTI = np.array(
    [[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]], np.uint8
)
BOTH = pytest.mark.parametrize("labels", [SINGLE, MULTI], ids=["single-label", "multi-label"])
LOSSES = pytest.mark.parametrize("name", ["hinge", "ksh"])


def paper_loss(name, d, r, similar):
    if name == "hinge":
        return max(0, d / r) ** 2 if similar else max(0, 0.5 - d / r) ** 2
    return ((1 if similar else -1) - (r - 2 * d) / r) ** 2


def shares(labels, i, j):
    return any(a == 1 and b == 1 for a, b in zip(labels[i], labels[j], strict=True))


def random_codes(n, bits, seed=0):
    return np.random.default_rng(seed).choice(np.array([-1.0, 1.0], np.float32), size=(n, bits))


def pairs_after(labels, bits, name="hinge"):
    pairs = Pairs(labels, cast(Literal["hinge", "ksh"], name))
    for bit in random_codes(len(labels), bits).T:
        pairs.append(bit)
    return pairs


def paper_objective(pairs, labels, z, name="hinge"):
    """Return the loss of all pairs of two images after bit z is appended to the codes."""
    codes = np.column_stack([pairs.codes, z])
    return sum(
        paper_loss(name, int((codes[i] != codes[j]).sum()), codes.shape[1], shares(labels, i, j))
        for i, j in itertools.permutations(range(len(codes)), 2)
    )


# step 1: binary inference


@LOSSES
@pytest.mark.parametrize("bits", [0, 1, 4, 7])
def test_pair_weights_are_those_of_the_paper(name, bits):
    weights = pair_weights(name, bits)
    assert weights.shape == (2, bits + 1)
    for similar, d in itertools.product((0, 1), range(bits + 1)):
        expected = paper_loss(name, d, bits + 1, similar) - paper_loss(name, d + 1, bits + 1, similar)
        assert weights[similar, d] == pytest.approx(expected)


@BOTH
@LOSSES
def test_rows_of_weights_are_those_of_the_loops(labels, name):
    pairs, members = pairs_after(labels, 5, name), np.array([7, 2, 4])
    rows = pairs.rows(members)
    for row, i in zip(rows, members, strict=True):
        for j in range(len(labels)):
            d = int((pairs.codes[i] != pairs.codes[j]).sum())
            expected = paper_loss(name, d, 6, shares(labels, i, j)) - paper_loss(name, d + 1, 6, shares(labels, i, j))
            assert row[j] == pytest.approx(0 if i == j else expected, abs=1e-6)


@BOTH
@LOSSES
def test_the_quadratic_form_is_the_loss_up_to_a_constant(labels, name):
    pairs = pairs_after(labels, 5, name)
    a = pairs.rows(np.arange(len(labels)))
    bits = random_codes(len(labels), 4, seed=1).T
    constants = [paper_objective(pairs, labels, z, name) - z @ a @ z / 2 for z in bits]
    assert np.allclose(constants, constants[0], atol=1e-4)


@BOTH
@pytest.mark.parametrize("largest", [2, 100])
def test_blocks_cover_all_images_once_and_are_mutually_similar(labels, largest):
    blocks = similar_blocks(labels, largest, np.random.default_rng(0))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(labels)))
    for block in blocks:
        assert 1 <= len(block) <= largest
        assert all(shares(labels, i, j) for i, j in itertools.permutations(block.tolist(), 2))


def test_blocks_of_single_labels_are_the_classes_and_an_image_without_labels_is_alone():
    assert {tuple(sorted(block % 3)) for block in similar_blocks(SINGLE, 100, np.random.default_rng(0))} == {
        (0,) * 4, (1,) * 4, (2,) * 4,
    }  # fmt: skip
    lonely = [block.tolist() for block in similar_blocks(MULTI, 100, np.random.default_rng(0)) if {4, 7} & set(block)]
    assert sorted(lonely) == [[4], [7]]


@pytest.mark.parametrize("seed", range(10))
def test_a_block_of_equal_codes_gets_its_exact_minimum_and_no_block_gets_worse(seed):
    rng = np.random.default_rng(seed)
    pull, z = rng.standard_normal(6).astype(np.float32), random_codes(6, 1, seed)[:, 0]
    every = np.array(list(itertools.product([-1.0, 1.0], repeat=6)), np.float32)

    def energy(inside, z):
        return z @ inside @ z + 2 * pull @ z

    equal = np.full((6, 6), -rng.random() / 3, np.float32)
    np.fill_diagonal(equal, 0)
    assert energy(equal, best_of_block(equal, pull, z)) == pytest.approx(min(energy(equal, v) for v in every), abs=1e-5)
    other = -rng.random((6, 6)).astype(np.float32)
    other = np.triu(other, 1) + np.triu(other, 1).T
    result = best_of_block(other, pull, z)
    assert energy(other, result) <= energy(other, z) + 1e-5
    for i in range(6):  # a second call does not raise the energy either
        flipped = best_of_block(other, pull, result)
        assert energy(other, flipped) <= energy(other, result) + 1e-5
        assert flipped[i] in (-1, 1)


@BOTH
@LOSSES
@pytest.mark.parametrize("bits", [0, 6])
def test_the_objective_of_step_1_never_rises(labels, name, bits, monkeypatch):
    pairs = pairs_after(labels, bits, name)
    blocks = similar_blocks(labels, 2, np.random.default_rng(0))
    values, z = [], infer(pairs, blocks, 1)
    for members in blocks * 3:
        values.append(paper_objective(pairs, labels, z, name))
        weights = pairs.rows(members)
        inside = weights[:, members]
        z[members] = best_of_block(inside, weights @ z - inside @ z[members], z[members])
    assert all(after <= before + 1e-5 for before, after in itertools.pairwise(values))
    passes = [paper_objective(pairs, labels, infer(pairs, blocks, passes), name) for passes in (1, 2, 3)]
    assert all(after <= before + 1e-5 for before, after in itertools.pairwise(passes))


def test_the_first_bit_holds_classes_together_and_parts_them():
    z = infer(Pairs(SINGLE, "hinge"), similar_blocks(SINGLE, 100, np.random.default_rng(0)), 2)
    assert all(len(set(z[i::3].tolist())) == 1 for i in range(3))
    assert set(z.tolist()) == {-1, 1}


# step 2: boosted trees


def boosted(x, depth=4, seed=0, **settings):
    z = np.where(x[:, 0] * x[:, 1] + 0.3 * np.random.default_rng(seed).standard_normal(len(x)) > 0, 1, -1)
    settings = {"loss": "exponential", "init": "zero", "n_estimators": 12, "learning_rate": 0.3, **settings}
    return GradientBoostingClassifier(max_depth=depth, random_state=seed, **settings).fit(x, z)


def inputs(n, width=5, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_scores_are_the_decisions_of_scikit_learn(depth):
    x, layer = inputs(120), BoostedTrees(2, 12, depth)
    models = [boosted(x, depth), boosted(x, depth, seed=1, subsample=0.5, max_features=2)]
    for bit, model in enumerate(models):
        layer.set_trees(bit, model)
    new = inputs(500, seed=3)
    expected = np.column_stack([model.decision_function(new) for model in models])
    scores = layer(torch.from_numpy(new)).numpy()
    assert np.abs(scores - expected).max() < 1e-5
    assert ((scores >= 0) == (expected >= 0)).all()


def test_an_input_at_a_threshold_goes_where_scikit_learn_sends_it():
    # A threshold lies halfway between two values in float64. Rounding it up to float32 moves one to the other side.
    x = np.array([[1.0], [np.nextafter(np.float32(1), np.float32(2))]] * 10 + [[3.0]] * 5, np.float32)
    x = np.column_stack([x, inputs(25, 1)])
    model = GradientBoostingClassifier(loss="exponential", init="zero", n_estimators=5, max_depth=3, random_state=0)
    model.fit(x, np.array([-1, 1] * 10 + [-1] * 5))
    layer = BoostedTrees(1, 5, 3)
    layer.set_trees(0, model)
    edges = np.concatenate([tree.tree_.threshold for tree in model.estimators_[:, 0]]).astype(np.float32)
    edges = np.concatenate([edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, np.float32(-9)), x[:, 0]])
    grid = np.array(list(itertools.product(edges, [-1.0, 0.0, 1.0])), np.float32)
    assert np.abs(layer(torch.from_numpy(grid))[:, 0].numpy() - model.decision_function(grid)).max() < 1e-5


def test_scores_of_a_large_batch_are_those_of_its_rows(monkeypatch):
    x, layer = inputs(120), BoostedTrees(1, 12, 4)
    layer.set_trees(0, boosted(x))
    whole = layer(torch.from_numpy(x))
    monkeypatch.setattr(fasthash, "_LARGEST", 1000)
    assert torch.allclose(layer(torch.from_numpy(x)), whole, atol=1e-6)


def test_a_bit_that_is_the_same_for_all_needs_no_trees():
    layer = BoostedTrees(2, 12, 4)
    layer.set_constant(1, -1.0)
    assert torch.allclose(layer(torch.from_numpy(inputs(3)))[:, 1], torch.tensor(-1.0))


# the method


def test_the_next_bit_is_inferred_with_predicted_codes(monkeypatch):
    # If z of step 1 were used instead, later bits could not correct the errors of the trees.
    made, inferred = [], []

    class Noted(Pairs):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    def noted(*arguments):
        inferred.append(infer(*arguments))
        return inferred[-1]

    monkeypatch.setattr(fasthash, "Pairs", Noted)
    monkeypatch.setattr(fasthash, "infer", noted)
    x, labels = clusters(60, 6, 4, spread=2.0)
    module = fitted(FastHash, x, labels, 6, **{**SETTINGS, "trees": 1, "depth": 1})
    codes = made[0].codes
    assert (codes == np.where(encode(module, x) >= 0, 1, -1)).all()
    assert (codes != np.column_stack(inferred)).any()


def test_one_class_and_rows_without_labels_give_finite_codes():
    x = inputs(20)
    labels = np.zeros((20, 2))
    labels[:15, 0] = 1
    module = fitted(FastHash, x, labels, 6, **{**SETTINGS, "candidates": 300})
    assert all(np.isfinite(value.numpy()).all() for value in module.network.state_dict().values())


@pytest.mark.parametrize("second", [False, True], ids=["single-label", "multi-label"])
def test_codes_of_new_items_retrieve_what_shares_a_label(second):
    labels = np.eye(4)[np.arange(160) % 4]
    if second:
        labels = np.maximum(labels, np.eye(4)[np.arange(160) // 2 % 4])
    rng = np.random.default_rng(0)
    x = labels @ (3 * rng.standard_normal((4, 8))) + 0.3 * rng.standard_normal((160, 8))
    module = fitted(FastHash, x[:100], labels[:100], 12, **SETTINGS)
    chance = (labels[100:] @ labels[100:].T > 0).mean()
    assert mean_average_precision(encode(module, x[100:]), labels[100:]) > (1 + chance) / 2


def test_the_same_seed_gives_the_same_trees_and_another_seed_gives_others():
    x, labels = clusters(60, 6, 4, spread=2.0)
    one, same, other = (fitted(FastHash, x, labels, 3, seed=seed, **SETTINGS) for seed in (0, 0, 1))
    assert torch.equal(one.network.hash_layer.leaf, same.network.hash_layer.leaf)
    assert not torch.equal(one.network.hash_layer.leaf, other.network.hash_layer.leaf)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("passes", 0),
        ("block", 0),
        ("trees", 0),
        ("depth", 0),
        ("candidates", 0),
        ("learning_rate", 0.0),
        ("subsample", 0.0),
        ("subsample", 1.5),
    ],
)
def test_a_setting_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        fitted(FastHash, *clusters(10, 3, 2), 4, **{**SETTINGS, name: value})


def test_an_unknown_loss_is_refused():
    with pytest.raises((ValueError, TypeError)):
        fitted(FastHash, *clusters(10, 3, 2), 4, **{**SETTINGS, "pair_loss": "bre"})

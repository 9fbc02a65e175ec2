"""Codebooks: Hadamard matrices against their definition, distances against loops, several labels by hand."""

import numpy as np
import pytest
import torch

from deephash_cli.methods.parts.codebooks import (
    code_of_labels,
    codebook,
    guaranteed_distance,
    hadamard,
    separated,
    smallest_distance,
)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 60, 64, 76, 96, 128, 256])
def test_any_two_rows_of_a_hadamard_matrix_differ_in_half_of_their_places(size):
    matrix = hadamard(size)
    assert set(matrix.ravel().tolist()) <= {1, -1}
    assert np.array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.parametrize("size", [3, 6, 10, 18, 52, 92])
def test_sizes_without_a_construction_give_no_matrix(size):
    assert hadamard(size) is None


@pytest.mark.parametrize(("classes", "bits"), [(10, 12), (10, 16), (20, 12), (21, 24), (96, 48), (128, 64)])
def test_hadamard_codes_are_half_of_the_bits_apart_at_the_lengths_of_the_papers(classes, bits):
    # scipy.linalg.hadamard, and public versions of CSQ, stop at 12, 24 and 48 bits
    codes = codebook("hadamard", classes, bits, seed=0)
    assert codes.shape == (classes, bits)
    assert smallest_distance(codes) == bits // 2


def test_no_bit_is_the_same_in_all_codes():
    codes = codebook("hadamard", 10, 48, seed=0)
    assert (codes.std(dim=0) > 0).all()


@pytest.mark.parametrize(("classes", "bits"), [(10, 18), (100, 16), (30, 12)])
def test_without_enough_rows_a_search_is_better_than_chance(classes, bits):
    searched, drawn = ([codebook(kind, classes, bits, seed) for seed in range(5)] for kind in ("hadamard", "random"))
    assert min(map(smallest_distance, searched)) > max(map(smallest_distance, drawn))


@pytest.mark.parametrize("kind", ["hadamard", "search", "random"])
def test_the_seed_decides_the_codes(kind):
    assert torch.equal(codebook(kind, 5, 20, 1), codebook(kind, 5, 20, 1))
    assert not torch.equal(codebook(kind, 5, 20, 1), codebook(kind, 5, 20, 2))


def test_the_smallest_distance_is_that_of_the_loops():
    codes = codebook("random", 6, 9, seed=3)
    by_hand = min(sum(a != b for a, b in zip(codes[i], codes[j], strict=True)) for i in range(6) for j in range(i))
    assert smallest_distance(codes) == by_hand


def test_several_labels_vote_ties_are_those_given_and_no_label_is_no_code():
    codes = torch.tensor([[1.0, 1, -1], [1, -1, -1], [-1, -1, 1]])
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
    ties = torch.tensor([[-1.0, -1, -1]]).repeat(4, 1)
    assert code_of_labels(codes, labels, ties).tolist() == [[1, 1, -1], [1, -1, -1], [1, -1, -1], [0, 0, 0]]
    assert code_of_labels(codes, labels, -ties).tolist()[1] == [1, 1, -1]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"codes of classes must be hadamard, search or random, got 'x'"):
        codebook("x", 2, 4, 0)


@pytest.mark.parametrize(
    ("codes", "bits", "distance"),
    # 9 balls of radius 3 have 9 * 299 of the 4096 codes of 12 bits, and those of radius 4 have 9 * 794
    [(10, 12, 4), (32, 5, 1), (33, 5, 0), (2, 8, 8), (1, 8, 8), (17, 5, 1), (16, 5, 1)],
)
def test_the_guaranteed_distance_is_that_of_the_bound(codes, bits, distance):
    assert guaranteed_distance(codes, bits) == distance


@pytest.mark.parametrize(
    ("classes", "bits", "distance"),
    # Repetition, even weight, extended Hamming, Reed-Muller, extended BCH, and even weight again
    [(2, 9, 9), (128, 8, 2), (16, 8, 4), (32, 16, 8), (128, 16, 6), (1000, 12, 2)],
)
def test_short_separated_codes_reach_the_distance_of_good_linear_codes(classes, bits, distance):
    codes = separated(classes, bits, seed=0)
    assert codes.shape == (classes, bits)
    assert smallest_distance(codes) >= distance >= guaranteed_distance(classes, bits)
    assert (codes.std(dim=0) > 0).all()


@pytest.mark.parametrize(("classes", "bits"), [(2, 48), (3, 48), (10, 17), (100, 20), (10, 48)])
def test_long_separated_codes_are_as_far_apart_as_guaranteed(classes, bits):
    for seed in range(3):
        codes = separated(classes, bits, seed)
        assert smallest_distance(codes) >= guaranteed_distance(classes, bits)
        assert (codes.std(dim=0) > 0).all()


def test_more_classes_than_codes_share_them_evenly():
    codes = separated(10, 3, seed=0)
    counts = torch.unique(codes, dim=0, return_counts=True)[1]
    assert sorted(counts.tolist()) == [1, 1, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("bits", [12, 20])
def test_the_seed_decides_separated_codes(bits):
    assert torch.equal(separated(5, bits, 1), separated(5, bits, 1))
    assert not torch.equal(separated(5, bits, 1), separated(5, bits, 2))

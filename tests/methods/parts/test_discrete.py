"""Discrete coordinate descent against brute force, and the start that its re-implementations get wrong."""

import itertools

import pytest
import torch

from deephash_cli.methods.parts.discrete import cyclic_coordinate_descent

ROWS, BITS, CLASSES = 5, 4, 3
SEEDS = pytest.mark.parametrize("seed", range(5))


def problem(seed):
    """Return start, Q and W. Half of the cases use small whole numbers, which make many bits ties."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        values = torch.randn(*shape, dtype=torch.float64, generator=generator)
        return values if seed % 2 else values.round()

    start = torch.where(normal(ROWS, BITS) >= 0, 1.0, -1.0).double()
    return start, 3 * normal(ROWS, BITS), normal(BITS, CLASSES)


def objective(b, q, w):
    """Return |B W|^2 - 2 tr(B'Q), computed by loops."""
    total = 0.0
    for i in range(len(b)):
        for c in range(w.shape[1]):
            total += sum(float(b[i, k] * w[k, c]) for k in range(len(w))) ** 2
        total -= 2 * sum(float(b[i, k] * q[i, k]) for k in range(len(w)))
    return total


@SEEDS
def test_each_bit_is_the_best_of_all_given_the_others(seed):
    b, q, w = problem(seed)
    swept = cyclic_coordinate_descent(b, q, w, 1)
    for k in range(BITS):
        b[:, k] = swept[:, k]  # bits up to k are new, those after it are old
        best = objective(b, q, w)
        for column in itertools.product((1.0, -1.0), repeat=ROWS):
            other = b.clone()
            other[:, k] = torch.tensor(column)
            assert best <= objective(other, q, w) + 1e-9


@SEEDS
def test_no_sweep_raises_the_objective(seed):
    b, q, w = problem(seed)
    for _ in range(4):
        after = cyclic_coordinate_descent(b, q, w, 1)
        assert objective(after, q, w) <= objective(b, q, w) + 1e-9
        b = after


@SEEDS
def test_it_ends_where_no_bit_can_be_changed_for_the_better(seed):
    b, q, w = problem(seed)
    end = cyclic_coordinate_descent(b, q, w, 100)
    assert torch.equal(cyclic_coordinate_descent(end, q, w, 1), end)
    for i, k in itertools.product(range(ROWS), range(BITS)):
        flipped = end.clone()
        flipped[i, k] *= -1
        assert objective(end, q, w) <= objective(flipped, q, w) + 1e-9


def test_many_sweeps_are_one_sweep_many_times():
    b, q, w = problem(1)
    thrice = b
    for _ in range(3):
        thrice = cyclic_coordinate_descent(thrice, q, w, 1)
    assert torch.equal(cyclic_coordinate_descent(b, q, w, 3), thrice)


def test_what_it_is_given_stays_as_it_is():
    given = problem(1)
    before = [tensor.clone() for tensor in given]
    cyclic_coordinate_descent(*given, 3)
    assert all(torch.equal(tensor, old) for tensor, old in zip(given, before, strict=True))


def test_a_zero_becomes_plus_one():
    zeros = torch.zeros(ROWS, BITS)
    assert (cyclic_coordinate_descent(zeros - 1, zeros, torch.zeros(BITS, CLASSES), 1) == 1).all()


@SEEDS
def test_a_start_from_zeros_still_gives_codes_of_two_values(seed):
    # Public versions start from zeros: with torch.sign a bit whose sum is 0 stays 0, and codes have three values.
    _, q, w = problem(seed)
    q[0] = 0
    assert (cyclic_coordinate_descent(torch.zeros(ROWS, BITS).double(), q, w, 1).abs() == 1).all()


def test_one_bit_is_the_sign_of_q():
    q = torch.tensor([[0.5], [-0.5], [0.0]])
    b = cyclic_coordinate_descent(-torch.ones(3, 1), q, torch.tensor([[2.0, 1.0]]), 3)
    assert b.flatten().tolist() == [1, -1, 1]

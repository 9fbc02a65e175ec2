"""Codes that stand for classes: one of +1 and -1 for each class, far from all others, which a network then learns."""

from itertools import accumulate
from math import comb

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from deephash_cli.methods.parts.losses import signs

KINDS = ("hadamard", "search", "random")
_TRIES = 100  # codes that the search draws for each class
_LISTED = 16  # up to this code length, all codes are listed to find the best ones


def codebook(kind: str, classes: int, bits: int, seed: int) -> Float[Tensor, "classes bits"]:
    """Make a code of +1 and -1 for each class. The same arguments give the same codes.

    Args:
        kind: ``hadamard`` takes rows of a Hadamard matrix and their negatives, which are bits/2 apart, and searches if
            there is no such matrix or it has too few rows. ``search`` draws many codes for one class after the other
            and keeps the one that is farthest from those before it. ``random`` draws each bit by itself, as the
            Bernoulli centres of CSQ.
        classes: Number of classes.
        bits: Code length.
        seed: Seed of all random draws, and of the order of the rows.

    Raises:
        ValueError: If ``kind`` is none of the three.
    """
    if kind not in KINDS:
        raise ValueError(f"the codes of classes must be hadamard, search or random, got {kind!r}")
    rng = np.random.default_rng(seed)
    rows = hadamard(bits) if kind == "hadamard" else None
    if kind == "random":
        codes = rng.choice([-1.0, 1.0], (classes, bits))
    elif rows is None or classes > 2 * bits:
        codes = _search(classes, bits, rng)
    else:
        # A Hadamard matrix has a column of 1s, which would be a bit that tells nothing
        rows = rows * rng.choice([-1.0, 1.0], (bits, 1))
        # Negatives come last: as few as possible, because a code and its negative are decided by the same direction
        codes = np.concatenate([rng.permutation(rows), -rng.permutation(rows)])[:classes]
    return torch.from_numpy(codes).float()


def separated(classes: int, bits: int, seed: int) -> Float[Tensor, "classes bits"]:
    """Make a code of +1 and -1 for each class, any two of which are at least ``guaranteed_distance`` apart.

    Up to 16 bits, they are words of the lexicode with the largest distance that has enough words. Longer codes are
    chosen one after the other, each the farthest of many random codes from those before it, of which more are drawn
    until one is far enough; two of them are each other's negatives. The same arguments give the same codes.

    Args:
        classes: Number of classes. If there are more of them than codes, some share a code.
        bits: Code length.
        seed: Seed of all random draws, and of the order of the words.
    """
    rng = np.random.default_rng(seed)
    if bits > _LISTED and classes > 2:
        codes = _search(classes, bits, rng, guaranteed_distance(classes, bits))
    elif bits > _LISTED:  # random draws would not find the only code that is far enough
        codes = np.array([[1.0], [-1.0]])[:classes] * rng.choice([-1.0, 1.0], bits)
    else:
        lexicodes = (_lexicode(bits, distance) for distance in range(bits, 0, -1))
        words = next((words for words in lexicodes if len(words) >= classes), np.arange(2**bits))
        words = rng.permutation(np.resize(words, max(classes, len(words))))[:classes] ^ rng.integers(2**bits)
        codes = np.where(words[:, None] >> np.arange(bits) & 1, 1.0, -1.0)
    idle = (codes == codes[0]).all(axis=0)  # a bit that tells nothing; with any other values, distances can only grow
    codes[:, idle] = rng.permuted(np.resize([-1.0, 1.0], (idle.sum(), classes)), axis=1).T
    return torch.from_numpy(codes).float()


def guaranteed_distance(codes: int, bits: int) -> int:
    """Return the largest distance that so many codes certainly can have from each other; 0 if there are too few codes.

    It is the largest d of the Gilbert-Varshamov bound, ``(codes - 1) V(d - 1) < 2^bits``, where V(r) is the number of
    codes within distance r of a code: as long as the chosen codes do not cover all codes to that distance, there is one
    more.

    Args:
        codes: Number of codes.
        bits: Code length.
    """
    volumes = accumulate(comb(bits, radius) for radius in range(bits))
    return sum((codes - 1) * volume < 2**bits for volume in volumes)


def smallest_distance(codes: Float[Tensor, "classes bits"]) -> int:
    """Return the smallest Hamming distance of two different codes of a codebook; its length if there is only one.

    Args:
        codes: Codes of +1 and -1.
    """
    distances = (codes.shape[1] - codes @ codes.T) / 2
    distances.fill_diagonal_(codes.shape[1])
    return round(distances.min().item())


def code_of_labels(
    codebook: Float[Tensor, "classes bits"], labels: Float[Tensor, "n classes"], ties: Float[Tensor, "n bits"]
) -> Float[Tensor, "n bits"]:
    """Return a code for each image: that of its class, or the majority of each bit over its classes.

    This is the centroid of several centres of CSQ (Yuan et al., CVPR 2020, section 3.2). An image without a label gets
    zeros, which are a target for nobody.

    Args:
        codebook: Code of each class, of +1 and -1.
        labels: Multi-hot labels.
        ties: Codes of +1 and -1 that decide bits of which half the classes of an image have +1 and half -1.
    """
    votes = labels @ codebook
    codes = torch.where(votes == 0, ties, signs(votes))
    return codes * (labels.sum(dim=1, keepdim=True) > 0)


def hadamard(size: int) -> Float[np.ndarray, "size size"] | None:
    """Return a Hadamard matrix: rows of +1 and -1, any two of which differ in half of their places.

    It is built by Sylvester's doubling and by both of Paley's constructions from primes, which give a matrix
    for every multiple of 4 up to 88 except 52, and for most up to 256.

    Args:
        size: Number of rows and of columns.

    Returns:
        The matrix, or None if these constructions give none.
    """
    if size in (1, 2):
        return scipy.linalg.hadamard(size).astype(float)
    if size % 4:
        return None
    if _is_prime(size - 1):
        core = _legendre(size - 1)
        return np.eye(size) + np.block([[np.zeros((1, 1)), np.ones((1, size - 1))], [-np.ones((size - 1, 1)), core]])
    if (half := hadamard(size // 2)) is not None:
        return np.kron(scipy.linalg.hadamard(2), half)
    prime = size // 2 - 1
    if prime % 4 == 1 and _is_prime(prime):
        ones = np.ones((1, prime))
        conference = np.block([[np.zeros((1, 1)), ones], [ones.T, _legendre(prime)]])
        return np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(size // 2), [[1, -1], [-1, -1]])
    return None


def _lexicode(bits: int, distance: int) -> Int64[np.ndarray, " words"]:
    """Return the numbers of the words that one gets by taking each that is far enough from all that are taken.

    They are closed under exclusive or (Conway and Sloane, 1986), so each new word doubles them.
    """
    every = np.arange(2**bits)
    nearest, words = np.bitwise_count(every), np.zeros(1, int)
    while (nearest >= distance).any():
        new = (nearest >= distance).argmax()
        words = np.concatenate([words, words ^ new])
        nearest = np.minimum(nearest, nearest[every ^ new])
    return words


def _legendre(prime: int) -> Float[np.ndarray, "q q"]:
    """Return Jacobsthal's matrix: 1 where the row less the column is a square modulo the prime, 0 on the diagonal."""
    squares = np.zeros(prime)
    squares[1:] = -1
    squares[np.arange(1, prime) ** 2 % prime] = 1
    return squares[np.subtract.outer(np.arange(prime), np.arange(prime)) % prime]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _search(classes: int, bits: int, rng: np.random.Generator, least: int = 0) -> Float[np.ndarray, "classes bits"]:
    """Choose codes one after the other, each the farthest of many random codes from all that are chosen.

    Args:
        classes: Number of codes.
        bits: Code length.
        rng: Source of the random codes.
        least: Smallest distance that is far enough: more codes are drawn until one has it.
    """
    codes = np.empty((classes, bits))
    for chosen in range(classes):
        while True:
            drawn = rng.choice([-1.0, 1.0], (_TRIES, bits))
            largest = (drawn @ codes[:chosen].T).max(axis=1, initial=-bits)
            if (bits - largest.min()) / 2 >= least:
                break
        codes[chosen] = drawn[largest.argmin()]
    return codes

"""Methods on features without a backbone: what their tests share."""

import math

import numpy as np
import torch
from torch import nn

from deephash_cli.data.augment import Views
from deephash_cli.data.loaders import Batch
from deephash_cli.models import HashingNetwork
from deephash_cli.schedules import constant


def network_on(width, bits, hidden_units=0, output_norm=False):
    """A network whose backbone gives its input back: features are vectors of this length."""
    backbone = nn.Identity()
    backbone.num_features = width
    return HashingNetwork(
        backbone, bits, image_size=8, mean=[0.5] * 3, std=[0.5] * 3, frozen=True, frozen_norm=False, standardize=False,
        hidden_units=hidden_units, dropout=0.0, channels_last=False, mirrored=False, output_norm=output_norm,
    )  # fmt: skip


def learned(method, network, loss, labels, seed=0, **settings):
    """A method learned by gradient, before its first step. Two views of vectors are the same vectors twice."""
    same = nn.Identity()
    usual = {
        "optimizer": lambda groups: torch.optim.SGD(groups, 0.1),
        "augment": Views(same, same, [0.0, 0.0]) if getattr(method, "views", 1) == 2 else same,
    }
    return method(
        network=network, loss=loss, scheduler=constant, backbone_lr=0.1, train_labels=labels, seed=seed,
        **{**usual, **settings},
    )  # fmt: skip


def opposite_clusters():
    """Three classes of two clusters on opposite sides of 0, which no code of single bits keeps: (x, labels)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.eye(3)[torch.arange(60) % 3]
    sides = torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0)[:, None]
    x = sides * (labels @ torch.randn(3, 8, generator=generator)) + torch.randn(60, 8, generator=generator) / 8
    return x, labels


def is_nearer_to_similar(codes, labels):
    """Whether each code is nearer to those of its own label than to others, on average."""
    distances, near = (codes[:, None] ^ codes).sum(dim=2).float(), labels @ labels.T > 0
    return [bool(row[mine].mean() < row[~mine].mean()) for row, mine in zip(distances, near, strict=True)]


def accuracy_on_clusters(module, layer):
    """Share of vectors whose nearest other code is of their own of four classes, after 60 steps of a linear layer."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(4), 30)
    x = torch.from_numpy(rng.normal(size=(4, 8))[classes] * 3 + rng.normal(size=(120, 8))).float()
    labels = module.train_labels
    assert (labels.argmax(dim=1).numpy() == classes).all()
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    for _ in range(60):
        rows = torch.from_numpy(rng.choice(120, 24, replace=False))
        loss = sum(module.losses(layer(x[rows]), Batch(x[rows], labels[rows], rows)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes = layer(x) >= 0
    distances = (codes[:, None] != codes[None]).sum(-1).fill_diagonal_(codes.shape[1] + 1)
    return (classes[distances.argmin(dim=1).numpy()] == classes).mean()


def fitted(method, x, labels, bits, seed=0, scaling="none", **settings):
    """A classic method after its one step."""
    x, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(labels, dtype=torch.float32)
    network = network_on(x.shape[1], bits)
    module = method(network=network, train_labels=labels, seed=seed, scaling=scaling, **settings)
    module.training_step(Batch(x, labels, torch.arange(len(x))), 0)
    return module


def encode(module, x):
    """Continuous codes."""
    with torch.no_grad():
        return module.network(torch.as_tensor(x, dtype=torch.float32)).numpy()


def clusters(n, width, classes, seed=0, spread=0.5):
    """Vectors around one random centre a class, with one label each: (x, multi-hot labels)."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(n) % classes
    centres = np.random.default_rng(1).standard_normal((classes, width))
    return centres[numbers] + spread * rng.standard_normal((n, width)), np.eye(classes)[numbers]


def cosine(a, b):
    """Of two lists or rows of a tensor, in a loop."""
    a, b = ([float(value) for value in row] for row in (a, b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def mean_average_precision(u, labels):
    """Of every item among all others, ties in Hamming distance in the order of the rows."""
    codes = np.where(u >= 0, 1, -1)
    values = []
    for i, code in enumerate(codes):
        others = np.delete(np.arange(len(codes)), i)
        order = others[np.argsort(-(codes[others] @ code), kind="stable")]
        hits = labels[order] @ labels[i] > 0
        if hits.any():
            values.append((np.cumsum(hits)[hits] / (1 + np.flatnonzero(hits))).mean())
    return np.mean(values)

"""Methods fitted on features without a backbone: what the tests of the methods share."""

import numpy as np
import torch
from torch import nn

from deephash_cli.data.loaders import Batch
from deephash_cli.models import HashingNetwork


def network_on(width, bits):
    """A network whose backbone gives its input back: features are vectors of this length."""
    backbone = nn.Identity()
    backbone.num_features = width
    return HashingNetwork(
        backbone, bits, image_size=8, mean=[0.5] * 3, std=[0.5] * 3, frozen=True, standardize=False, hidden_units=0,
        dropout=0.0, channels_last=False,
    )  # fmt: skip


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

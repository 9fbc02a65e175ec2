"""What the base class does for methods that compare two views, or that have weights of their own."""

import pytest
import torch
from fitting import learned, network_on
from torch import nn

from deephash_cli.data.augment import Views
from deephash_cli.data.loaders import Batch
from deephash_cli.errors import ConfigError
from deephash_cli.methods.base import HashingModule

LABELS = torch.eye(2)[torch.arange(8) % 2]


class Agreement(HashingModule):
    """Bring the outputs for two views together; a scale of its own is learned."""

    supervision = "none"
    views = 2

    def losses(self, u, batch):
        self.seen = u
        return {"views": (self.loss.weight * u[:, 0] - u[:, 1]).square().mean()}


class OneView(Agreement):
    """The same with a single view."""

    views = 1


class Comparison(HashingModule):
    """Record the features of the images of a step."""

    supervision = "none"
    compares_features = True

    def losses(self, u, batch):
        self.seen = batch.inputs
        return {"sum": u.sum()}


class TwoComparisons(Comparison):
    """The same for two views."""

    views = 2


class Scale(nn.Module):
    """A weight that is not the network's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))


def step(module, x=None):
    x = torch.randn(8, 5) if x is None else x
    module.trainer = type("Trainer", (), {"global_step": 0})()
    return x, module.training_step(Batch(x, LABELS, torch.arange(8)), 0)


def test_the_loss_sees_both_views_of_each_image():
    module = learned(Agreement, network_on(5, 4), Scale(), LABELS)
    module.augment = Views(nn.Identity(), nn.Identity(), [0.0, 0.5])
    x, _ = step(module)
    assert module.seen.shape == (8, 2, 4)
    assert torch.equal(module.seen[:, 0], module.network(x))
    assert not torch.equal(module.seen[:, 1], module.network(x))


def test_a_methods_own_weights_learn_and_are_in_the_checkpoint():
    module = learned(Agreement, network_on(5, 4), Scale(), LABELS)
    module.trainer = type("Trainer", (), {"estimated_stepping_batches": 1, "precision_plugin": None})()
    optimizer = module.configure_optimizers()["optimizer"]
    assert any(weight is module.loss.weight for group in optimizer.param_groups for weight in group["params"])
    assert "loss.weight" in module.state_dict()


def test_the_number_of_views_must_fit_the_method():
    with pytest.raises(ConfigError, match="Agreement compares two views of each image"):
        learned(Agreement, network_on(5, 4), Scale(), LABELS, augment=nn.Identity())
    two = Views(nn.Identity(), nn.Identity(), [0.0, 0.0])
    with pytest.raises(ConfigError, match="OneView learns from one view of each image"):
        learned(OneView, network_on(5, 4), Scale(), LABELS, augment=two)


def test_a_loss_that_compares_features_sees_those_of_the_backbone_for_images_too():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    backbone.num_features = 5
    network = network_on(5, 4)
    network.backbone = backbone
    module = learned(Comparison, network, nn.Identity(), LABELS)
    images = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8)
    step(module, images)
    assert torch.equal(module.seen, network.features(images))
    assert not module.seen.requires_grad  # a target that learns would come to meet the codes
    x, _ = step(module)
    assert torch.equal(module.seen, x)


def test_features_of_both_views_are_those_of_the_images():
    module = learned(TwoComparisons, network_on(5, 4), nn.Identity(), LABELS)
    module.augment = Views(nn.Identity(), nn.Identity(), [0.0, 0.5])
    x, _ = step(module)
    assert module.seen.shape == (8, 2, 5)
    assert torch.equal(module.seen[:, 0], x)
    assert not torch.equal(module.seen[:, 1], x)

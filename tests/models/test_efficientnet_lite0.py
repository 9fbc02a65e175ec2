"""EfficientNet-Lite0 without timm against timm's: weights, what is drawn, outputs, gradients, and what is recorded."""

import pytest
import torch

from deephash_cli.models import efficientnet_lite0, timm_backbone, timm_networks

NAME = efficientnet_lite0.NAME


@pytest.fixture
def twins(monkeypatch):
    """Return a function that builds the network twice, without and with timm, with what is drawn after each."""

    def build(weights, **settings):
        torch.manual_seed(3)
        ours, drawn = timm_backbone(NAME, weights, **settings), torch.rand(4)
        with monkeypatch.context() as patch:
            patch.setattr(timm_networks.efficientnet_lite0, "NAME", "another")
            torch.manual_seed(3)
            theirs = timm_backbone(NAME, weights, **settings)
        assert type(theirs).__module__.startswith("timm.")
        assert torch.equal(drawn, torch.rand(4))
        return ours, theirs

    return build


@pytest.mark.parametrize("weights", ["none", "packaged", "auto"])
@pytest.mark.parametrize("settings", [{}, {"image_size": 96, "global_pool": "avg"}])
def test_it_is_the_network_of_timm(twins, weights, settings):
    ours, theirs = twins(weights, **settings)
    assert type(ours) is efficientnet_lite0.EfficientNet
    assert ours.origin == theirs.origin
    assert repr(ours) == repr(theirs)  # on which the keys of features depend
    assert_equal(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_computes_and_learns_the_same_to_the_bit(twins, memory_format):
    ours, theirs = twins("packaged")
    for size in (32, 45):
        x = torch.randn(3, 3, size, size).to(memory_format=memory_format)
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
        for network in (ours.train(), theirs.train()):
            network.zero_grad()
            network(x).square().sum().backward()
        gradients = [{name: p.grad for name, p in network.named_parameters()} for network in (ours, theirs)]
        assert_equal(*gradients)
    assert_equal(ours.state_dict(), theirs.state_dict())  # with the statistics of batch normalization


@pytest.mark.parametrize("settings", [{"global_pool": "max"}, {"arguments": {"drop_rate": 0.5}}])
def test_other_settings_are_left_to_timm(settings):
    assert type(timm_backbone(NAME, "none", **settings)).__module__.startswith("timm.")


def assert_equal(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)

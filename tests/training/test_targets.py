"""Parts that the configuration names: an error says which setting it is about."""

import pytest
from omegaconf import OmegaConf

from deephash_cli.errors import ConfigError
from deephash_cli.training.targets import build

REFUSED = {
    "a value": ({"_target_": "builtins.int", "x": 1}, "^loss: 'x' is an invalid keyword argument"),
    "a module": ({"_target_": "nowhere.Loss"}, r"^loss\._target_=nowhere\.Loss: No module named 'nowhere'"),
    "a name": ({"_target_": "math.Loss"}, r"^loss\._target_=math\.Loss: "),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_error_names_the_setting(kind):
    node, message = REFUSED[kind]
    with pytest.raises(ConfigError, match=message):
        build(OmegaConf.create({"loss": node}).loss)


def test_a_node_without_a_place_is_named_by_its_target():
    with pytest.raises(ConfigError, match=r"^nowhere\.Loss: No module"):
        build(OmegaConf.create({"_target_": "nowhere.Loss"}))

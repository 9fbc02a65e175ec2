"""The average of the weights: where it is kept, and its values."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging

from deephash_cli.training.averaging import Averaging


class Module(LightningModule):
    """Two weights and a counter, as batch normalization has them."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.register_buffer("batches", torch.tensor(0))


def averaging(device, module):
    """The callback after Lightning has set it up, before the module is moved."""
    callback = Averaging(0.75)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy._root_device = torch.device(device)
    callback.setup(trainer, module, "fit")
    return callback


def test_it_is_kept_where_the_weights_are_trained():
    module = Module()
    average = averaging("meta", module)._average_model
    assert {weight.device.type for weight in average.module.parameters()} == {"meta"}
    assert {weight.device.type for weight in module.parameters()} == {"cpu"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_is_the_average_of_a_slow_loop(device):
    module = Module()
    average = averaging(device, module)._average_model
    module.to(device)
    expected = None
    for step in range(4):
        with torch.no_grad():
            module.layer.weight.fill_(step * step)
        average.update_parameters(module)
        expected = step * step if expected is None else 0.75 * expected + 0.25 * step * step
    assert average.module.layer.weight.unique().item() == pytest.approx(expected)


def test_checkpoints_of_earlier_versions_name_it_as_lightning_does():
    assert Averaging(0.9).state_key == EMAWeightAveraging(decay=0.9).state_key

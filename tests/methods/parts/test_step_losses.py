"""Losses of the steps of an epoch: their means, their state in a checkpoint, and values that are not finite."""

import pytest
import torch

from deephash_cli.errors import DivergedError
from deephash_cli.methods.parts.step_losses import LossSums, StepLosses


def test_means_are_over_images_and_over_steps_with_different_terms():
    sums = LossSums()
    sums.add(("a", "loss"), torch.tensor([2.0, 2.0]), 3)
    sums.add(("a", "b", "loss"), torch.tensor([4.0, 1.0, 5.0]), 1)
    sums.add(("b", "loss"), torch.tensor([1.0, 1.0]), 4)
    found = {name: value.item() for name, value in sums.means().items()}
    assert found == {"a": (2 * 3 + 4) / 8, "b": (1 + 4) / 8, "loss": (2 * 3 + 5 + 4) / 8}


def test_a_restored_sum_goes_on_as_if_it_had_not_been_interrupted():
    values = torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
    whole, first, second = LossSums(), LossSums(), LossSums()
    for step, value in enumerate(values):
        whole.add(("a", "loss"), value, 7)
        if step == 3:
            second.restore(first.state(), torch.device("cpu"))
        (first if step < 3 else second).add(("a", "loss"), value, 7)
    assert second.means() == whole.means()
    assert second.images == whole.images == 63


def test_an_empty_sum_has_no_means():
    empty = LossSums()
    empty.restore(LossSums().state(), torch.device("cpu"))
    assert empty.means() == LossSums().means() == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_names_its_step_and_terms(bad):
    StepLosses(("a", "loss"), torch.tensor([1.0, 1.0]), lambda: "epoch 2, batch 1").require_finite()
    losses = StepLosses(("a", "b", "loss"), torch.tensor([1.0, bad, bad]), lambda: "epoch 2, batch 1")
    with pytest.raises(DivergedError, match=rf"the loss is {bad} in epoch 2, batch 1 \(a 1, b {bad}\): lower optimiz"):
        losses.require_finite()

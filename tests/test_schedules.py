"""Learning rates step by step."""

import math

import pytest
import torch

from deephash_cli import schedules


def rates(schedule, steps, **settings):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(
        [{"params": [weight]}, {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1}], 1.0
    )
    scheduler = schedule(optimizer, total_steps=steps, **settings)
    seen = []
    for _ in range(steps + 1):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant_keeps_every_rate():
    assert rates(schedules.constant, 3) == [[1.0, 0.1]] * 4


def test_cosine_falls_to_zero_along_half_a_cosine_in_every_group():
    seen = rates(schedules.cosine, 10, warmup=0.0)
    for step, (new, backbone) in enumerate(seen):
        expected = (1 + math.cos(math.pi * step / 10)) / 2
        assert new == pytest.approx(expected, abs=1e-12)
        assert backbone == pytest.approx(0.1 * expected, abs=1e-12)


def test_warmup_rises_linearly_and_loses_no_step_at_rate_zero():
    new = [rate for rate, _ in rates(schedules.cosine, 10, warmup=0.4)]
    assert new[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert new[5:] == sorted(new[5:], reverse=True)
    assert new[10] == pytest.approx(0)


def test_cosine_does_not_rise_again_when_training_goes_on():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 1.0)
    assert schedules.cosine(optimizer, total_steps=4, warmup=0.0).lr_lambdas[0](9) == pytest.approx(0)


@pytest.mark.parametrize(("steps", "warmup"), [(40, 0.3), (41, 0.25), (553, 0.1)])
def test_one_cycle_is_that_of_torch(steps, warmup):
    def reference(optimizer, total_steps):
        settings = {"pct_start": warmup, "div_factor": 25, "final_div_factor": 1e12, "cycle_momentum": False}
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, [1.0, 0.1], total_steps + 1, **settings)

    ours, torchs = rates(schedules.one_cycle, steps, warmup=warmup, start=0.04), rates(reference, steps - 1)
    for one, other in zip(ours, torchs, strict=False):
        assert one == pytest.approx(other, abs=1e-9)
    assert len(torchs) == steps
    assert ours[steps] == pytest.approx([0.0, 0.0])


def test_one_cycle_stays_down_when_training_goes_on():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    assert schedules.one_cycle(optimizer, total_steps=4, warmup=0.3, start=0.04).lr_lambdas[0](9) == pytest.approx(0)


def test_stairs_are_of_equal_length():
    new = [rate for rate, _ in rates(schedules.stairs, 7, number=3, factor=0.1)]
    assert new[:7] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    assert schedules.stairs(optimizer, 7, number=3, factor=0.1).lr_lambdas[0](20) == pytest.approx(0.01)


@pytest.mark.parametrize(("number", "factor"), [(0, 0.1), (3, 0.0), (3, 1.5)])
def test_stairs_that_are_none_are_refused(number, factor):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    with pytest.raises(ValueError, match=r"number must be at least 1 and factor in \(0, 1\], got"):
        schedules.stairs(optimizer, 4, number=number, factor=factor)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 3])
def test_warmup_is_a_share(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    with pytest.raises(ValueError, match=r"warmup is a share .* got"):
        schedules.cosine(optimizer, total_steps=4, warmup=warmup)
    with pytest.raises(ValueError, match=r"start is a share .* got"):
        schedules.one_cycle(optimizer, total_steps=4, warmup=0.3, start=warmup)

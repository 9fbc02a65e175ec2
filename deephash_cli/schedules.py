"""Learning-rate schedules, counted in optimizer steps."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """Keep every learning rate as configured, whatever ``total_steps`` is."""
    del total_steps
    return LambdaLR(optimizer, lambda _: 1.0)


def cosine(optimizer: Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """Rise linearly over the first ``warmup`` share of ``total_steps``, then fall along half a cosine to zero."""
    _require_share("warmup", warmup)
    rising = round(warmup * total_steps)

    def scale(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return _falling((step - rising) / max(1, total_steps - rising))

    return LambdaLR(optimizer, scale)


def one_cycle(optimizer: Optimizer, total_steps: int, warmup: float, start: float) -> LambdaLR:
    """Rise from the ``start`` share of a rate to all of it and fall to zero, both along half a cosine.

    Smith and Topin, Super-Convergence, 2017, as fastai has it. ``torch.optim.lr_scheduler.OneCycleLR`` is the same but
    cannot go on when a resumed run is given more epochs; its cycle of momentum is left out.

    Args:
        optimizer: Whose configured rates are the peaks.
        total_steps: Of the training.
        warmup: Share of the steps over which the rate rises.
        start: Share of the rate at the first step.

    Raises:
        ValueError: If a share is none.
    """
    _require_share("warmup", warmup)
    _require_share("start", start)
    peak = max(0.0, warmup * total_steps - 1)  # as torch places it, between steps if need be

    def scale(step: int) -> float:
        if step < peak:
            return 1 + (start - 1) * _falling(step / peak)
        return _falling((step - peak) / max(1, total_steps - 1 - peak))

    return LambdaLR(optimizer, scale)


def stairs(optimizer: Optimizer, total_steps: int, number: int, factor: float) -> LambdaLR:
    """Multiply every rate by ``factor`` after each of ``number`` equal parts of the training but the last.

    Raises:
        ValueError: If there is no part, or the factor is not in (0, 1].
    """
    if number < 1 or not 0 < factor <= 1:
        raise ValueError(f"number must be at least 1 and factor in (0, 1], got {number} and {factor}")
    return LambdaLR(optimizer, lambda step: factor ** min(number - 1, step * number // total_steps))


def _falling(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _require_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is a share of the training or its rate and must be in [0, 1), got {value}")

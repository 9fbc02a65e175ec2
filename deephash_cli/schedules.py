"""Learning-rate schedules, counted in optimizer steps."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """Keep every learning rate as configured, whatever ``total_steps`` is."""
    del total_steps
    return LambdaLR(optimizer, lambda _: 1.0)


def cosine(optimizer: Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """Rise linearly over the first ``warmup`` share of ``total_steps``, then fall along half a cosine to zero.

    Raises:
        ValueError: If ``warmup`` is outside [0, 1).
    """
    _require_share("warmup", warmup)
    rising = round(warmup * total_steps)

    def scale(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return _falling((step - rising) / max(1, total_steps - rising))

    return LambdaLR(optimizer, scale)


def one_cycle(optimizer: Optimizer, total_steps: int, warmup: float, start: float) -> LambdaLR:
    """Rise from the ``start`` share of each rate to the full rate, then fall to zero, both along half a cosine.

    The schedule is that of Smith and Topin, Super-Convergence, 2017, in fastai's version.
    ``torch.optim.lr_scheduler.OneCycleLR`` has the same learning rates but cannot continue when a resumed run is given
    more epochs. Its momentum cycle is left out here.

    Args:
        optimizer: The optimizer whose configured rates are the peaks.
        total_steps: Number of steps of the training.
        warmup: Share of the steps over which the rate rises, in [0, 1).
        start: Share of the rate at the first step, in [0, 1).

    Raises:
        ValueError: If a share is outside [0, 1).
    """
    _require_share("warmup", warmup)
    _require_share("start", start)
    peak = max(0.0, warmup * total_steps - 1)  # where torch places it, possibly between two steps

    def scale(step: int) -> float:
        if step < peak:
            return 1 + (start - 1) * _falling(step / peak)
        return _falling((step - peak) / max(1, total_steps - 1 - peak))

    return LambdaLR(optimizer, scale)


def stairs(optimizer: Optimizer, total_steps: int, number: int, factor: float) -> LambdaLR:
    """Divide the training into ``number`` equal parts and multiply every rate by ``factor`` between them.

    Raises:
        ValueError: If ``number`` is less than 1 or ``factor`` is not in (0, 1].
    """
    if number < 1 or not 0 < factor <= 1:
        raise ValueError(f"number must be at least 1 and factor in (0, 1], got {number} and {factor}")
    return LambdaLR(optimizer, lambda step: factor ** min(number - 1, step * number // total_steps))


def _falling(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _require_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is a share of the training or of its rate and must be in [0, 1), got {value}")

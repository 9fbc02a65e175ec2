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
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the training and must be in [0, 1), got {warmup}")
    rising = round(warmup * total_steps)

    def scale(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total_steps - rising))))

    return LambdaLR(optimizer, scale)

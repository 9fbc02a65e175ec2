"""The losses of a step: whether they are finite, and their means over an epoch. On a GPU nothing waits for them."""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from deephash_cli.errors import DivergedError


class StepLosses:
    """The losses of one step. Those of a GPU are on their way to this process until they are asked for.

    To ask for them at once would make the GPU wait in every step for what comes next.

    Args:
        names: Names of the terms and, at the end, of their sum.
        values: Their values, without a gradient.
        step: Function that names the step in the message: ``epoch 3, batch 7``.
    """

    def __init__(self, names: tuple[str, ...], values: Float[Tensor, "k"], step: Callable[[], str]):
        self.names = names
        self.step = step
        self._values, self._arrived = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def require_finite(self) -> None:
        """Refuse a loss that is NaN or infinite.

        Raises:
            DivergedError: If the sum of the terms is.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        total = self._values[-1].item()
        if not math.isfinite(total):
            terms = zip(self.names[:-1], self._values.tolist(), strict=False)
            parts = ", ".join(f"{name} {value:.4g}" for name, value in terms)
            raise DivergedError(
                f"the loss is {total} in {self.step()} ({parts}): lower optimizer.lr and model.backbone_lr, or set "
                "trainer.gradient_clip_val=1"
            )


class LossSums:
    """For each loss of a step, its sum over the images of an epoch so far.

    Attributes:
        images: Number of images so far.
    """

    def __init__(self) -> None:
        self.images = 0
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(0)

    def add(self, names: tuple[str, ...], values: Float[Tensor, "k"], images: int) -> None:
        """Add the losses of a step, each a mean over its images.

        Args:
            names: Names of the losses. They may differ from those of the steps before.
            values: The losses, without a gradient.
            images: Number of images of the step.
        """
        sums = images * values
        if names == self._names:
            self._sums = self._sums + sums
        else:
            together = dict(self)
            for name, value in zip(names, sums, strict=True):
                together[name] = together[name] + value if name in together else value
            self._names, self._sums = tuple(together), torch.stack(list(together.values()))
        self.images += images

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Return an iterator over the names and sums."""
        return zip(self._names, self._sums, strict=True)

    def means(self) -> dict[str, Float[Tensor, ""]]:
        """Return the mean of each loss over the images so far. Without images there are none."""
        return {name: total / self.images for name, total in self}

    def state(self) -> dict[str, Tensor]:
        """Return the sums, and the number of images under ``images``, for a checkpoint."""
        return {**dict(self), "images": torch.tensor(float(self.images))}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue on a device with what ``state`` returned."""
        self.images = int(state["images"]) if state else 0
        sums = {name: value.to(device) for name, value in state.items() if name != "images"}
        self._names, self._sums = tuple(sums), torch.stack(list(sums.values())) if sums else torch.zeros(0)

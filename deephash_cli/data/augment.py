"""Random changes of training images, a batch of uint8 tensors at a time, each image on its own."""

import torch
from jaxtyping import UInt8
from torch import Tensor, nn


class ShiftFlip(nn.Module):
    """Shift each image by up to ``shift`` of its side, edges repeated, and mirror it with probability ``flip``.

    A shift in both directions is what a random crop of the padded image is.
    """

    def __init__(self, shift: float, flip: float):
        super().__init__()
        if not 0 <= shift < 1 or not 0 <= flip <= 1:
            raise ValueError(f"shift must be in [0, 1) and flip in [0, 1], got {shift} and {flip}")
        self.shift = shift
        self.flip = flip

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """Changed copies of ``images``."""
        n, _, height, width = images.shape
        rows = self._moved(n, height, images.device)
        columns = self._moved(n, width, images.device)
        mirrored = torch.rand(n, 1, device=images.device) < self.flip
        columns = torch.where(mirrored, columns.flip(1), columns)
        first = torch.arange(n, device=images.device)[:, None, None]
        return images.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _moved(self, n: int, side: int, device: torch.device) -> Tensor:
        most = round(self.shift * side)
        offsets = torch.randint(-most, most + 1, (n, 1), device=device)
        return (torch.arange(side, device=device) + offsets).clamp(0, side - 1)

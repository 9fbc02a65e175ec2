"""Augment batches of training images (uint8 tensors), with separate random draws for each image."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import affine_grid, dropout, grid_sample


class ShiftFlip(nn.Module):
    """Shift each image by up to ``shift`` of its side, edges repeated, and mirror it with probability ``flip``.

    Shifting in both directions is the same as taking a random crop of the padded image.

    Args:
        shift: Largest shift in each direction, as a share of the image's side, in [0, 1).
        flip: Probability of a mirror image, in [0, 1].

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, shift: float, flip: float):
        super().__init__()
        if not 0 <= shift < 1 or not 0 <= flip <= 1:
            raise ValueError(f"shift must be in [0, 1) and flip in [0, 1], got {shift} and {flip}")
        self.shift = shift
        self.flip = flip

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """Return augmented copies of ``images`` (n, c, h, w)."""
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


class CropColour(nn.Module):
    """Crop a random part of each image, stretch it to full size, mirror it and change its colours.

    This does what ``RandomResizedCrop``, ``RandomHorizontalFlip`` and ``ColorJitter`` of torchvision do. Those change
    all images of a batch alike; here each image has its own random draws, and all are changed at once, on any device.

    Args:
        area: Smallest share of the image's area that is kept, in (0, 1]; 1 keeps the whole image.
        ratio: Largest ratio of the part's width to its height, and of its height to its width; at least 1.
        flip: Probability of a mirror image, in [0, 1].
        brightness: Strength in [0, 1]: colours are multiplied by a factor in ``1 - brightness`` .. ``1 + brightness``.
        contrast: Strength in [0, 1]: distances from the image's mean grey are multiplied by such a factor.
        saturation: Strength in [0, 1]: distances from each pixel's grey are multiplied by such a factor.
        grey: Probability of an image without colours, in [0, 1]. The default is what runs of earlier versions did.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(
        self,
        area: float,
        ratio: float,
        flip: float,
        brightness: float,
        contrast: float,
        saturation: float,
        grey: float = 0.0,
    ):
        super().__init__()
        if not 0 < area <= 1 or ratio < 1:
            raise ValueError(f"area must be in (0, 1] and ratio at least 1, got {area} and {ratio}")
        for name, value in (
            ("flip", flip), ("brightness", brightness), ("contrast", contrast), ("saturation", saturation),
            ("grey", grey),
        ):  # fmt: skip
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        self.area = area
        self.ratio = ratio
        self.flip = flip
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.grey = grey

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """Return augmented copies of ``images`` (n, c, h, w)."""
        x = self._cropped(images.float())
        x = x * self._factors(x, self.brightness)
        grey = _grey(x)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        x = mean + (x - mean) * self._factors(x, self.contrast)
        grey = _grey(x)
        x = grey + (x - grey) * self._factors(x, self.saturation)
        if self.grey:  # no draw without it, so that runs of earlier versions resume with the draws that they had
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < self.grey, _grey(x), x)
        return x.round().clamp(0, 255).to(torch.uint8)

    def _cropped(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        n = len(x)
        area, ratio, across, down, mirror = torch.rand(5, n, device=x.device)
        side = (self.area + (1 - self.area) * area).sqrt()
        stretch = self.ratio ** (ratio - 0.5)  # factor for the width; its square is the part's aspect ratio
        wide, high = ((side * factor).clamp(max=1) for factor in (stretch, 1 / stretch))
        theta = torch.zeros(n, 2, 3, device=x.device)  # lengths are in half sides, measured from the centre
        theta[:, 0, 0] = torch.where(mirror < self.flip, -wide, wide)
        theta[:, 1, 1] = high
        theta[:, 0, 2] = (2 * across - 1) * (1 - wide)
        theta[:, 1, 2] = (2 * down - 1) * (1 - high)
        grid = affine_grid(theta, list(x.shape), align_corners=False)
        return grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _factors(self, x: Float[Tensor, "n c h w"], width: float) -> Float[Tensor, "n 1 1 1"]:
        return 1 + width * (2 * torch.rand(len(x), 1, 1, 1, device=x.device) - 1)


class Views(nn.Module):
    """Make two views of each input, for methods that compare them.

    Args:
        first: Random changes of images for the first view.
        second: Random changes of images for the second view.
        dropout: Share of the values of a feature vector that are set to 0, in [0, 1), for the first and the second
            view. Features that were computed before cannot be changed as images can; dropout makes the two views of a
            sentence in SimCSE (Gao, Yao and Chen, EMNLP 2021). The other values grow, so that the mean stays.

    Raises:
        ValueError: If a share is out of its range.
    """

    def __init__(self, first: nn.Module, second: nn.Module, dropout: Sequence[float]):
        super().__init__()
        if len(dropout) != 2 or not all(0 <= share < 1 for share in dropout):
            raise ValueError(f"dropout must be two numbers in [0, 1), one for each view, got {list(dropout)}")
        self.first = first
        self.second = second
        self.dropout = tuple(dropout)

    def forward(
        self, inputs: UInt8[Tensor, "n c h w"] | Float[Tensor, "n d"]
    ) -> tuple[UInt8[Tensor, "n c h w"] | Float[Tensor, "n d"], UInt8[Tensor, "n c h w"] | Float[Tensor, "n d"]]:
        """Return both views of images or of features, told apart by their number of dimensions."""
        if inputs.ndim == 2:
            first, second = (dropout(inputs, share) for share in self.dropout)
            return first, second
        return self.first(inputs), self.second(inputs)


def _grey(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Return the luma of RGB images (ITU-R BT.601); for other numbers of channels, the mean of the channels."""
    return (x * _luma(x.shape[1], x.device)).sum(dim=1, keepdim=True)


@functools.cache  # each copy to a GPU would wait until it has finished all that it was given
def _luma(channels: int, device: torch.device) -> Float[Tensor, "c 1 1"]:
    weights = [0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels
    return torch.tensor(weights, device=device)[:, None, None]

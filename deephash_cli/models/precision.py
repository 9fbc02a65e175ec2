"""Arithmetic in which the features of a frozen backbone are computed, before they are kept."""

import functools

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from deephash_cli.console import warn
from deephash_cli.models.network import HashingNetwork

# The choices of features.precision; None is the precision of the weights, 32 bits.
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def computed_features(
    network: HashingNetwork, images: UInt8[Tensor, "n c h w"], half: torch.dtype | None
) -> Float[Tensor, "n features"]:
    """Compute the features of images as a run with a frozen backbone computes those that it keeps.

    Args:
        network: Network whose backbone computes them.
        images: Pixels from 0 to 255.
        half: Arithmetic of the backbone, a value of ``PRECISIONS``.

    Returns:
        Features as float32, not rounded to the float16 in which they are kept.
    """
    with torch.autocast(images.device.type, half, enabled=half is not None):
        return network.features(images).float()


@functools.cache
def warn_if_slower(device_type: str, precision: str) -> None:
    """Say once that a device has no instructions for a precision, so that it saves no time there.

    Args:
        device_type: Type of the device as torch names it, such as ``cpu``.
        precision: A key of ``PRECISIONS``.
    """
    if PRECISIONS[precision] is torch.bfloat16 and not _has_bf16(device_type):
        where = "processor" if device_type == "cpu" else "GPU"
        warn(
            f"features.precision=bf16: this {where} has no instructions for bf16, so features take longer than with "
            "features.precision=fp32"
        )


def _has_bf16(device_type: str) -> bool:
    """Return whether a type of device computes in bf16 faster than in 32 bits; True if torch does not know."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # earlier versions of torch have no such list
    if device_type != "cpu" or capabilities is None:
        return True
    return any(has for name, has in capabilities().items() if name.endswith("bf16"))  # avx512_bf16, amx_bf16, bf16

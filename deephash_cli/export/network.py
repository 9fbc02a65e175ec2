"""The network of a run: as a torch.export program, and as ONNX."""

from collections.abc import Sequence
from pathlib import Path


def write_torch_export(run: Path, folder: Path, allowed_targets: Sequence[str]) -> str:
    """Write ``encoder.pt2``."""
    raise NotImplementedError


def write_onnx(run: Path, folder: Path, allowed_targets: Sequence[str]) -> str:
    """Write ``encoder.onnx``."""
    raise NotImplementedError

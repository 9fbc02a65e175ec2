"""Export the network of a run, from images to packed codes, as a torch.export program or as ONNX.

Packing is part of the graph, so that it runs without deephash. Where deephash raises an error for NaN, a graph cannot;
therefore it also returns the continuous codes.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deephash_cli.commands.export.source import optional
from deephash_cli.errors import ArtifactError, ConfigError, first_line
from deephash_cli.files import write_json, write_text
from deephash_cli.retrieval.codes import packed_width

if TYPE_CHECKING:
    from deephash_cli.inference.encoder import Encoder

# Data sets whose images are kept in their own size, smaller than the network's input: the network enlarges them.
_SMALL = {"cifar10": 32, "fashion_mini": 28, "fashion_mnist": 28}
# Allowed difference of continuous codes in another program. A bit may differ if its value is closer to 0 than this.
_CLOSE = 1e-2

_TAIL = """
images: uint8 (n, 3, {side}, {side}), RGB, any n: the central square of a picture, resized (bilinear, antialiased).
{note}codes: uint8 (n, {width}), {bits} bits: bit i is bit i % 8 (worth 2 ** (i % 8)) of byte i // 8; padding is 0.
u: float32 (n, {bits}), the continuous codes; bit i is u[i] >= 0. Where u is NaN, the bit is 0: check u.
source.json says which network this is.
"""
_TORCH = """\
The network as a torch.export program. Needs torch in the version of source.json or newer; on the CPU:

    import torch
    encoder = torch.export.load("encoder.pt2").module()
    codes, u = encoder(torch.zeros(1, 3, {side}, {side}, dtype=torch.uint8))
    print(codes.shape)
"""
_ONNX = """\
The network as ONNX. Needs onnxruntime and numpy, or any program that reads ONNX:

    import numpy, onnxruntime
    encoder = onnxruntime.InferenceSession("encoder.onnx")
    codes, u = encoder.run(None, {{"images": numpy.zeros((1, 3, {side}, {side}), numpy.uint8)}})
    print(codes.shape)
"""


def write_torch_export(run: Path, folder: Path, allowed_targets: Sequence[str], pixels: int | None) -> str:
    """Write ``encoder.pt2``.

    Args:
        run: Run folder.
        folder: Empty folder to write into.
        allowed_targets: Packages besides deephash's own whose classes the run may build.
        pixels: Side of the images that the graph takes, in pixels; None: that of the images in the run.

    Returns:
        How the result was checked, for the user.

    Raises:
        ArtifactError: If the run is not finished, if its network cannot be exported, or if the written network gives
            other codes.
    """
    import torch

    encoder, side = _load(run, allowed_targets, pixels)
    torch.export.save(_program(encoder, side), folder / "encoder.pt2")
    _describe(encoder, side, folder, _TORCH)
    with _quiet():
        again = torch.export.load(folder / "encoder.pt2").module()
    return _check(encoder, encoder, side, again)


def write_onnx(run: Path, folder: Path, allowed_targets: Sequence[str], pixels: int | None) -> str:
    """Write ``encoder.onnx``. Arguments, result and errors are those of `write_torch_export`.

    The graph computes in single precision even if the run used half: other engines support few operations in half.

    Raises:
        ConfigError: If onnx and onnxscript are not installed.
    """
    import torch

    optional("onnx", "onnx")
    optional("onnxscript", "onnx")
    from deephash_cli.inference.encoder import Encoder

    encoder, side = _load(run, allowed_targets, pixels)
    trainer = {**encoder.settings["trainer"], "precision": "32-true"}
    single = Encoder(encoder.network, {**encoder.settings, "trainer": trainer}, encoder.provenance)
    path = folder / "encoder.onnx"
    try:
        with _quiet():
            made: Any = torch.onnx.export(
                _program(single, side), dynamo=True, input_names=["images"], output_names=["codes", "u"], verbose=False
            )
        made.save(path)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ArtifactError(f"this network cannot be written as ONNX: {first_line(error)}") from error
    _describe(encoder, side, folder, _ONNX)
    try:
        import onnxruntime
    except ImportError:
        return "nothing, because onnxruntime is not installed (pip install onnxruntime)"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return _check(
        single, encoder, side, lambda images: map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    )


def _load(run: Path, allowed_targets: Sequence[str], pixels: int | None) -> tuple["Encoder", int]:
    from deephash_cli.inference.encoder import load_encoder

    encoder = load_encoder(run, allowed_targets)
    if encoder.takes != "images":
        raise ConfigError(f"{run} hashes vectors, but only a network that takes images can be exported")
    return encoder, pixels or _SMALL.get(encoder.settings["dataset"]["name"], encoder.image_size)


def _program(encoder: "Encoder", side: int) -> Any:
    """Trace the network as a graph for any number of images."""
    import torch
    from torch import Tensor, nn

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder
            self.register_buffer("worth", 2 ** torch.arange(8, dtype=torch.int32), persistent=False)
            self.worth: Tensor

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            u = self.encoder(images)
            bits = nn.functional.pad((u >= 0).to(torch.int32), (0, -encoder.bits % 8))
            return (bits.unflatten(1, (-1, 8)) * self.worth).sum(dim=2).to(torch.uint8), u

    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    try:
        with _quiet():
            shapes = ({0: torch.export.Dim("n", min=1)},)
            return torch.export.export(Packed().eval(), (images,), dynamic_shapes=shapes)
    except Exception as error:  # a third-party network can make the tracer fail in any way
        raise ArtifactError(f"torch.export cannot trace this network: {first_line(error)}") from error


def _describe(encoder: "Encoder", side: int, folder: Path, loader: str) -> None:
    width = packed_width(encoder.bits)
    note = "" if side == encoder.image_size else f"The graph resizes them to {encoder.image_size} pixels a side.\n"
    text = loader.format(side=side) + _TAIL.format(side=side, width=width, bits=encoder.bits, note=note)
    write_text(folder / "README.txt", text)
    write_json(folder / "source.json", {"bits": encoder.bits, "bit_order": "little", **encoder.provenance})


def _check(encoder: "Encoder", trained: "Encoder", side: int, again: Callable[[Any], Any]) -> str:
    """Run the written network on images of noise, in batches of one and of several.

    Args:
        encoder: The network that was exported, whose values must be the same.
        trained: The same network in the precision of its run, to count the bits that the precision changes.
        side: Side of the images, in pixels.
        again: The network that was read back: takes images, returns packed and continuous codes.

    Returns:
        How the result was checked, for the user.

    Raises:
        ArtifactError: If the written network gives other codes.
    """
    import torch

    from deephash_cli.models import packed_codes

    generator = torch.Generator().manual_seed(0)
    largest, flipped, count = 0.0, 0, 0
    for n in (1, 3, 4):
        images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            expected, before = encoder(images), trained(images)
            codes, u = again(images)
        difference = float((u - expected).abs().max())
        if difference > _CLOSE * max(1.0, float(expected.abs().max())) or (codes.numpy() != packed_codes(u)).any():
            raise ArtifactError(f"the written network was run and gives other codes; values differ by {difference:.2g}")
        flipped += int(((u >= 0) != (before >= 0)).sum())
        largest, count = max(largest, difference), count + u.numel()
    return f"ran it on noise; values within {largest:.1g} of the network's, {flipped} of {count} bits unlike the run's"


def _quiet() -> warnings.catch_warnings:
    """Ignore warnings: exporters warn about their own internals."""
    return warnings.catch_warnings(action="ignore")

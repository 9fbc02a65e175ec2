"""The network of a run, from images to packed codes: as a torch.export program, and as ONNX.

Packing is part of the graph, so that whoever runs it needs no deephash. A graph cannot stop at values that are not
numbers, as deephash does; therefore the continuous codes are its second output.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deephash_cli.codes import packed_width
from deephash_cli.errors import ArtifactError, ConfigError, first_line
from deephash_cli.export.source import optional
from deephash_cli.files import write_json, write_text

if TYPE_CHECKING:
    from deephash_cli.encoder import Encoder

# Data sets whose images are held as they are, smaller than the network wants them: it enlarges them itself.
_SMALL = {"cifar10": 32, "fashion_mini": 28, "fashion_mnist": 28}
_CLOSE = 1e-2  # of continuous codes in another program; bits may differ where these are nearer to 0 than that

_TAIL = """
images: uint8 (n, 3, {side}, {side}), RGB, any n: the central square of a picture, resized (bilinear, antialiased).
{note}codes: uint8 (n, {width}), {bits} bits: bit i is bit i % 8 (worth 2 ** (i % 8)) of byte i // 8; padding is 0.
u: float32 (n, {bits}), the continuous codes; bit i is u[i] >= 0. Where u is not a number, the bit is 0: check u.
source.json says what network it is.
"""
_TORCH = """\
The network as a torch.export program. Needs torch, the version in source.json or newer; for the CPU:

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
        run: The run folder.
        folder: To write into.
        allowed_targets: Packages besides deephash's own whose classes the run may build.
        pixels: Side of the images that the graph takes; ``None``: as its run had them.

    Returns:
        How it was checked.

    Raises:
        ArtifactError: If the run is not finished, if its network cannot be exported, or if what was written gives other
            codes.
    """
    import torch

    encoder, side = _load(run, allowed_targets, pixels)
    torch.export.save(_program(encoder, side), folder / "encoder.pt2")
    _describe(encoder, side, folder, _TORCH)
    with _quiet():
        again = torch.export.load(folder / "encoder.pt2").module()
    return _check(encoder, encoder, side, again)


def write_onnx(run: Path, folder: Path, allowed_targets: Sequence[str], pixels: int | None) -> str:
    """Write ``encoder.onnx``; arguments, result and errors as of `write_torch_export`.

    The graph computes in single precision, even if the run computed in half: other engines know few operations in that.

    Raises:
        ConfigError: If onnx and onnxscript are not installed.
    """
    import torch

    optional("onnx", "onnx")
    optional("onnxscript", "onnx")
    from deephash_cli.encoder import Encoder

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
        raise ArtifactError(f"this network has no form in ONNX: {first_line(error)}") from error
    _describe(encoder, side, folder, _ONNX)
    try:
        import onnxruntime
    except ImportError:
        return "nothing, as onnxruntime is not installed (pip install onnxruntime)"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return _check(
        single, encoder, side, lambda images: map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    )


def _load(run: Path, allowed_targets: Sequence[str], pixels: int | None) -> tuple["Encoder", int]:
    from deephash_cli.encoder import load_encoder

    encoder = load_encoder(run, allowed_targets)
    if encoder.takes != "images":
        raise ConfigError(f"{run} hashes vectors, and only a network that takes images can be exported")
    return encoder, pixels or _SMALL.get(encoder.settings["dataset"]["name"], encoder.image_size)


def _program(encoder: "Encoder", side: int) -> Any:
    """The graph, for any number of images."""
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
    except Exception as error:  # of a network of anybody's, for any reason that a tracer has
        raise ArtifactError(f"torch.export cannot trace this network: {first_line(error)}") from error


def _describe(encoder: "Encoder", side: int, folder: Path, loader: str) -> None:
    width = packed_width(encoder.bits)
    note = "" if side == encoder.image_size else f"The graph resizes them to {encoder.image_size}.\n"
    text = loader.format(side=side) + _TAIL.format(side=side, width=width, bits=encoder.bits, note=note)
    write_text(folder / "README.txt", text)
    write_json(folder / "source.json", {"bits": encoder.bits, "bit_order": "little", **encoder.provenance})


def _check(encoder: "Encoder", trained: "Encoder", side: int, again: Callable[[Any], Any]) -> str:
    """Run what was written on noise, one image and several.

    Args:
        encoder: The network that was exported, whose values are to be the same.
        trained: The same network in the precision of its run, to say how many bits that changes.
        side: Of the images.
        again: The network that was read back.
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
            raise ArtifactError(f"what was written was run and gives other codes; values differ by {difference:.2g}")
        flipped += int(((u >= 0) != (before >= 0)).sum())
        largest, count = max(largest, difference), count + u.numel()
    return (
        f"ran it on noise, values within {largest:.1g} of the network's, {flipped} of {count} bits other than the run's"
    )


def _quiet() -> warnings.catch_warnings:
    """Exporters warn of their own insides."""
    return warnings.catch_warnings(action="ignore")

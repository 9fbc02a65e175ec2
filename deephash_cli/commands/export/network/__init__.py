"""Export the network of a run, from images to packed codes: what all targets share.

Packing is part of the graph, so that it runs without deephash. Where deephash raises an error for NaN, a graph cannot;
therefore it also returns the continuous codes.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deephash_cli.errors import ArtifactError, ConfigError, first_line
from deephash_cli.files import write_json, write_text
from deephash_cli.retrieval.codes import packed_width

if TYPE_CHECKING:
    from deephash_cli.inference.encoder import Encoder

# Data sets whose images are kept in their own size, smaller than the network's input: the network enlarges them.
_SMALL = {"cifar10": 32, "cifar100": 32, "fashion_mini": 28, "fashion_mnist": 28}
# Allowed difference of continuous codes in another program. A bit may differ if its value is closer to 0 than this.
_CLOSE = 1e-2
_TAIL = """
images: uint8 (n, 3, {side}, {side}), RGB, any n: {steps}.
{note}codes: uint8 (n, {width}), {bits} bits: bit i is bit i % 8 (worth 2 ** (i % 8)) of byte i // 8; padding is 0.
u: float32 (n, {bits}), the continuous codes; bit i is u[i] >= 0. Where u is NaN, the bit is 0: check u.
source.json says which network this is.
"""


def load(run: Path, allowed_targets: Sequence[str], pixels: int | None) -> tuple["Encoder", int]:
    """Load the network of a run, and return it with the side in pixels of the images that its graph takes.

    Args:
        run: Run folder.
        allowed_targets: Packages besides deephash's own whose classes the run may build.
        pixels: The side; None for that of the images that the run had.

    Raises:
        ConfigError: If the run hashes vectors.
    """
    from deephash_cli.inference.encoder import load_encoder

    encoder = load_encoder(run, allowed_targets)
    if encoder.takes != "images":
        raise ConfigError(f"{run} hashes vectors, but only a network that takes images can be exported")
    return encoder, pixels or _SMALL.get(encoder.settings["dataset"]["name"], encoder.image_size)


def program(encoder: "Encoder", side: int) -> Any:
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
        with quiet():
            shapes = ({0: torch.export.Dim("n", min=1)},)
            return torch.export.export(Packed().eval(), (images,), dynamic_shapes=shapes)
    except Exception as error:  # a third-party network can make the tracer fail in any way
        raise ArtifactError(f"torch.export cannot trace this network: {first_line(error)}") from error


def describe(encoder: "Encoder", side: int, folder: Path, loader: str) -> None:
    """Write ``README.txt``, which starts with how to load the network, and ``source.json``.

    Args:
        encoder: The exported network.
        side: Side in pixels of the images that the graph takes.
        folder: Folder to write into.
        loader: Text on how to load the network.
    """
    width = packed_width(encoder.bits)
    form = encoder.network.preprocessing
    is_whole = side == form.size  # otherwise the graph does these steps itself, with squares of another size
    steps = form.steps if is_whole else "the central square of a picture"
    note = "" if is_whole else f"The graph brings them to the network's input: {form.steps}.\n"
    facts = {"side": side, "steps": steps, "note": note, "width": width, "bits": encoder.bits}
    text = loader.format(side=side) + _TAIL.format(**facts)
    write_text(folder / "README.txt", text)
    write_json(folder / "source.json", {"bits": encoder.bits, "bit_order": "little", **encoder.provenance})


def check(encoder: "Encoder", trained: "Encoder", side: int, again: Callable[[Any], Any]) -> str:
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


def quiet() -> warnings.catch_warnings:
    """Ignore warnings: exporters warn about their own internals."""
    return warnings.catch_warnings(action="ignore")

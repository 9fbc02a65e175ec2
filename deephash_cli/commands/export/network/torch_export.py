"""Export the network of a run as a torch.export program, with packing in the graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deephash_cli.commands.export.network import check, describe, load, program, quiet

if TYPE_CHECKING:
    pass


_TORCH = """\
The network as a torch.export program. Needs torch in the version of source.json or newer; on the CPU:

    import torch
    encoder = torch.export.load("encoder.pt2").module()
    codes, u = encoder(torch.zeros(1, 3, {side}, {side}, dtype=torch.uint8))
    print(codes.shape)
"""


def write(run: Path, folder: Path, allowed_targets: Sequence[str], pixels: int | None) -> str:
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

    encoder, side = load(run, allowed_targets, pixels)
    torch.export.save(program(encoder, side), folder / "encoder.pt2")
    describe(encoder, side, folder, _TORCH)
    with quiet():
        again = torch.export.load(folder / "encoder.pt2").module()
    return check(encoder, encoder, side, again)

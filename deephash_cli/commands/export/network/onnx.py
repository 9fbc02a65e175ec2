"""Export the network of a run as ONNX, with packing in the graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deephash_cli.commands.export.network import check, describe, load, program, quiet
from deephash_cli.commands.export.source import optional
from deephash_cli.errors import ArtifactError, first_line

if TYPE_CHECKING:
    pass

_ONNX = """\
The network as ONNX. Needs onnxruntime and numpy, or any program that reads ONNX:

    import numpy, onnxruntime
    encoder = onnxruntime.InferenceSession("encoder.onnx")
    codes, u = encoder.run(None, {{"images": numpy.zeros((1, 3, {side}, {side}), numpy.uint8)}})
    print(codes.shape)
"""


def write(run: Path, folder: Path, allowed_targets: Sequence[str], pixels: int | None) -> str:
    """Write ``encoder.onnx``. Arguments, result and errors are those of `torch_export.write`.

    The graph computes in single precision even if the run used half: other engines support few operations in half.

    Raises:
        ConfigError: If onnx and onnxscript are not installed.
    """
    import torch

    optional("onnx", "onnx")
    optional("onnxscript", "onnx")
    from deephash_cli.inference.encoder import Encoder

    encoder, side = load(run, allowed_targets, pixels)
    trainer = {**encoder.settings["trainer"], "precision": "32-true"}
    single = Encoder(encoder.network, {**encoder.settings, "trainer": trainer}, encoder.provenance)
    path = folder / "encoder.onnx"
    try:
        with quiet():
            made: Any = torch.onnx.export(
                program(single, side), dynamo=True, input_names=["images"], output_names=["codes", "u"], verbose=False
            )
        made.save(path)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ArtifactError(f"this network cannot be written as ONNX: {first_line(error)}") from error
    describe(encoder, side, folder, _ONNX)
    try:
        import onnxruntime
    except ImportError:
        return "nothing, because onnxruntime is not installed (pip install onnxruntime)"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return check(
        single, encoder, side, lambda images: map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    )

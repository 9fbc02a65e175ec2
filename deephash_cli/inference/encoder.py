"""The network of a finished run, as what turns any images into binary codes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn

from deephash_cli import runs
from deephash_cli.data.dataset import square
from deephash_cli.data.small_images import MAX_SIDE
from deephash_cli.errors import ArtifactError
from deephash_cli.files import read_json
from deephash_cli.models import HashingNetwork, NoBackbone
from deephash_cli.retrieval import codes_folder
from deephash_cli.training import checkpoints
from deephash_cli.training.instantiate import build, build_module, is_learned
from deephash_cli.training.trust import require_trusted

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_OF_A_RUN = ("method", "module", "model", "dataset", "seed", "epochs", "checkpoint", "versions")  # of its provenance


class Encoder(nn.Module):
    """A trained network that encodes as its run did: precision of the arithmetic, rounding of features, image size.

    Attributes:
        network: In evaluation mode.
        bits: Code length.
        image_size: Side in pixels that images are resized to.
        takes: ``images`` or ``vectors``.
        settings: The configuration of the run.
        provenance: What the codes come from, for a manifest.
    """

    def __init__(self, network: HashingNetwork, settings: dict[str, Any], provenance: dict[str, Any]):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.bits = network.bits
        self.image_size = network.image_size
        self.takes = "vectors" if isinstance(network.backbone, NoBackbone) else "images"
        self.settings = settings
        self.provenance = provenance
        self._half = _HALF.get(settings["trainer"].get("precision"))

    def forward(self, inputs: UInt8[Tensor, "n c h w"] | Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Continuous codes of images, or of vectors where the run hashed vectors."""
        if self.network.frozen and inputs.ndim == 4:
            inputs = self.network.features(inputs).half().float()  # features are kept as float16 while a run learns
        with torch.autocast(inputs.device.type, self._half, enabled=self._half is not None):
            return self.network(inputs).float()


def prepare(image: Image.Image, size: int) -> UInt8[Tensor, "3 h w"]:
    """Pixels of an RGB image as a network is given them: small squares as they are, others as squares of ``size``."""
    small = image.width == image.height <= MAX_SIDE  # as data sets of such images are held in memory
    return torch.from_numpy(square(image, image.width if small else size))


def load_encoder(run: Path, allowed_targets: Sequence[str] = (), vectors: Path | None = None) -> Encoder:
    """Build the network of a run folder and fill it from the checkpoint that the run's codes were made with.

    Nothing in the folder is executed: it may build what deephash trusts, and weights are read as tensors.

    Args:
        run: The folder.
        allowed_targets: Packages besides deephash's own whose classes it may build.
        vectors: The file to be hashed, if the run hashed vectors: those that it learned from need not be there.

    Raises:
        ArtifactError: If the run is not finished, or damaged.
        ConfigError: If it wants to build something that is not trusted.
    """
    record = runs.read_record(run)
    manifest_file = run / runs.CODES / codes_folder.MANIFEST
    if not manifest_file.is_file():
        raise ArtifactError(f"{run} has no codes yet: its status is {runs.status(run, record)}; deephash train ends it")
    provenance = codes_folder.read_manifest(run / runs.CODES)["provenance"]
    settings = runs.read_config(run)
    require_trusted(settings, also=allowed_targets)
    try:
        bits, labels = settings["bits"], _stand_in_labels(run, settings)
        backbone = settings["model"]["network"]["backbone"]
        if "weights" in backbone:
            backbone["weights"] = "none"  # the checkpoint has them
        if vectors is not None and "file" in backbone:
            backbone["file"] = str(vectors)
        config: DictConfig = OmegaConf.create(settings)
        network = build(config.model.network, bits=bits)
        if not is_learned(config):  # such a method puts a hash layer of its own into the network
            network = build_module(config, network, labels).network
        checkpoint = run / runs.CHECKPOINTS / Path(provenance["checkpoint"]["file"]).name
        digest = provenance["checkpoint"]["sha256"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{run / runs.CONFIG} is not the configuration of a run: {error} is missing") from error
    state = checkpoints.read_checkpoint(checkpoint)["state_dict"]
    if checkpoints.digest(checkpoint) != digest:
        raise ArtifactError(
            f"{checkpoint} is not the checkpoint that the codes in {run / runs.CODES} were made with: the run went on "
            "after that; deephash train resume=<run folder> makes the codes anew"
        )
    prefix = "network."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        fitted = run / runs.CONFIG if vectors is None else vectors
        raise ArtifactError(f"{checkpoint} does not fit {fitted}: {str(error).splitlines()[-1].strip()}") from error
    origin = {"run": record.get("id"), **{name: provenance[name] for name in _OF_A_RUN if name in provenance}}
    return Encoder(network, settings, origin)


def _stand_in_labels(run: Path, settings: dict[str, Any]) -> Float[Tensor, "n 2"]:
    """Labels of as many images as the run learned from: a method's layers may have a size that depends on that."""
    n = len(read_json(run / runs.SPLIT)["train"]) - settings["validation"]["queries"]
    return torch.eye(2).repeat(-(-n // 2), 1)[:n]

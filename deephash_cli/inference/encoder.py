"""Load the network of a finished run to encode new images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn

from deephash_cli import runs
from deephash_cli.console import warn
from deephash_cli.data.preprocessing import Preprocessing, to_array
from deephash_cli.data.protocol import training_size
from deephash_cli.data.small_images import MAX_SIDE
from deephash_cli.errors import ArtifactError, DeephashError, command, first_line
from deephash_cli.models import PRECISIONS, HashingNetwork, NoBackbone, computed_features, packed_codes
from deephash_cli.retrieval import codes_folder
from deephash_cli.training import checkpoints
from deephash_cli.training.method_facts import is_learned
from deephash_cli.training.rebuilding import network_without_weights
from deephash_cli.training.trust import require_trusted

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# The entries of a run's provenance that are also true of codes that its network makes of other images.
_OF_A_RUN = ("method", "module", "model", "backbone", "dataset", "seed", "epochs", "checkpoint", "versions")


class Encoder(nn.Module):
    """A trained network that encodes as its run did, with the same image size, precision and rounding of features.

    Args:
        network: Trained network; it is put into evaluation mode and its parameters are frozen.
        settings: Configuration of the run as plain values.
        provenance: Origin of the codes, as it is written to the manifest of a codes folder.

    Attributes:
        network: Network in evaluation mode.
        bits: Code length.
        image_size: Side in pixels that images are resized to.
        takes: Kind of input: ``images`` or ``vectors``.
        settings: Configuration of the run as plain values.
        provenance: Origin of the codes, as it is written to the manifest of a codes folder.
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
        of_features = settings.get("features", {"precision": "fp32"})  # earlier versions had no such settings
        self._half_features = PRECISIONS[of_features["precision"]]

    def forward(self, inputs: UInt8[Tensor, "n c h w"] | Float[Tensor, "n d"]) -> Float[Tensor, "n bits"]:
        """Compute the continuous codes of images, or of vectors if the run hashed vectors.

        Args:
            inputs: Pixels of images, from 0 to 255, or vectors.

        Returns:
            Continuous codes as float32, one row for each image or vector.
        """
        if self.network.frozen and inputs.ndim == 4:
            # Features are kept as float16 while a run learns
            inputs = computed_features(self.network, inputs, self._half_features).half().float()
        with torch.autocast(inputs.device.type, self._half, enabled=self._half is not None):
            return self.network(inputs).float()

    def try_out(self) -> None:
        """Encode an input of zeros, so that a network that cannot work fails here and not at the first image."""
        width = self.network.backbone.num_features
        zeros = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)
        with torch.inference_mode():
            self(torch.zeros(1, int(width)) if self.takes == "vectors" else zeros)  # type: ignore[arg-type]

    def encode(self, images: Sequence[Image.Image]) -> UInt8[np.ndarray, "n bytes"]:
        """Compute the packed codes of RGB images of any size, in their order.

        Args:
            images: Images that fit into memory together; ``deephash encode`` takes any number of files.

        Returns:
            Codes (n, ceil(bits/8)) uint8, as `retrieval.codes.pack` makes them; `retrieval.codes.unpack` turns them
            into truth values.

        Raises:
            DivergedError: If an output of the network is NaN.
        """
        return packed_codes(self.continuous(images))

    def continuous(self, images: Sequence[Image.Image]) -> Float[Tensor, "n bits"]:
        """Compute the continuous codes of RGB images of any size, in their order.

        Args:
            images: Images that fit into memory together.

        Returns:
            Continuous codes as float32, on the CPU.
        """
        u = torch.empty(len(images), self.bits)
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            for row, image in enumerate(images):  # one by one: a code must not depend on the images beside its own
                # convert would copy a picture that is RGB already, and a large one takes hundreds of MB
                pixels = prepare(image if image.mode == "RGB" else image.convert("RGB"), self.network.preprocessing)
                u[row] = self(pixels[None].to(device)).cpu()
        return u


def prepare(image: Image.Image, form: Preprocessing) -> UInt8[Tensor, "3 h w"]:
    """Return the pixels of an RGB image in the form that a network takes.

    Args:
        image: Image in RGB, of any size. A square image with a side of at most ``MAX_SIDE`` keeps its size.
        form: Preprocessing of the network, by which any other image is resized and cropped.
    """
    small = image.width == image.height <= MAX_SIDE  # data sets of such images are kept in memory at their own size
    return torch.from_numpy(to_array(image) if small else form.pixels(image))


def load_encoder(
    run: Path, allowed_targets: Sequence[str] = (), vectors: Path | None = None, allow_unverified: bool = False
) -> Encoder:
    """Build the network of a run folder and load the weights of the checkpoint that made the run's codes.

    No code in the folder is executed: the folder can build only what deephash trusts, and weights are read as tensors.

    Args:
        run: Run folder.
        allowed_targets: Names of further packages whose classes the folder may build.
        vectors: File of the vectors to encode, if the run hashed vectors: its length of vectors is used, so that the
            training vectors need not exist any more. None uses the file of the run.
        allow_unverified: Whether a checkpoint without a sidecar is used, too. It may then be another one than that
            which made the codes of the run, and the provenance says so.

    Raises:
        ArtifactError: If the run is not finished or is damaged, if its configuration is not the one that it was trained
            with, or if ``vectors`` does not fit its network.
        ConfigError: If the run would build something that is not trusted.
    """
    record = runs.read_record(run)
    manifest_file = run / runs.CODES / codes_folder.MANIFEST
    if not manifest_file.is_file():
        raise ArtifactError(
            f"{run} has no codes yet: its status is {runs.status(run, record)}; "
            f"{command('deephash', 'train', f'resume={run}')} finishes it"
        )
    runs.require_intact(run, runs.CODES_MANIFEST, runs.SPLIT)
    manifest = codes_folder.read_manifest(run / runs.CODES)
    needed = ["provenance.checkpoint.file", "provenance.checkpoint.sha256"]
    codes_folder.require_entries(run / runs.CODES, manifest, needed)
    settings = runs.read_config(run)
    require_trusted(settings, also=allowed_targets)
    checkpoint = run / runs.CHECKPOINTS / Path(manifest["provenance"]["checkpoint"]["file"]).name
    known, provenance = _verified(run, record, checkpoint, manifest["provenance"], settings, allow_unverified)
    network = _network(run, record, settings, vectors)
    state = checkpoints.read_checkpoint(checkpoint, allow_unverified=allow_unverified)["state_dict"]
    prefix = "network."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    checkpoints.require_fitting(checkpoint, weights, network, str(vectors or run / runs.CONFIG))
    network.load_state_dict(weights)
    origin = {"run": record.get("id"), **{name: provenance[name] for name in _OF_A_RUN if name in provenance}}
    try:
        encoder = Encoder(network, settings, origin)
        if not known:
            encoder.try_out()
    except Exception as error:
        raise _edited(run, error) from error
    return encoder


def _verified(
    run: Path,
    record: Mapping[str, Any],
    checkpoint: Path,
    provenance: dict[str, Any],
    settings: Mapping[str, Any],
    allow_unverified: bool,
) -> tuple[bool, dict[str, Any]]:
    """Check that a checkpoint is the one that made the codes of a run, and that the settings are those of its training.

    Returns:
        Whether the settings are known to be those of the training, which checkpoints of earlier versions do not say;
        and the provenance of codes that are made with the checkpoint.

    Raises:
        ArtifactError: If the checkpoint is missing or damaged, if another run or an earlier part of this one made the
            codes, or if the settings were edited.
    """
    verified = checkpoints.has_sidecar(checkpoint) or not allow_unverified
    owner = checkpoints.verify_checkpoint(checkpoint) if verified else None
    if checkpoints.digest(checkpoint) != provenance["checkpoint"]["sha256"]:
        if verified:
            ours = checkpoints.Owner.of(str(record.get("id")), settings)
            if owner and owner.run != ours.run:
                checkpoints.verify_checkpoint(checkpoint, ours)  # says which runs they are
            raise ArtifactError(
                f"{checkpoint} is not the checkpoint that the codes in {run / runs.CODES} were made with: the run was "
                f"continued after that; {command('deephash', 'train', f'resume={run}')} makes the codes again"
            )
        warn(f"{checkpoint} is used without verification, and is not the checkpoint that made the codes of {run}")
        entry = {"file": provenance["checkpoint"]["file"], "sha256": checkpoints.digest(checkpoint), "unverified": True}
        # The seed, the number of epochs and the data of its training are not known
        kept = {name: provenance[name] for name in ("method", "module", "model") if name in provenance}
        return False, {**kept, "checkpoint": entry}
    if not verified:
        warn(
            f"{checkpoint} is used without its .json: it is the checkpoint that made the codes of {run}, but nothing "
            f"says that {runs.CONFIG} has the settings of its training"
        )
    if owner and owner.settings != runs.identity(settings):
        ours = checkpoints.Owner.of(owner.run, settings)
        raise ArtifactError(
            f"{run / runs.CONFIG} was edited or damaged after the training: expected the settings of {checkpoint}, "
            f"{owner.settings_unlike(ours)}, got {ours.settings_unlike(owner)}; undo that change"
        )
    return owner is not None, provenance


def _network(run: Path, record: Mapping[str, Any], settings: dict[str, Any], vectors: Path | None) -> HashingNetwork:
    """Build the network of a run without weights.

    Args:
        run: Run folder.
        record: Its record.
        settings: Its configuration.
        vectors: File whose length of vectors is used; None uses the file of the run.

    Raises:
        ArtifactError: If the configuration is not that of a run, or was edited.
        ConfigError: If the configuration does not fit a target that it names.
    """
    try:
        bits, labels = settings["bits"], _stand_in_labels(run, settings)
        node = settings["model"]["network"]
        network = network_without_weights(node, bits, record.get("backbone"), None if vectors is None else str(vectors))
        config = cast(DictConfig, OmegaConf.create(runs.escape(settings)))
        if is_learned(str(settings["module"]["_target_"])):
            return network
        from deephash_cli.training import instantiate  # imports Lightning, which takes a second

        if instantiate.is_learned(config):  # its source cannot be found, such as that of a class that is re-exported
            return network
        return instantiate.build_module(config, network, labels).network  # a fitted method puts its own hash layer in
    except KeyError as error:
        raise ArtifactError(f"{run / runs.CONFIG} is not the configuration of a run: {error} is missing") from error
    except DeephashError:
        raise
    except Exception as error:
        raise _edited(run, error) from error


def _edited(run: Path, error: Exception) -> ArtifactError:
    """Return the error for a configuration whose values make a network fail, which happens in many ways."""
    return ArtifactError(f"{run / runs.CONFIG} was damaged or edited by hand: {first_line(error)}")


def _stand_in_labels(run: Path, settings: dict[str, Any]) -> Float[Tensor, "n 2"]:
    """Make labels for as many images as the run was trained on: the size of a method's layers can depend on that."""
    n = training_size(run / runs.SPLIT) - settings["validation"]["queries"]
    n = min(n, settings.get("fit_rows", n))  # runs of earlier versions were fitted on all images
    return torch.eye(2).repeat(-(-n // 2), 1)[:n]

"""Search a database of codes with images, by the network that made the codes."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from omegaconf import OmegaConf
from PIL import Image

from deephash_cli import runs
from deephash_cli.data.dataset import ImageFiles, ImageTensor, RetrievalDataset, decode
from deephash_cli.errors import ArtifactError, DeephashError
from deephash_cli.inference.encoder import Encoder, load_encoder, prepare
from deephash_cli.models import packed_codes
from deephash_cli.retrieval import indexes
from deephash_cli.retrieval.codes_folder import Database, open_side
from deephash_cli.training.instantiate import build
from deephash_cli.training.trust import require_trusted


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        id: Its name in the database.
        position: Its place there.
        distance: Of its code from the query's.
        labels: Names of its classes.
        relevant: Whether it shares a label with the query; ``None`` where one of the two has none.
    """

    id: str
    position: int
    distance: int
    labels: list[str]
    relevant: bool | None


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        name: A file, or an id.
        packed: Its code.
        labels: Names of its classes, if they are known.
        own: Its own place in the database, which is left out; -1 for none.
        image: Gives what it looks like, if that is known.
    """

    name: str
    packed: UInt8[np.ndarray, "1 bytes"]
    labels: list[str]
    own: int
    image: Callable[[], Image.Image | None]


class Searcher:
    """A database of codes, and the network that makes codes of queries.

    Args:
        encoder: Of the run that the codes are from.
        database: What is searched in.
        pictures: Images of the database by id, as far as they are at hand.
        index: Of the database's codes.
    """

    def __init__(self, encoder: Encoder, database: Database, pictures: "Pictures", index: indexes.Index):
        self.encoder = encoder
        self.database = database
        self.pictures = pictures
        self.index = index
        self.bits, self.n = database.bits, database.n
        provenance = database.manifest["provenance"]
        self.class_names = class_names(database)
        searched = provenance.get("encoded") or provenance.get("dataset")
        self.title = f"{provenance.get('method')}, {self.bits} bits, {searched}"

    def find(self, image: Image.Image, k: int) -> list[Hit]:
        """The nearest images of an RGB image, nearest first, those at one distance in database order."""
        return self.search(Query("", self.encode(image), [], -1, lambda: image), k, None)

    def encode(self, image: Image.Image) -> UInt8[np.ndarray, "1 bytes"]:
        """The code of an RGB image of any size."""
        with torch.inference_mode():
            return packed_codes(self.encoder(prepare(image, self.encoder.image_size)[None]))

    def search(self, query: Query, k: int, radius: int | None) -> list[Hit]:
        """The ``k`` nearest of a query; with a radius, instead, all that are at most so far away."""
        if radius is None:
            distances, positions = (found[0] for found in self.index.nearest(query.packed, k + int(query.own >= 0)))
        else:
            distances, positions = next(self.index.within(query.packed, radius))
        hits = [
            self._hit(query, position, distance)
            for distance, position in zip(distances.tolist(), positions.tolist(), strict=True)
            if position not in (indexes.MISSING, query.own)
        ]
        return hits[:k] if radius is None else hits

    def picture(self, id: str) -> Image.Image | None:  # noqa: A002
        """An image of the database, if it is at hand."""
        return self.pictures.get(id)

    def _hit(self, query: Query, position: int, distance: int) -> Hit:
        labels = label_names(self.class_names, self.database, position)
        relevant = bool(set(labels) & set(query.labels)) if labels and query.labels else None
        return Hit(self.database.ids[position], position, distance, labels, relevant)


class Pictures:
    """Images by id, from the data set that the codes were made of, as far as they are at hand.

    Args:
        source: What a manifest or a run says of where they are: ``{"root": folder}``, or ``{"dataset": node}``.
    """

    def __init__(self, source: dict[str, Any]):
        self._root = Path(source["root"]).resolve() if "root" in source else None
        self._node = source.get("dataset")
        self._dataset: RetrievalDataset | None = None
        self._rows: dict[str, int] = {}

    def get(self, name: str) -> Image.Image | None:
        """The image of that id, or nothing."""
        try:
            if self._root is not None:
                place = (self._root / name).resolve()
                return decode(place) if place.is_relative_to(self._root) else None  # ids come with the codes
            return self._of_dataset(name)
        except DeephashError:
            return None

    def _of_dataset(self, name: str) -> Image.Image | None:
        if self._node is not None:
            node, self._node = self._node, None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._dataset = build(OmegaConf.create(node))
            assert self._dataset is not None
            self._rows = {identifier: row for row, identifier in enumerate(self._dataset.ids)}
        if self._dataset is None or name not in self._rows:
            return None
        images, row = self._dataset.images, self._rows[name]
        if isinstance(images, ImageFiles):
            return decode(images.path(row))
        if isinstance(images, ImageTensor):
            return Image.fromarray(images.images[row].expand(3, -1, -1).permute(1, 2, 0).numpy())
        return None


def open_searcher(
    run: Path,
    folder: Path | None,
    index: str,
    settings: Mapping[str, Mapping[str, Any]],
    allowed_targets: Sequence[str] = (),
    vectors: Path | None = None,
) -> Searcher:
    """Load the network of a run, and open the codes to search in.

    Args:
        run: The run folder.
        folder: Codes that `deephash encode` made with it; ``None``: the database of the run.
        index: What searches them, as of `indexes.open_or_build`.
        settings: Likewise.
        allowed_targets: Packages besides deephash's own whose classes the run may build.
        vectors: As of `load_encoder`.

    Raises:
        DeephashError: If one of the two cannot be used, or they do not belong together.
    """
    encoder = load_encoder(run, allowed_targets, vectors)
    database = open_side(folder or run / runs.CODES)
    if "provenance" not in database.manifest:
        raise ArtifactError(f"{folder} does not say what its codes come from: deephash encode writes such folders")
    ours, theirs = (origin["checkpoint"]["sha256"] for origin in (encoder.provenance, database.manifest["provenance"]))
    if ours != theirs:
        raise ArtifactError(
            f"the codes in {folder} were made with another network than that of {run}: distances between them mean "
            "nothing; give the run that they are from"
        )
    if folder is None:
        source = {"dataset": encoder.settings["dataset"]["source"]}
    else:
        source = database.manifest.get("source") or {}
        require_trusted(source, also=allowed_targets)
    return Searcher(encoder, database, Pictures(source), indexes.open_or_build(index, database, settings))


def class_names(side: Database) -> list[str]:
    """Names of the columns of its labels; their numbers, where the manifest has no names."""
    names, classes = side.manifest["provenance"].get("class_names") or (), side.labels.shape[1]
    return list(names) if len(names) == classes else [str(number) for number in range(classes)]


def label_names(names: Sequence[str], side: Database, position: int) -> list[str]:
    """Names of an image's classes."""
    return [names[number] for number in np.flatnonzero(side.labels[position]).tolist()]

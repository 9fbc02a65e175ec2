"""Search a database of codes with query images, which are encoded by the network that made the codes."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from omegaconf import OmegaConf
from PIL import Image

from deephash_cli import runs
from deephash_cli.console import say, warn
from deephash_cli.data.dataset import ImageArray, ImageFiles, RetrievalDataset, to_rgb
from deephash_cli.data.decoding import decode
from deephash_cli.errors import ArtifactError, DeephashError
from deephash_cli.inference.encoder import Encoder, load_encoder
from deephash_cli.models import packed_codes
from deephash_cli.retrieval import codes_folder, indexes, rescoring, similarity
from deephash_cli.retrieval.by_prefix import ByPrefix
from deephash_cli.retrieval.codes_folder import Database, open_side
from deephash_cli.training.targets import build
from deephash_cli.training.trust import paths_in, require_trusted


@dataclass(frozen=True)
class Hit:
    """An image that a search found.

    Attributes:
        id: Id of the image in the database.
        position: Row of the image in the database.
        distance: Hamming distance, in bits, between its code and the query's.
        labels: Names of its classes.
        relevant: Whether it is similar to the query, as the codes are evaluated; None if one of the two has no labels.
        score: Inner product of the query's continuous code with its code as -1 and +1, by which the results are ranked;
            None if they are ranked by distance.
    """

    id: str
    position: int
    distance: int
    labels: list[str]
    relevant: bool | None
    score: float | None = None


@dataclass(frozen=True)
class Query:
    """An image to search with.

    Attributes:
        name: File name or id of the image.
        packed: Packed code of the image, ``(1, bytes)``.
        labels: Names of its classes; empty if they are not known.
        own: Row of the image itself in the database, which is left out of the results; -1 if it is not there.
        image: Function that returns the image in RGB, or None if it is not available.
        u: Continuous code of the image, which rescoring needs, ``(1, bits)``; None if it is not known.
    """

    name: str
    packed: UInt8[np.ndarray, "1 bytes"]
    labels: list[str]
    own: int
    image: Callable[[], Image.Image | None]
    u: Float[np.ndarray, "1 bits"] | None = None


class Searcher:
    """A database of codes, with the network that encodes queries.

    Args:
        encoder: Encoder of the run that made the codes.
        database: Codes, ids and labels to search in.
        pictures: Images of the database by id, if they are available.
        index: Index of the codes of the database.
        shortlist: Number of nearest codes that are ranked by their scores; see `rescoring`. None ranks by distance.

    Attributes:
        shortlist: Number of nearest codes that are ranked by their scores; None if results are ranked by distance.
        bits: Code length.
        n: Number of codes in the database.
        class_names: Names of the label columns of the database.
        title: Short description of the database: method, code length and data set.
    """

    def __init__(
        self,
        encoder: Encoder,
        database: Database,
        pictures: "Pictures",
        index: indexes.Index | ByPrefix,
        shortlist: int | None = None,
    ):
        self.encoder = encoder
        self.shortlist = shortlist
        self.database = database
        self.pictures = pictures
        self.index = index
        self.bits, self.n = database.bits, database.n
        provenance = database.manifest["provenance"]
        self.class_names = class_names(database)
        self._similar = similarity.of_manifest(database.manifest)
        searched = provenance.get("encoded") or provenance.get("dataset")
        self.title = f"{provenance.get('method')}, {self.bits} bits, {searched}"

    def find(self, image: Image.Image, k: int) -> list[Hit]:
        """Find the images nearest to an RGB image.

        Args:
            image: Image in RGB, of any size.
            k: Number of images to find.

        Returns:
            The images found, in the order of `search`.

        Raises:
            DivergedError: If the output of the network is NaN.
        """
        return self.search(self.query("", lambda: image, []), k, None)

    def query(self, name: str, image: Callable[[], Image.Image], labels: list[str]) -> Query:
        """Return the query for an RGB image of any size, which is not an item of the database.

        Args:
            name: Name of the image.
            image: Function that returns the image in RGB.
            labels: Names of its classes; empty if they are not known.

        Raises:
            DivergedError: If the output of the network is NaN.
        """
        u = self.encoder.continuous([image()])
        return Query(name, packed_codes(u), labels, -1, image, u.numpy())

    def search(self, query: Query, k: int, radius: int | None) -> list[Hit]:
        """Find the images nearest to a query, or all images within a radius.

        Args:
            query: Query with its code.
            k: Number of images to find; unused if there is a radius.
            radius: Largest Hamming distance, in bits, of the images to find; None finds the ``k`` nearest instead.

        Returns:
            The images found, nearest first, ties in database order; with rescoring, those with the largest scores
            first, equal scores in the order of distance, then of the database. The query itself is left out.

        Raises:
            ConfigError: If there is a radius and this kind of index cannot search within one.
            ValueError: If results are rescored, and the query has no continuous code.
        """
        found = (
            self._ranked_by_distance(query, k, radius) if self.shortlist is None else self._rescored(query, k, radius)
        )
        hits = [
            self._hit(query, position, distance, score)
            for score, distance, position in zip(*found, strict=True)
            if position not in (indexes.MISSING, query.own)
        ]
        return hits[:k] if radius is None else hits

    def picture(self, id: str) -> Image.Image | None:  # noqa: A002
        """Return the image of the database with this id, in RGB; None if it is not available."""
        return self.pictures.get(id)

    def _ranked_by_distance(self, query: Query, k: int, radius: int | None) -> tuple[list[None], list[int], list[int]]:
        if radius is None:
            distances, positions = (found[0] for found in self.index.nearest(query.packed, k + int(query.own >= 0)))
        else:
            distances, positions = next(self.index.within(query.packed, radius))
        return [None] * len(positions), distances.tolist(), positions.tolist()

    def _rescored(self, query: Query, k: int, radius: int | None) -> tuple[list[float], list[int], list[int]]:
        assert self.shortlist is not None
        if query.u is None:
            raise ValueError(f"rescoring needs the continuous code of the query, which {query.name} has not")
        asked = self.index, self.database.packed, query.packed, query.u
        if radius is None:
            own = None if query.own < 0 else np.array([query.own])
            scores, distances, positions = rescoring.nearest(*asked, k, self.shortlist, own)
        else:
            scores, distances, positions = rescoring.within(*asked, radius)
        return scores[0].tolist(), distances[0].tolist(), positions[0].tolist()

    def _hit(self, query: Query, position: int, distance: int, score: float | None) -> Hit:
        labels = label_names(self.class_names, self.database, position)
        of_query = set(query.labels)
        is_similar = set(labels) == of_query if self._similar == similarity.ALL else bool(set(labels) & of_query)
        relevant = is_similar if labels and query.labels else None
        return Hit(self.database.ids[position], position, distance, labels, relevant, score)


class Pictures:
    """Images by id, from the folder or data set that the codes were made from, if they are available.

    Args:
        source: Location of the images, from a manifest or a run: ``{"root": folder}`` or ``{"dataset": node}``, where
            the node of the configuration builds the data set. Empty if the location is not known.
        named: File that says this, for the message about what is read.
    """

    def __init__(self, source: dict[str, Any], named: Path | str = "their manifest"):
        self._named = named
        self._root = Path(source["root"]).absolute() if isinstance(source.get("root"), str) else None
        self._node = source.get("dataset")
        self._read = paths_in({"dataset": {"source": {"root": source.get("root"), **(self._node or {})}}})
        self._dataset: RetrievalDataset | None = None
        self._rows: dict[str, int] = {}

    def get(self, name: str) -> Image.Image | None:
        """Return the image with this id, in RGB; None if it is not available."""
        if self._read:
            say(f"pictures are read from {', '.join(self._read)}, as {self._named} says")
            self._read = []
        try:
            if self._root is not None:
                return decode(self._root / name) if self._is_inside(name) else None
            return self._of_dataset(name)
        except (DeephashError, OSError, ValueError):  # the last two: a name that no file can have
            return None

    def why_not(self, name: str) -> str:
        """Return why the image with this id is not shown, for the user of this machine."""
        if self._root is None:
            return f"the picture of {name} is not available"
        if not self._is_inside(name):
            return f"{name} is not shown, because it lies outside {self._root}, the folder of the encoded images"
        return f"the picture of {name} cannot be read in {self._root}"

    def _is_inside(self, name: str) -> bool:
        """Whether an id is a path below the folder of the images.

        Ids come with the codes, so they may be somebody else's and must not lead out of the folder. A symbolic link in
        the folder is the user's own, and is followed as ``deephash encode`` follows it.
        """
        return (
            self._root is not None and ".." not in Path(name).parts and (self._root / name).is_relative_to(self._root)
        )

    def _of_dataset(self, name: str) -> Image.Image | None:
        if self._node is not None:
            node, self._node = self._node, None
            if "download" in node:
                node = {**node, "download": False}  # showing a picture is no reason to fetch a data set
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._dataset = build(OmegaConf.create(runs.escape(node)))
            assert self._dataset is not None
            self._rows = {identifier: row for row, identifier in enumerate(self._dataset.ids)}
        if self._dataset is None or name not in self._rows:
            return None
        images, row = self._dataset.images, self._rows[name]
        if isinstance(images, ImageFiles):
            return decode(images.source(row))
        if isinstance(images, ImageArray):
            return Image.fromarray(to_rgb(images.images[row : row + 1])[0])
        return None


def open_searcher(
    run: Path,
    folder: Path | None,
    index: str,
    settings: Mapping[str, Mapping[str, Any]],
    allowed_targets: Sequence[str] = (),
    vectors: Path | None = None,
    allow_unverified: bool = False,
    prefix_bits: int | None = None,
    shortlist: int = 1000,
    is_rescored: bool = False,
) -> Searcher:
    """Load the network of a run, and open the codes to search in.

    Args:
        run: Run folder.
        folder: Folder of codes that ``deephash encode`` made with the run; None searches the database of the run.
        index: Kind of the index to search with, or the file of one; see ``indexes.open_or_build``.
        settings: Settings of each kind of index; see ``indexes.open_or_build``.
        allowed_targets: Names of further packages whose classes the run may build.
        vectors: File of query vectors, if the run hashed vectors; see ``load_encoder``. None uses the file of the run.
        allow_unverified: Whether a checkpoint without a sidecar is used, too; see ``load_encoder``.
        prefix_bits: Number of first bits that choose a shortlist, which all bits order; None uses all bits alone.
        shortlist: Number of items in a shortlist.
        is_rescored: Whether the items of a shortlist are ranked by their scores; see `rescoring`.

    Raises:
        ArtifactError: If the run is not finished, if the codes are damaged, or if another network made them.
        ConfigError: If something would be built that is not trusted, or if the index cannot be used.
    """
    encoder = load_encoder(run, allowed_targets, vectors, allow_unverified)
    database = open_side(folder or run / runs.CODES)
    if "provenance" not in database.manifest:
        raise ArtifactError(
            f"{folder} does not say which network made its codes: give a folder of codes that deephash encode wrote"
        )
    codes_folder.require_entries(folder or run / runs.CODES, database.manifest, ["provenance.checkpoint.sha256"])
    ours, theirs = (origin["checkpoint"]["sha256"] for origin in (encoder.provenance, database.manifest["provenance"]))
    if ours != theirs:
        raise ArtifactError(
            f"the codes in {folder or run / runs.CODES} were made by a different network than that of {run}, so "
            "distances between them are meaningless: give the run that made the codes"
        )
    if folder is None:
        source, named = {"dataset": encoder.settings["dataset"]["source"]}, run / runs.CONFIG
    else:
        source, named = database.manifest.get("source") or {}, folder / codes_folder.MANIFEST
        if "dataset" in source:
            require_trusted({"dataset": {"source": source["dataset"]}}, also=allowed_targets)
    if prefix_bits is None:
        built = indexes.open_or_build(index, database, settings)
    else:
        built = ByPrefix(database, prefix_bits, shortlist, index, settings)
        if prefix_bits not in (encoder.settings.get("nested") or ()):
            warn(f"the first {prefix_bits} bits were not trained to be a code by themselves: only nested lengths are")
    return Searcher(encoder, database, Pictures(source, named), built, shortlist if is_rescored else None)


def class_names(side: Database) -> list[str]:
    """Return the names of the label columns of a database; their numbers as text if the manifest has no names."""
    names = side.manifest["provenance"].get("class_names")  # as many as there are columns, which its reader has checked
    return [str(number) for number in range(side.labels.shape[1])] if names is None else list(names)


def label_names(names: Sequence[str], side: Database, position: int) -> list[str]:
    """Return the names of the classes of one image.

    Args:
        names: Names of the label columns.
        side: Database with the labels.
        position: Row of the image in the database.
    """
    return [names[number] for number in np.flatnonzero(side.labels[position]).tolist()]

"""``deephash search``: the nearest images of an image, as a table, as JSON, and as a picture."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.markup import escape
from rich.table import Table

from deephash_cli import runs
from deephash_cli.console import console, say, warn
from deephash_cli.data.dataset import ImageFiles, ImageTensor, RetrievalDataset, Vectors, decode
from deephash_cli.data.image_folder import images_below
from deephash_cli.errors import ArtifactError, ConfigError, DataError, DeephashError
from deephash_cli.files import write_bytes, write_json
from deephash_cli.inference import contact_sheet as sheets
from deephash_cli.inference.encoder import Encoder, load_encoder, prepare
from deephash_cli.models import packed_codes
from deephash_cli.npy import FLOATS, open_array
from deephash_cli.retrieval import indexes
from deephash_cli.retrieval.codes import Database, open_side
from deephash_cli.training.instantiate import build, require_trusted

SHOWN = 20  # queries in the table and in the picture; JSON has all


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
        self.class_names = _class_names(database)
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
        labels = _labels(self.class_names, self.database, position)
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


def search(config: DictConfig) -> list[dict[str, Any]]:
    """The verb.

    Returns:
        For each query its results, as they are written to ``output``.
    """
    if config.query is None:
        raise ConfigError("deephash search needs query=<image, folder of images, or id of an image of the run>")
    run = runs.given_or_latest(config.run)
    place = Path(config.query).expanduser()
    vectors = place if place.suffix == ".npy" else None
    folder = None if config.codes is None else Path(config.codes)
    settings = cast(dict[str, Any], OmegaConf.to_container(config))
    searcher = open_searcher(run, folder, config.index, settings, list(config.allowed_targets), vectors)
    say(f"{run}: {searcher.title}, {searcher.n} images")
    found = [(query, searcher.search(query, config.k, config.radius)) for query in _queries(searcher, run, place)]
    for query, hits in found[:SHOWN]:
        _show(query, hits[: config.k])
        if len(hits) > config.k:
            say(f"... and {len(hits) - config.k} more within {config.radius}")
    if len(found) > SHOWN:
        say(f"... and {len(found) - SHOWN} queries more; output=<file.json> has all")
    results = [_described(query, hits) for query, hits in found]
    if config.output is not None:
        asked = {"run": str(run), **{name: config[name] for name in ("codes", "index", "k", "radius")}}
        write_json(Path(config.output), {**asked, "bits": searcher.bits, "queries": results})
        say(f"results: {config.output}")
    if config.picture is not None:
        _draw(Path(config.picture), searcher, [(query, hits[: config.k]) for query, hits in found[:SHOWN]])
    return results


def _class_names(side: Database) -> list[str]:
    """Names of the columns of its labels; their numbers, where the manifest has no names."""
    names, classes = side.manifest["provenance"].get("class_names") or (), side.labels.shape[1]
    return list(names) if len(names) == classes else [str(number) for number in range(classes)]


def _labels(names: Sequence[str], side: Database, position: int) -> list[str]:
    """Names of an image's classes."""
    return [names[number] for number in np.flatnonzero(side.labels[position]).tolist()]


def _queries(searcher: Searcher, run: Path, place: Path) -> list[Query]:
    """What is to be searched for.

    Raises:
        DataError: If it is no image, nor the id of one.
    """
    if place.suffix == ".npy":
        return _vector_queries(searcher, place)
    if place.is_dir():
        found, _ = images_below(place)
        if not found:
            raise DataError(f"query={place} holds no image")
        return [_image_query(searcher, path, path.relative_to(place)) for path in found]
    if place.is_file():
        return [_image_query(searcher, place, place)]
    for side in ("query", "database"):
        database = open_side(run / runs.CODES, side)
        if str(place) in (ids := list(database.ids)):
            row = ids.index(str(place))
            own = next((i for i, name in enumerate(searcher.database.ids) if name == str(place)), -1)
            code, labels = database.packed[row : row + 1], _labels(_class_names(database), database, row)
            return [Query(str(place), code, labels, own, lambda: searcher.picture(str(place)))]
    raise DataError(
        f"query={place} is neither a file, nor a folder, nor the id of an image of {run} (such as {ids[0]})"
    )


def _image_query(searcher: Searcher, path: Path, name: Path) -> Query:
    """A file; the folder that it is in names its class, if it has the name of one."""
    if searcher.encoder.takes != "images":
        raise ConfigError(f"query={path} is no .npy file, and the run hashes vectors")
    labels = [folder for folder in name.parts[:-1] if folder in searcher.class_names]
    return Query(name.as_posix(), searcher.encode(decode(path)), labels[:1], -1, lambda: decode(path))


def _vector_queries(searcher: Searcher, path: Path) -> list[Query]:
    if searcher.encoder.takes != "vectors":
        raise ConfigError(f"query={path} holds vectors, and the run hashes images")
    vectors = Vectors(open_array(path, "vectors", (2,), FLOATS))
    with torch.inference_mode():
        u = searcher.encoder(vectors.batch(np.arange(len(vectors))))
    return [Query(f"row {row}", packed[None], [], -1, lambda: None) for row, packed in enumerate(packed_codes(u))]


def _show(query: Query, hits: Sequence[Hit]) -> None:
    labels = f" ({', '.join(query.labels)})" if query.labels else ""
    table = Table(title=escape(f"{query.name}{labels}"), title_justify="left")
    for name in ("rank", "distance"):
        table.add_column(name, justify="right")
    table.add_column("id")
    marks = {True: "yes", False: "no", None: ""}
    labelled = any(hit.labels for hit in hits)
    for name in ("label", "relevant") if labelled else ():
        table.add_column(name)
    for rank, hit in enumerate(hits, start=1):
        more = (escape(", ".join(hit.labels)), marks[hit.relevant]) if labelled else ()
        table.add_row(str(rank), str(hit.distance), escape(hit.id), *more)
    console.print(table)


def _described(query: Query, hits: Sequence[Hit]) -> dict[str, Any]:
    results = [
        {
            "id": hit.id,
            "position": hit.position,
            "distance": hit.distance,
            "labels": hit.labels,
            "relevant": hit.relevant,
        }
        for hit in hits
    ]
    return {"query": query.name, "labels": query.labels, "results": results}


def _draw(path: Path, searcher: Searcher, found: Sequence[tuple[Query, list[Hit]]]) -> None:
    rows = []
    for query, hits in found:
        row = [sheets.Tile(query.image(), "query", ", ".join(query.labels), None)]
        row += [
            sheets.Tile(
                searcher.picture(hit.id), f"distance {hit.distance}", ", ".join(hit.labels) or hit.id, hit.relevant
            )
            for hit in hits
        ]
        rows.append(row)
    if not any(tile.image for row in rows for tile in row):
        warn("no picture: none of the images is at hand")
        return
    write_bytes(path, sheets.contact_sheet(rows, path.suffix))
    say(f"picture: {path}")

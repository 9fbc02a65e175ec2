"""``deephash search``: the nearest images of an image, as a table, as JSON, and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from deephash_cli import runs
from deephash_cli.console import console, say, warn
from deephash_cli.data.dataset import Vectors, decode
from deephash_cli.data.image_folder import images_below
from deephash_cli.errors import ConfigError, DataError
from deephash_cli.files import write_bytes, write_json
from deephash_cli.inference import contact_sheet as sheets
from deephash_cli.inference.searcher import Hit, Query, Searcher, class_names, label_names, open_searcher
from deephash_cli.models import packed_codes
from deephash_cli.npy import FLOATS, open_array
from deephash_cli.retrieval.codes_folder import open_side

SHOWN = 20  # number of queries that are printed and drawn; the JSON file has all


def run(config: DictConfig) -> list[dict[str, Any]]:
    """Run ``deephash search``.

    Returns:
        The results of each query, as they are written to ``output``.
    """
    if config.query is None:
        raise ConfigError("deephash search needs query=<image, folder of images, or id of an image of the run>")
    run_folder = runs.given_or_latest(config.run)
    place = Path(config.query).expanduser()
    vectors = place if place.suffix == ".npy" else None
    folder = None if config.codes is None else Path(config.codes)
    settings = cast(dict[str, Any], OmegaConf.to_container(config))
    searcher = open_searcher(run_folder, folder, config.index, settings, list(config.allowed_targets), vectors)
    say(f"{run_folder}: {searcher.title}, {searcher.n} images")
    if config.radius is None and config.k > searcher.n:
        warn(f"k={config.k} is more than the {searcher.n} images that are searched: no query finds more than these")
    found = [
        (query, searcher.search(query, config.k, config.radius)) for query in _queries(searcher, run_folder, place)
    ]
    for query, hits in found[:SHOWN]:
        _show(query, hits[: config.k])
        if len(hits) > config.k:
            say(f"... and {len(hits) - config.k} more within distance {config.radius}")
    if len(found) > SHOWN:
        say(f"... and {len(found) - SHOWN} more queries; output=<file.json> writes all")
    results = [_described(query, hits) for query, hits in found]
    if config.output is not None:
        asked = {"run": str(run_folder), **{name: config[name] for name in ("codes", "index", "k", "radius")}}
        write_json(Path(config.output), {**asked, "bits": searcher.bits, "queries": results})
        say(f"results: {config.output}")
    if config.picture is not None:
        _draw(Path(config.picture), searcher, [(query, hits[: config.k]) for query, hits in found[:SHOWN]])
    return results


def _queries(searcher: Searcher, run: Path, place: Path) -> list[Query]:
    """Return the queries that ``place`` names: an image, a folder of images, vectors, or the id of an image of the run.

    Raises:
        DataError: If ``place`` is none of these.
    """
    if place.suffix == ".npy":
        return _vector_queries(searcher, place)
    if place.is_dir():
        found, _ = images_below(place)
        if not found:
            raise DataError(f"query={place} contains no images")
        return [_image_query(searcher, path, path.relative_to(place)) for path in found]
    if place.is_file():
        return [_image_query(searcher, place, place)]
    for side in ("query", "database"):
        database = open_side(run / runs.CODES, side)
        if str(place) in (ids := list(database.ids)):
            row = ids.index(str(place))
            own = next((i for i, name in enumerate(searcher.database.ids) if name == str(place)), -1)
            code, labels = database.packed[row : row + 1], label_names(class_names(database), database, row)
            return [Query(str(place), code, labels, own, lambda: searcher.picture(str(place)))]
    raise DataError(
        f"query={place} is neither a file, nor a folder, nor the id of an image of {run} (such as {ids[0]})"
    )


def _image_query(searcher: Searcher, path: Path, name: Path) -> Query:
    """Return the query for an image file; if a folder in ``name`` is named like a class, that class is its label."""
    if searcher.encoder.takes != "images":
        raise ConfigError(f"query={path} is not a .npy file, but the run hashes vectors")
    labels = [folder for folder in name.parts[:-1] if folder in searcher.class_names]
    return Query(name.as_posix(), searcher.encode(decode(path)), labels[:1], -1, lambda: decode(path))


def _vector_queries(searcher: Searcher, path: Path) -> list[Query]:
    if searcher.encoder.takes != "vectors":
        raise ConfigError(f"query={path} contains vectors, but the run hashes images")
    vectors = Vectors(open_array(path, "vectors", (2,), FLOATS))
    with torch.inference_mode():
        u = searcher.encoder(torch.from_numpy(vectors.batch(np.arange(len(vectors)))))
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
        warn("no picture: none of the images is available")
        return
    write_bytes(path, sheets.contact_sheet(rows, path.suffix))
    say(f"picture: {path}")

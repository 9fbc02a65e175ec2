"""``deephash search``: the nearest images of an image, as a table, as JSON, and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from deephash_cli import runs
from deephash_cli.console import say, show, warn
from deephash_cli.data.dataset import Vectors
from deephash_cli.data.decoding import ImageError, decode
from deephash_cli.data.identity import composed
from deephash_cli.data.image_folder import describe_left_out, images_below
from deephash_cli.data.inspection import named
from deephash_cli.errors import ConfigError, DataError
from deephash_cli.files import is_device, write_bytes, write_json
from deephash_cli.inference import contact_sheet as sheets
from deephash_cli.npy import FLOATS, open_array
from deephash_cli.retrieval import rescoring
from deephash_cli.retrieval.codes_folder import Database, open_continuous, open_side, read_manifest
from deephash_cli.runs.outputs import settle, unused

# Elsewhere imported inside functions, because torch takes seconds; an output that cannot be used is refused before.
if TYPE_CHECKING:
    from deephash_cli.inference.searcher import Hit, Query, Searcher

SHOWN = 20  # number of queries that are printed and drawn; the JSON file has all


def run(config: DictConfig) -> list[dict[str, Any]]:
    """Run ``deephash search``.

    Returns:
        The results of each query, as they are written to ``output``.

    Raises:
        ConfigError: If a setting is missing or cannot be used, or if an output must not be replaced.
        DataError: If ``query`` is not an image, a folder of images, vectors or an id.
    """
    if config.query is None:
        raise ConfigError("deephash search needs query=<image, folder of images, or id of an image of the run>")
    picture = unused(Path("search.png")) if config.picture == "auto" else config.picture
    ending = ".png" if picture is None or is_device(Path(picture)) else Path(picture).suffix
    sheets.image_format(ending)
    output, picture_file = settle(
        "search",
        {"output=": config.output, "picture=": picture},
        {f"{name}=": config[name] for name in ("query", "run", "codes", "index")},
        config.overwrite,
    )
    # With a radius there is no shortlist: everything within it is ranked.
    is_rescored = (
        rescoring.settle(config.rescore, config.shortlist, config.k if config.radius is None else 1) is not None
    )
    run_folder = runs.given_or_latest(config.run, config.codes)
    place = Path(config.query).expanduser()
    if place.suffix != ".npy" and not place.exists():
        side, _, row = _by_id(run_folder, str(place))
        if is_rescored:
            _continuous(run_folder, side, row, str(place))
    from deephash_cli.inference.searcher import open_searcher

    vectors = place if place.suffix == ".npy" else None
    folder = None if config.codes is None else Path(config.codes)
    settings = cast(dict[str, Any], OmegaConf.to_container(config))
    trusted = list(config.allowed_targets)
    searcher = open_searcher(
        run_folder,
        folder,
        config.index,
        settings,
        trusted,
        vectors,
        config.allow_unverified,
        prefix_bits=config.prefix_bits,
        shortlist=config.shortlist,
        is_rescored=is_rescored,
    )
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
    if output is not None:
        names = ["codes", "index", "k", "radius", "rescore"]
        if config.prefix_bits is not None:
            names.append("prefix_bits")
        if config.prefix_bits is not None or is_rescored:
            names.append("shortlist")
        asked = {"run": str(run_folder), **{name: config[name] for name in names}}
        write_json(output, {**asked, "bits": searcher.bits, "queries": results})
        say(f"results: {config.output}")
    if picture_file is not None:
        sheet = _draw(searcher, [(query, hits[: config.k]) for query, hits in found[:SHOWN]], ending)
        if sheet is None:
            warn("no picture: none of the images is available")
        else:
            write_bytes(picture_file, sheet)
            say(f"picture: {picture}")
    return results


def _queries(searcher: "Searcher", run: Path, place: Path) -> list["Query"]:
    """Return the queries that ``place`` names: an image, a folder of images, vectors, or the id of an image of the run.

    Raises:
        DataError: If ``place`` is none of these.
    """
    from deephash_cli.inference.searcher import Query, class_names, label_names

    if place.suffix == ".npy":
        return _vector_queries(searcher, place)
    if place.is_dir():
        found, others = images_below(place)
        if not found:
            raise DataError(f"query={place} contains no images ({len(others)} other files)")
        if others:
            warn(describe_left_out(others))
        return _folder_queries(searcher, place, found)
    if place.is_file():
        return [_image_query(searcher, place, place)]
    side, database, row = _by_id(run, str(place))
    own = next((i for i, name in enumerate(searcher.database.ids) if name == str(place)), -1)
    code, labels = database.packed[row : row + 1], label_names(class_names(database), database, row)
    u = None if searcher.shortlist is None else _continuous(run, side, row, str(place))
    return [Query(str(place), code, labels, own, lambda: searcher.picture(str(place)), u)]


def _continuous(run: Path, side: str, row: int, name: str) -> Float[np.ndarray, "1 bits"]:
    """Return the continuous code of an image of a run.

    Raises:
        ConfigError: If the run did not keep it.
    """
    folder = run / runs.CODES
    u = open_continuous(folder, side, read_manifest(folder))
    if u is None:
        raise ConfigError(
            f"rescore= needs the continuous code of query={name}, but {folder} has no {side}_u.npy: give the image "
            "itself, as a file, or leave out rescore="
        )
    return np.asarray(u[row : row + 1])


def _by_id(run: Path, name: str) -> tuple[str, Database, int]:
    """Return the side of the codes of a run that has an image with this id: its name, the side, the row of the image.

    Raises:
        DataError: If there is no such image.
    """
    ids: list[str] = []
    for side in ("query", "database"):
        database = open_side(run / runs.CODES, side)
        if name in (ids := list(database.ids)):
            return side, database, ids.index(name)
    raise DataError(f"query={name} is neither a file, nor a folder, nor the id of an image of {run} (such as {ids[0]})")


def _folder_queries(searcher: "Searcher", folder: Path, paths: Sequence[Path]) -> list["Query"]:
    """Return a query for each image file of a folder.

    Raises:
        DataError: If images cannot be read. The message names all of them.
    """
    queries, bad = [], []
    for path in paths:
        name = path.relative_to(folder)
        try:
            queries.append(_image_query(searcher, path, name))
        except ImageError as error:
            bad.append((name.as_posix(), error.reason))
    if bad:
        them = "it" if len(bad) == 1 else "them"
        raise DataError(
            f"{len(bad)} of the {len(paths)} images in query={folder} cannot be read: {named(bad)}; "
            f"replace or remove {them}"
        )
    return queries


def _image_query(searcher: "Searcher", path: Path, name: Path) -> "Query":
    """Return the query for an image file; if a folder in ``name`` is named like a class, that class is its label."""
    if searcher.encoder.takes != "images":
        raise ConfigError(f"query={path} is not a .npy file, but the run hashes vectors")
    folders = [composed(folder) for folder in name.parts[:-1]]
    labels = [folder for folder in folders if folder in searcher.class_names]
    return searcher.query(name.as_posix(), lambda: decode(path), labels[:1])


def _vector_queries(searcher: "Searcher", path: Path) -> list["Query"]:
    import torch

    from deephash_cli.inference.searcher import Query
    from deephash_cli.models import packed_codes

    if searcher.encoder.takes != "vectors":
        raise ConfigError(f"query={path} contains vectors, but the run hashes images")
    vectors = Vectors(open_array(path, "vectors", (2,), FLOATS))
    with torch.inference_mode():
        u = searcher.encoder(torch.from_numpy(vectors.batch(np.arange(len(vectors)))))
    packed, values = packed_codes(u), u.numpy()
    return [
        Query(f"row {row}", packed[row : row + 1], [], -1, lambda: None, values[row : row + 1])
        for row in range(len(packed))
    ]


def _show(query: "Query", hits: Sequence["Hit"]) -> None:
    labels = f" ({', '.join(query.labels)})" if query.labels else ""
    table = Table()
    scored = any(hit.score is not None for hit in hits)
    for name in ("rank", *(("score",) if scored else ()), "distance"):
        table.add_column(name, justify="right")
    table.add_column("id")
    marks = {True: "yes", False: "no", None: ""}
    labelled = any(hit.labels for hit in hits)
    for name in ("label", "relevant") if labelled else ():
        table.add_column(name)
    for rank, hit in enumerate(hits, start=1):
        more = (escape(", ".join(hit.labels)), marks[hit.relevant]) if labelled else ()
        score = () if hit.score is None else (f"{hit.score:.5g}",)
        table.add_row(str(rank), *score, str(hit.distance), escape(hit.id), *more)
    show(table, f"{query.name}{labels}")


def _described(query: "Query", hits: Sequence["Hit"]) -> dict[str, Any]:
    results = [
        {
            "id": hit.id,
            "position": hit.position,
            "distance": hit.distance,
            "labels": hit.labels,
            "relevant": hit.relevant,
            "score": hit.score,
        }
        for hit in hits
    ]
    return {"query": query.name, "labels": query.labels, "results": results}


def _title(hit: "Hit") -> str:
    return f"distance {hit.distance}" if hit.score is None else f"score {hit.score:.4g}, dist. {hit.distance}"


def _draw(searcher: "Searcher", found: Sequence[tuple["Query", list["Hit"]]], ending: str) -> bytes | None:
    """Return the contact sheet of some queries and their results; None if none of the images is available."""
    rows = []
    for query, hits in found:
        row = [sheets.Tile(query.image(), "query", ", ".join(query.labels), None)]
        row += [
            sheets.Tile(searcher.picture(hit.id), _title(hit), ", ".join(hit.labels) or hit.id, hit.relevant)
            for hit in hits
        ]
        rows.append(row)
    is_empty = not any(tile.image for row in rows for tile in row)
    return None if is_empty else sheets.contact_sheet(rows, ending)

"""Write and read the retrieval gallery of a run folder: ``retrieval.json`` and the images in ``retrieval.webp``."""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deephash_cli import runs
from deephash_cli.errors import ArtifactError
from deephash_cli.files import read_bytes, read_json, write_bytes, write_json
from deephash_cli.retrieval.scoring import is_number

IMAGE_LIMIT = 3 * 2**20  # bytes of retrieval.webp
_RECORD_LIMIT = 4 * 2**20  # bytes of retrieval.json
_QUERIES, _RESULTS, _TILE = 50, 20, 256  # largest numbers of queries and results, and largest tile in pixels


@dataclass(frozen=True)
class Gallery:
    """Some queries of a run, with the images that each of them retrieved.

    Attributes:
        tile: Width and height of an image, in pixels.
        k: Largest number of results of a query.
        ties: Rule for the order of items at the same distance.
        queries: One entry per query: ``id``, ``labels``, ``average_precision`` (``None`` without labels), ``kind``
            and ``results``. The results are sorted nearest first; each has ``id``, ``labels``, ``distance`` and
            ``relevant`` (``None`` without labels).
        image: Content of a WebP file with one row of tiles per query: the query itself, then its results.
    """

    tile: int
    k: int
    ties: str
    queries: list[dict[str, Any]]
    image: bytes


def write(folder: Path, gallery: Gallery) -> None:
    """Write the gallery of a run into its folder, the image first.

    Raises:
        ArtifactError: If the folder cannot be written to.
    """
    record = {"tile": gallery.tile, "k": gallery.k, "ties": gallery.ties, "queries": gallery.queries}
    write_bytes(folder / runs.RETRIEVAL_IMAGE, gallery.image)
    write_json(folder / runs.RETRIEVAL, record)


def exists(folder: Path) -> bool:
    """Return whether a run folder has a gallery."""
    return all(os.path.lexists(folder / name) for name in (runs.RETRIEVAL, runs.RETRIEVAL_IMAGE))


def read(folder: Path) -> Gallery:
    """Read the gallery of a run folder. The folder may come from another person, so its files are checked.

    Raises:
        ArtifactError: If a file cannot be read, is not as it was written or has the wrong content, or if the two files
            do not match.
    """
    file, image_file = folder / runs.RETRIEVAL, folder / runs.RETRIEVAL_IMAGE
    runs.require_intact(folder, runs.RETRIEVAL, runs.RETRIEVAL_IMAGE)
    record = read_json(file, limit=_RECORD_LIMIT)
    if not _is_record(record):
        raise ArtifactError(f"{file} is not the record of a gallery: it was damaged or edited by hand")
    content = read_bytes(image_file, limit=IMAGE_LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
                size = image.size
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ArtifactError(f"{image_file} is not a WebP image that can be read") from error
    expected = (record["tile"] * (record["k"] + 1), record["tile"] * len(record["queries"]))
    if size != expected:
        wanted, got = (f"{width} x {height}" for width, height in (expected, size))
        raise ArtifactError(f"{image_file} must have {wanted} pixels to match {runs.RETRIEVAL}, got {got}")
    return Gallery(record["tile"], record["k"], record["ties"], record["queries"], content)


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and _is_count(record.get("tile"), _TILE)
        and _is_count(record.get("k"), _RESULTS)
        and isinstance(record.get("ties"), str)
        and isinstance(record.get("queries"), list)
        and 0 < len(record["queries"]) <= _QUERIES
        and all(_is_query(query, record["k"]) for query in record["queries"])
    )


def _is_query(query: Any, k: int) -> bool:
    return (
        _is_item(query)
        and (query.get("average_precision") is None or is_number(query["average_precision"]))
        and isinstance(query.get("kind"), str)
        and isinstance(query.get("results"), list)
        and len(query["results"]) <= k
        and all(
            _is_item(found) and type(found.get("distance")) is int and found.get("relevant", "") in (True, False, None)
            for found in query["results"]
        )
    )


def _is_item(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("id"), str)
        and isinstance(item.get("labels"), list)
        and all(isinstance(label, str) for label in item["labels"])
    )


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 1 <= value <= limit

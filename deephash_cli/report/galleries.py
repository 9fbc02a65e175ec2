"""Galleries of a report: images of queries and their results, as many as there is room for."""

import base64
from dataclasses import dataclass
from typing import Any

from PIL import Image

from deephash_cli import runs
from deephash_cli.errors import ArtifactError, first_line
from deephash_cli.files import read_json
from deephash_cli.report.curves import is_number
from deephash_cli.results import Result, Section

PER_SECTION = 6
BUDGET = 3 * 2**20  # largest number of characters that all galleries of a report may take
_SHOWN = 64  # pixels; smaller images are enlarged to a side of this, or at least half of it
_QUERIES, _RESULTS, _TILE = 50, 20, 256  # largest values accepted; the last is in pixels


@dataclass(frozen=True)
class Gallery:
    """One run's queries with their results.

    Attributes:
        result: The run.
        label: The row that it is of.
        tile: Width and height of an image, in pixels.
        k: Results of a query.
        ties: What became of items at the same distance.
        queries: As in ``retrieval.json``.
        image: All images, a row a query, the query first: WebP, as a data URI.
    """

    result: Result
    label: str
    tile: int
    k: int
    ties: str
    queries: list[dict[str, Any]]
    image: str


def choose(sections: list[Section], metric: str) -> tuple[list[list[Gallery]], list[list[str]]]:
    """Choose the best run of each method in each section, best methods first, if there is room for it.

    The sections take turns, so that none takes all the room.

    Args:
        sections: Sections of the report.
        metric: Name of the metric that decides which run is best.

    Returns:
        The galleries of each section, and for each section the texts that name the galleries left out and say why.
    """
    queues = [_candidates(section, metric) for section in sections]
    chosen: list[list[Gallery]] = [[] for _ in sections]
    left_out: list[list[str]] = [[] for _ in sections]
    room = BUDGET
    for place in range(max(map(len, queues), default=0)):
        for number, queue in enumerate(queues):
            if place >= len(queue):
                continue
            label, result = queue[place]
            if len(chosen[number]) >= PER_SECTION:
                left_out[number].append(f"{label}, {result.metrics['bits']} bits: no more than {PER_SECTION} are shown")
                continue
            try:
                gallery = read(result, label)
            except ArtifactError as error:
                left_out[number].append(f"{label}, {result.metrics['bits']} bits: {first_line(error)}")
                continue
            if len(gallery.image) > room:
                left_out[number].append(f"{label}, {result.metrics['bits']} bits: this file would become too large")
                continue
            room -= len(gallery.image)
            chosen[number].append(gallery)
    return chosen, left_out


def _candidates(section: Section, metric: str) -> list[tuple[str, Result]]:
    """Return the best run with a gallery for each method, and its row's label, best first."""
    best: dict[str, tuple[float, str, Result]] = {}
    for row in section.rows:
        for result in row.results:
            value = result.value(metric)
            if (
                value is None
                or not (result.folder / runs.RETRIEVAL).is_file()
                or not (result.folder / runs.RETRIEVAL_IMAGE).is_file()
            ):
                continue
            if row.method not in best or value > best[row.method][0]:
                best[row.method] = (value, row.label, result)
    ordered = sorted(best.values(), key=lambda entry: -entry[0])
    return [(label, result) for _, label, result in ordered]


def read(result: Result, label: str) -> Gallery:
    """The gallery in a run's folder.

    Raises:
        ArtifactError: If its files cannot be read, are not what they should be, or do not fit each other.
    """
    record = read_json(result.folder / runs.RETRIEVAL, limit=4 * 2**20)
    if not _is_record(record):
        raise ArtifactError(
            f"{result.folder / runs.RETRIEVAL} is not the record of a gallery: it was damaged or edited by hand"
        )
    try:
        if (result.folder / runs.RETRIEVAL_IMAGE).stat().st_size > BUDGET:
            raise ArtifactError(
                f"{result.folder / runs.RETRIEVAL_IMAGE} is larger than all galleries of a report may be"
            )
        content = (result.folder / runs.RETRIEVAL_IMAGE).read_bytes()
        with Image.open(result.folder / runs.RETRIEVAL_IMAGE, formats=["WEBP"]) as image:
            size = image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ArtifactError(f"{result.folder / runs.RETRIEVAL_IMAGE} is not a WebP image that can be read") from error
    expected = (record["tile"] * (record["k"] + 1), record["tile"] * len(record["queries"]))
    if size != expected:
        file = result.folder / runs.RETRIEVAL_IMAGE
        wanted, got = (f"{width} x {height}" for width, height in (expected, size))
        raise ArtifactError(f"{file} must have {wanted} pixels for what {runs.RETRIEVAL} tells, got {got}")
    image = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return Gallery(result, label, record["tile"], record["k"], record["ties"], record["queries"], image)


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
            _is_item(found) and type(found.get("distance")) is int and found.get("relevant") in (True, False, None)
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


def style(number: int, shown: Gallery) -> str:
    """Return CSS that says where each tile is in the image. It has only numbers and base64, and no text from a run."""
    side = shown.tile * max(1, _SHOWN // shown.tile)
    size = f"background-size:{side * (shown.k + 1)}px {side * len(shown.queries)}px"
    rules = [f".g{number}{{width:{side}px;height:{side}px;background-image:url({shown.image});{size}}}"]
    rules += [f".g{number}.x{column}{{background-position-x:{-side * column}px}}" for column in range(shown.k + 1)]
    rules += [f".g{number}.y{row}{{background-position-y:{-side * row}px}}" for row in range(len(shown.queries))]
    return "".join(rules)

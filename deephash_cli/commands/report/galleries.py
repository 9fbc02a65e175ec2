"""Galleries of a report: images of queries and their results, as many as there is room for."""

import base64
from dataclasses import dataclass

from deephash_cli.errors import ArtifactError, first_line
from deephash_cli.runs import gallery as run_gallery
from deephash_cli.runs.gallery import Gallery
from deephash_cli.runs.results import Result, Section

PER_SECTION = 6
BUDGET = 3 * 2**20  # largest number of characters that all galleries of a report may take
_SHOWN = 64  # pixels; smaller images are enlarged to a side of this, or at least half of it


@dataclass(frozen=True)
class Shown:
    """A gallery in a report.

    Attributes:
        result: The run that it belongs to.
        label: Title of that run's row.
        gallery: Queries and results.
        image: All images as a data URI.
    """

    result: Result
    label: str
    gallery: Gallery
    image: str


def choose(sections: list[Section], metric: str) -> tuple[list[list[Shown]], list[list[str]]]:
    """Choose the best run of each method in each section, best methods first, if there is room for it.

    The sections take turns, so that none takes all the room.

    Args:
        sections: Sections of the report.
        metric: Name of the metric that decides which run is best.

    Returns:
        The galleries of each section, and for each section the texts that name the galleries left out and say why.
    """
    queues = [_candidates(section, metric) for section in sections]
    chosen: list[list[Shown]] = [[] for _ in sections]
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
                gallery = run_gallery.read(result.folder)
            except ArtifactError as error:
                left_out[number].append(f"{label}, {result.metrics['bits']} bits: {first_line(error)}")
                continue
            image = f"data:image/webp;base64,{base64.b64encode(gallery.image).decode()}"
            if len(image) > room:
                left_out[number].append(f"{label}, {result.metrics['bits']} bits: this file would become too large")
                continue
            room -= len(image)
            chosen[number].append(Shown(result, label, gallery, image))
    return chosen, left_out


def _candidates(section: Section, metric: str) -> list[tuple[str, Result]]:
    """Return the best run with a gallery for each method, and its row's title, best first."""
    best: dict[str, tuple[float, str, Result]] = {}
    for row in section.rows:
        for result in row.results:
            value = result.value(metric)
            if value is None or result.is_prefix or not run_gallery.exists(result.folder):
                continue
            if row.method not in best or value > best[row.method][0]:
                best[row.method] = (value, row.title, result)
    ordered = sorted(best.values(), key=lambda entry: -entry[0])
    return [(label, result) for _, label, result in ordered]


def style(number: int, shown: Shown) -> str:
    """Return CSS that says where each tile is in the image. It has only numbers and base64, and no text from a run."""
    gallery = shown.gallery
    side = gallery.tile * max(1, _SHOWN // gallery.tile)
    size = f"background-size:{side * (gallery.k + 1)}px {side * len(gallery.queries)}px"
    rules = [f".g{number}{{width:{side}px;height:{side}px;background-image:url({shown.image});{size}}}"]
    rules += [f".g{number}.x{column}{{background-position-x:{-side * column}px}}" for column in range(gallery.k + 1)]
    rules += [f".g{number}.y{row}{{background-position-y:{-side * row}px}}" for row in range(len(gallery.queries))]
    return "".join(rules)

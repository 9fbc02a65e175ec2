"""The gallery of a run: some queries with the images that they retrieve, for reports and dashboards."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps

from deephash_cli import runs
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset, Vectors, to_rgb
from deephash_cli.retrieval import metrics, ranking, scoring, similarity
from deephash_cli.retrieval.codes import CodeSet
from deephash_cli.retrieval.codes_folder import load_codes
from deephash_cli.runs import gallery as run_gallery

TILE = 64  # largest side of an image, in pixels
RESULTS = 10  # results shown for each query
HARDEST = 6  # queries with the lowest average precision
DRAWN = 6  # queries drawn at random
TIES = "by distance, ties in database order; a query's own image is left out"


def write(folder: Path, dataset: RetrievalDataset, hardest: Sequence[str]) -> None:
    """Search for some queries with the codes of a run, and write the results into the run folder.

    ``retrieval.json`` has the queries and their results, nearest first, with ids, names of labels, distances and
    whether a result is relevant to its query. ``retrieval.webp`` has their images in a grid with one row for each
    query, the query itself first. No file is written if the data set has no images, or if there are no results.

    Args:
        folder: Run folder that has codes.
        dataset: Data set that the codes were made from.
        hardest: Ids of the queries with the lowest average precision, lowest first. The first ``HARDEST`` of them are
            shown, and ``DRAWN`` other queries.

    Raises:
        ArtifactError: If the codes are damaged, or the folder cannot be written to.
        DataError: If an image cannot be read.
    """
    if isinstance(dataset.images, Vectors):
        return
    query, database, manifest = load_codes(folder / runs.CODES)
    similar = similarity.of_manifest(manifest)
    chosen = _choose(_ids(query), hardest)
    own = scoring.self_matches(query, database)[chosen]
    k = min(RESULTS, database.n - int((own >= 0).any()))
    if k == 0:
        return
    distances, positions = ranking.nearest(query.packed[chosen], database.packed, query.bits, k + 1)
    precisions = _average_precisions(query, database, chosen, own, similar)
    row_of = {name: row for row, name in enumerate(dataset.ids)}

    def described(name: str) -> dict[str, Any]:
        labels = np.flatnonzero(dataset.labels[row_of[name]])
        return {"id": name, "labels": [dataset.class_names[label] for label in labels]}

    queries, names = [], []
    for number, row in enumerate(chosen):
        name = _ids(query)[int(row)]
        found = [
            (_ids(database)[int(position)], distance)
            for position, distance in zip(positions[number].tolist(), distances[number].tolist(), strict=True)
            if position != own[number]
        ][:k]
        labels = dataset.labels[[row_of[result] for result, _ in found]]
        relevant = similarity.are_similar(labels, dataset.labels[row_of[name]], similar)
        results = [
            {**described(result), "distance": distance, "relevant": bool(is_right) if precisions else None}
            for (result, distance), is_right in zip(found, relevant, strict=True)
        ]
        kind = "hardest" if name in hardest[:HARDEST] else "drawn"
        precision = precisions[number] if precisions else None
        queries.append({**described(name), "average_precision": precision, "kind": kind, "results": results})
        names.append([name, *(result for result, _ in found)])
    tiles = _tiles(dataset, np.array([[row_of[name] for name in row] for row in names]))
    run_gallery.write(folder, run_gallery.Gallery(tiles.shape[2], k, TIES, queries, _grid(tiles)))


def _ids(side: CodeSet) -> Sequence[str]:
    assert side.ids is not None  # the codes of a run always have ids
    return side.ids


def _choose(ids: Sequence[str], hardest: Sequence[str]) -> Int64[np.ndarray, " q"]:
    """Choose the rows of the hardest queries and of others drawn at random with the same seed for every run."""
    row_of = {name: row for row, name in enumerate(ids)}
    first = [row_of[name] for name in hardest[:HARDEST]]
    drawn = [row for row in np.random.default_rng(0).permutation(len(ids)).tolist() if ids[row] not in hardest]
    return np.array(first + drawn[:DRAWN])


def _average_precisions(
    query: CodeSet, database: CodeSet, rows: Int64[np.ndarray, " q"], own: Int64[np.ndarray, " q"], similar: str
) -> list[float]:
    """Compute the average precision of each of these queries; an empty list if there are no labels."""
    if query.labels.shape[1] == 0:
        return []
    labels = similarity.as_shared(query.labels[rows], database.labels, similar)
    sides = (query.packed[rows], database.packed, query.bits, *labels)
    shared = np.concatenate([part.shared for part in ranking.count(*sides, exclude=own)])
    return metrics.average_precision(metrics.Histograms.of_shared(shared)).tolist()


def _tiles(dataset: RetrievalDataset, rows: Int64[np.ndarray, "q k"]) -> UInt8[np.ndarray, "q k tile tile 3"]:
    images = dataset.images
    assert not isinstance(images, Vectors)
    pixels = images.batch(rows.ravel(), TILE) if isinstance(images, ImageFiles) else images.batch(rows.ravel())
    shown = to_rgb(pixels)
    tile = min(TILE, *shown.shape[1:3])
    squares = [np.asarray(ImageOps.fit(Image.fromarray(image), (tile, tile))) for image in shown]
    return np.stack(squares).reshape(*rows.shape, tile, tile, 3)


def _grid(tiles: UInt8[np.ndarray, "q k tile tile 3"]) -> bytes:
    q, k, tile, _, _ = tiles.shape
    file = io.BytesIO()
    Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(q * tile, k * tile, 3)).save(file, "WEBP", quality=80)
    return file.getvalue()

"""Export to OpenSearch: documents with a binary knn_vector, in bulk requests of a size that a cluster accepts."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deephash_cli.commands.export.source import Source
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.files import write_json, write_text

_PART = 10_000_000  # characters in a request, approximately; clusters refuse more than 100 MB
_DIMENSIONS = 16_000  # the most that a vector can have
_ID_CHARACTERS = 8191  # the longest keyword that can be searched for: 32766 bytes

_LOAD = """\
#!/bin/sh
# Creates the index {table} and fills it. In any folder: OPENSEARCH=https://user:password@host:9200 sh <path>/load.sh
# This file follows the documentation of OpenSearch 2.17 and 3; it was never run against a cluster.
set -eu
cd "$(dirname "$0")"
cluster=${{OPENSEARCH:-http://localhost:9200}}
curl --fail --silent --show-error -X PUT "$cluster/{table}" \\
    -H 'Content-Type: application/json' --data-binary @index.json
echo
for part in bulk-*.ndjson; do
    answer=$(curl --fail --silent --show-error -X POST "$cluster/{table}/_bulk?filter_path=errors,items.*.error" \\
        -H 'Content-Type: application/x-ndjson' --data-binary "@$part")
    case $answer in
        *'"errors":false'*) echo "$part" ;;
        *) echo "$part was refused: $answer" >&2; exit 1 ;;
    esac
done
curl --fail --silent --show-error -X POST "$cluster/{table}/_refresh"
echo
"""
_README = """\
Documents for OpenSearch 2.17 or newer. Needs curl:

    export OPENSEARCH=http://localhost:9200
    sh load.sh
    curl "$OPENSEARCH/{table}/_search" -H 'Content-Type: application/json' --data-binary @query-exact.json
    curl "$OPENSEARCH/{table}/_search" -H 'Content-Type: application/json' --data-binary @query-knn.json

These files follow the documentation of OpenSearch; they were never run against a cluster.
query-exact.json compares every document; ties are in database order.
query-knn.json uses the HNSW index, which may miss some of the nearest documents.
Both search for the first code; the score of a document at distance d is 1 / (1 + d).
A code is a list of {width} signed bytes, in Python: packed.view(numpy.int8).tolist()
A document has the fields position (in the database; also its _id), id (the name of the image) and code.
"""


def write(source: Source, folder: Path) -> str:
    """Write ``index.json``, ``bulk-*.ndjson``, ``load.sh``, an exact query and an approximate one.

    Args:
        source: Codes to export.
        folder: Empty folder to write into.

    Returns:
        How the result was checked, for the user.

    Raises:
        ConfigError: If ``table`` cannot be the name of an index.
        ArtifactError: If codes are too long for OpenSearch, or if the documents are read back with other codes.
    """
    if source.table.startswith("_"):
        raise ConfigError(f"the name of an OpenSearch index must start with a letter, got table={source.table}")
    if 8 * source.width > _DIMENSIONS:
        raise ArtifactError(f"OpenSearch can hold codes of at most {_DIMENSIONS} bits, got {source.bits}")
    code = {
        "type": "knn_vector",
        "dimension": 8 * source.width,
        "data_type": "binary",
        "space_type": "hamming",
        "method": {"name": "hnsw", "engine": "faiss"},
    }
    fields = {"id": {"type": "keyword", "ignore_above": _ID_CHARACTERS}, "position": {"type": "long"}, "code": code}
    write_json(
        folder / "index.json",
        {"settings": {"index": {"knn": True}}, "mappings": {"dynamic": "strict", "properties": fields}},
    )
    vector = _signed(source.first()[None])[0]
    script = {
        "lang": "knn",
        "source": "knn_score",
        "params": {"field": "code", "query_value": vector, "space_type": "hamming"},
    }
    shown = {"size": 10, "_source": ["id", "position"], "sort": [{"_score": "desc"}, {"position": "asc"}]}
    exact = {"script_score": {"query": {"match_all": {}}, "script": script}}
    write_json(folder / "query-exact.json", {**shown, "query": exact})
    write_json(folder / "query-knn.json", {**shown, "query": {"knn": {"code": {"vector": vector, "k": 10}}}})
    write_text(folder / "load.sh", _LOAD.format(table=source.table))
    source.describe(folder, _README.format(table=source.table, width=source.width))
    parts = _write_documents(source, folder)
    checked = source.compare(_read_documents(parts), folder / "bulk-*.ndjson")
    return f"{checked}; never run against a cluster"


def _write_documents(source: Source, folder: Path) -> list[Path]:
    parts: list[Path] = []
    file, written = None, 0
    try:
        for block in source.blocks("writing"):
            vectors = _signed(block.packed)
            for position, (name, vector) in enumerate(zip(block.ids, vectors, strict=True), block.rows.start):
                if file is None or written > _PART:
                    if file is not None:
                        file.close()
                    parts.append(folder / f"bulk-{len(parts):05}.ndjson")
                    file, written = parts[-1].open("w", encoding="ascii", newline=""), 0
                document = {"position": position, "id": name, "code": vector}
                written += file.write(f'{{"index":{{"_id":"{position}"}}}}\n{json.dumps(document)}\n')
    finally:
        if file is not None:
            file.close()
    return parts


def _signed(packed: np.ndarray) -> list[list[int]]:
    """Convert bytes to numbers from -128 to 127, as OpenSearch expects."""
    return np.ascontiguousarray(packed).view(np.int8).tolist()


def _read_documents(parts: list[Path]) -> Iterator[tuple[list[str], np.ndarray]]:
    for part in parts:
        with part.open(encoding="ascii") as file:
            documents = [json.loads(line) for line in file][1::2]
        yield (
            [document["id"] for document in documents],
            np.array([d["code"] for d in documents], np.int8).view(np.uint8),
        )

"""Export to PostgreSQL with pgvector: the same table, its operator, and an HNSW index."""

from pathlib import Path

from deephash_cli.commands.export.codes.postgres import LOAD, README, VARIABLES, settings_of, write_table
from deephash_cli.commands.export.source import Source
from deephash_cli.errors import ArtifactError
from deephash_cli.files import write_text

_INDEXED_BITS = 64_000  # the longest code that pgvector can index
_VECTOR_QUERY = """\
-- The k nearest items of a query, approximately: found with the index. pgvector 0.7.0 or newer.
-- A larger hnsw.ef_search (from k to 1000) finds more of the true nearest items; without the index the result is exact.
{variables}SET hnsw.ef_search = 100;
SELECT id, position, distance
FROM (
    SELECT id, position, code <~> B:'query' AS distance FROM "{table}" ORDER BY code <~> B:'query' LIMIT :k
) AS found
ORDER BY distance, position;
"""
_UNTRIED = "-- This file follows the documentation of pgvector; it was never run against a server.\n"


def write(source: Source, folder: Path) -> str:
    """Write the same files as `postgres.write` for PostgreSQL with pgvector, using its operator and an HNSW index.

    Args:
        source: Codes to export.
        folder: Empty folder to write into.

    Returns:
        How the result was checked, for the user.

    Raises:
        ArtifactError: If the codes or an id are too long, or if ``codes.copy`` is read back with other codes.
    """
    if source.bits > _INDEXED_BITS:
        raise ArtifactError(
            f"pgvector can index codes of at most {_INDEXED_BITS} bits, got {source.bits}: use to=postgres"
        )
    settings = settings_of(source)
    variables = VARIABLES.format(note=_UNTRIED, **settings)
    before = "CREATE EXTENSION IF NOT EXISTS vector;\n"
    after = f'CREATE INDEX ON "{source.table}" USING hnsw (code bit_hamming_ops);\n'
    write_text(folder / "load.sql", LOAD.format(note=_UNTRIED, before=before, after=after, **settings))
    write_text(folder / "query.sql", _VECTOR_QUERY.format(variables=variables, **settings))
    note = "\nload.sql and query.sql follow the documentation of pgvector; they were never run against a server.\n"
    source.describe(folder, README.format(engine="PostgreSQL with pgvector 0.7.0 or newer", note=note, **settings))
    return f"{write_table(source, folder)}; never run against a server with pgvector"

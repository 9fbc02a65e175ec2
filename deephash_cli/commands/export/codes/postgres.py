"""Export to PostgreSQL: a table with a column of type bit(n), with or without the extension pgvector.

Ids are untrusted data. Only one file contains them: ``codes.copy``, in the text format of COPY, whose four special
characters are escaped. No SQL statement contains an id.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from deephash_cli.commands.export.source import Source
from deephash_cli.errors import ArtifactError
from deephash_cli.files import write_text
from deephash_cli.retrieval.codes import pack, unpack

_ID_BYTES = 2600  # the most that an index row can hold

_MEANINGS = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}  # what a letter after a backslash stands for
_ESCAPES = str.maketrans({meaning: f"\\{letter}" for letter, meaning in _MEANINGS.items()})

_TABLE = """\
-- The left-most bit of code is bit 0.
CREATE TABLE "{table}" (
    id text PRIMARY KEY,
    position bigint NOT NULL,  -- in the exported database; orders items at the same distance
    code bit({bits}) NOT NULL
);
"""
LOAD = """\
-- Creates and fills the table; on an error no change is kept. In this folder: psql -d <database> -f load.sql
{note}\\set ON_ERROR_STOP on
BEGIN;
{before}\\i table.sql
\\copy "{table}" (code, position, id) FROM 'codes.copy' WITH (FORMAT text, ENCODING 'UTF8')
{after}COMMIT;
ANALYZE "{table}";
"""
VARIABLES = """\
--   psql -d <database> -v k=10 -v query={example} -f query.sql
{note}\\set ON_ERROR_STOP on
\\if :{{?k}}
\\else
\\set k 10
\\endif
\\if :{{?query}}
\\else
\\set query {example}
\\endif
"""
_QUERY = """\
-- The k nearest items of a query, exactly: every row is compared. PostgreSQL 14 or newer.
{variables}SELECT id, position, bit_count(code # B:'query') AS distance
FROM "{table}"
ORDER BY distance, position
LIMIT :k;
"""
README = """\
Codes of type bit({bits}) for {engine}. Needs psql, but not deephash.

    psql -d <database> -f load.sql                                    creates the table "{table}"; run it in this folder
    psql -d <database> -f query.sql                                   the 10 nearest items to the first one
    psql -d <database> -v k=5 -v query={example} -f query.sql

In the table the left-most bit of a code is bit 0. To convert a packed code (uint8) in Python:

    "".join(map(str, numpy.unpackbits(code, count={bits}, bitorder="little")))
{note}"""


def write(source: Source, folder: Path) -> str:
    """Write ``table.sql``, ``codes.copy``, ``load.sql`` and ``query.sql`` for PostgreSQL without extensions.

    Args:
        source: Codes to export.
        folder: Empty folder to write into.

    Returns:
        How the result was checked, for the user.

    Raises:
        ArtifactError: If PostgreSQL cannot hold an id, or if ``codes.copy`` is read back with other codes.
    """
    settings = settings_of(source)
    variables = VARIABLES.format(note="", **settings)
    write_text(folder / "load.sql", LOAD.format(note="", before="", after="", **settings))
    write_text(folder / "query.sql", _QUERY.format(variables=variables, **settings))
    source.describe(folder, README.format(engine="PostgreSQL 14 or newer", note="", **settings))
    return write_table(source, folder)


def settings_of(source: Source) -> dict[str, Any]:
    """Return what the SQL files say of the codes: the table's name, the code length, a code to search for."""
    example = bit_strings(source.first()[None], source.bits)[0]
    return {"table": source.table, "bits": source.bits, "example": example}


def write_table(source: Source, folder: Path) -> str:
    """Write ``table.sql`` and ``codes.copy``, read the codes back, and return how they were checked."""
    write_text(folder / "table.sql", _TABLE.format(table=source.table, bits=source.bits))
    path = folder / "codes.copy"
    with path.open("w", encoding="utf-8", newline="") as file:
        for block in source.blocks("writing"):
            codes = bit_strings(block.packed, source.bits)
            for position, (code, name) in enumerate(zip(codes, block.ids, strict=True), block.rows.start):
                if "\0" in name or len(name.encode()) > _ID_BYTES:
                    raise ArtifactError(
                        f"a PostgreSQL key must be text of at most {_ID_BYTES} bytes without the character NUL, "
                        f"but the id at position {position} is not: rename the image"
                    )
                file.write(f"{code}\t{position}\t{name.translate(_ESCAPES)}\n")
    return source.compare(_read_copy(path, source), path)


def bit_strings(packed: np.ndarray, bits: int) -> list[str]:
    """Convert packed codes to text of 0 and 1, bit 0 first."""
    text = (unpack(packed, bits).view(np.uint8) + ord("0")).tobytes().decode("ascii")
    return [text[start : start + bits] for start in range(0, len(text), bits)]


def _read_copy(path: Path, source: Source) -> Iterator[tuple[list[str], np.ndarray]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        while lines := list(islice(file, source.rows)):
            codes, _, names = zip(*(line.removesuffix("\n").split("\t") for line in lines), strict=True)
            ids = [re.sub(r"\\(.)", lambda escape: _MEANINGS[escape[1]], name) for name in names]
            digits = np.frombuffer("".join(codes).encode("ascii"), np.uint8).reshape(-1, source.bits)
            yield ids, pack(digits == ord("1"))

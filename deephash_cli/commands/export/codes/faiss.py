"""Export to faiss: an exact index, whose ids are positions in the database."""

from pathlib import Path

import numpy as np

from deephash_cli.commands.export.source import Source, optional, write_ids
from deephash_cli.errors import ArtifactError, first_line
from deephash_cli.retrieval.ranking import nearest

_README = """\
An exact faiss index of binary codes. Needs faiss and numpy:

    import faiss
    index = faiss.read_index_binary("codes.faiss")
    ids = open("ids.txt", encoding="utf-8", newline="\\n").read().split("\\n")[:-1]
    distances, positions = index.search(queries, 10)    # queries: packed codes, uint8 (n, {width})
    print(ids[positions[0, 0]])

Distances are exact. Items at the same distance come in faiss's own order.
"""
_TRIED = 100  # number of codes to search for in the written index


def write(source: Source, folder: Path) -> str:
    """Write ``codes.faiss`` and ``ids.txt``.

    Args:
        source: Codes to export.
        folder: Empty folder to write into.

    Returns:
        How the result was checked, for the user.

    Raises:
        ConfigError: If faiss is not installed.
        ArtifactError: If the index cannot be written, or does not find what deephash's own search finds.
    """
    faiss = optional("faiss", "faiss")
    index = faiss.IndexBinaryFlat(8 * source.width)
    for block in source.blocks("indexing"):
        index.add(block.packed)
    try:
        faiss.write_index_binary(index, str(folder / "codes.faiss"))
    except RuntimeError as error:
        raise ArtifactError(f"faiss could not write its index: {first_line(error)}") from error
    write_ids(source, folder)
    source.describe(folder, _README.format(width=source.width))
    return _check(faiss.read_index_binary(str(folder / "codes.faiss")), source)


def _check(index, source: Source) -> str:
    """Search for codes spread over the database. Only distances are compared, because faiss orders ties its own way."""
    packed, k = source.database.packed, min(10, source.database.n)
    queries = packed[np.linspace(0, len(packed) - 1, min(_TRIED, len(packed))).astype(int)]
    if len(queries):
        distances, positions = index.search(queries, k)
        expected, _ = nearest(queries, packed, source.bits, k)
        true = np.bitwise_count(packed[positions] ^ queries[:, None]).sum(axis=2, dtype=np.int64)
        unique = all(len(set(row)) == k for row in positions.tolist())
        if index.ntotal != len(packed) or not unique or not (distances == true).all() or not (true == expected).all():
            raise ArtifactError("the index was read back, but finds other neighbours than deephash does")
    return f"opened codes.faiss again; the {k} nearest of {len(queries)} codes have the distances that deephash finds"

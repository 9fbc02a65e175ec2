"""Export to Parquet: columns that many programs can read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deephash_cli.commands.export.source import Source, optional

ANY_PACKING = True

_PARQUET = """\
A Parquet file with the columns id, code ({width} bytes){labels}. Needs pyarrow and numpy:

    import numpy, pyarrow.parquet
    table = pyarrow.parquet.read_table("codes.parquet")
    codes = numpy.frombuffer(b"".join(table["code"].to_pylist()), numpy.{dtype}).reshape(-1, {width})
    print(table["id"][0], codes[0], table.schema.metadata[b"bits"])
"""


def write(source: Source, folder: Path) -> str:
    """Write ``codes.parquet``, with one row group per block of rows.

    Args:
        source: Codes to export.
        folder: Empty folder to write into.

    Returns:
        How the result was checked, for the user.

    Raises:
        ConfigError: If pyarrow is not installed.
        ArtifactError: If the file is read back with other codes.
    """
    pa, parquet = optional("pyarrow", "export"), optional("pyarrow.parquet", "export")
    width, labels = source.width, source.database.labels
    fields = [pa.field("id", pa.string(), nullable=False), pa.field("code", pa.binary(width), nullable=False)]
    if labels.shape[1]:
        fields.append(pa.field("labels", pa.list_(pa.int32()), nullable=False))
    schema = pa.schema(fields, metadata=source.metadata)
    path = folder / "codes.parquet"
    with parquet.ParquetWriter(path, schema) as writer:
        for block in source.blocks("writing"):
            codes = pa.py_buffer(block.packed.tobytes())
            columns = [
                pa.array(block.ids, pa.string()),
                pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(block.ids), [None, codes]),
            ]
            if labels.shape[1]:
                shown = np.asarray(labels[block.rows])
                ends = np.concatenate([[0], np.cumsum(np.count_nonzero(shown, axis=1))])
                columns.append(pa.ListArray.from_arrays(ends.astype(np.int32), shown.nonzero()[1].astype(np.int32)))
            writer.write_batch(pa.record_batch(columns, schema=schema))
    told = " and labels (class numbers)" if labels.shape[1] else ""
    source.describe(folder, _PARQUET.format(dtype=source.dtype, width=width, labels=told))
    return source.compare(_read_parquet(parquet.ParquetFile(path), source), path)


def _read_parquet(file, source: Source) -> Iterator[tuple[list[str], np.ndarray]]:
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, ["id", "code"])
        codes = np.frombuffer(b"".join(table["code"].to_pylist()), source.dtype)
        yield table["id"].to_pylist(), codes.reshape(-1, source.width)

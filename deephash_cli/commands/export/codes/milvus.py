"""Export to Milvus: rows of a collection with a BINARY_VECTOR, as a Parquet file for bulk import."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deephash_cli.commands.export.source import Source, optional
from deephash_cli.errors import ArtifactError
from deephash_cli.files import write_json, write_text

_ID_BYTES = 65_535  # the most that a VARCHAR can hold

_LOAD = '''\
"""Create the collection of schema.json and insert the rows of codes.parquet, 1000 at a time.

    pip install pymilvus pyarrow
    python load.py http://localhost:19530

This file was run against Milvus Lite 2.5, but never against a cluster.
"""

import json
import sys
from pathlib import Path

from pyarrow.parquet import ParquetFile
from pymilvus import DataType, MilvusClient

here = Path(__file__).resolve().parent
wanted = json.loads((here / "schema.json").read_text(encoding="utf-8"))
client = MilvusClient(uri=sys.argv[1] if len(sys.argv) > 1 else "http://localhost:19530")
schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
for field in wanted["fields"]:
    schema.add_field(field["name"], DataType[field["type"]], **field["settings"])
index = client.prepare_index_params()
index.add_index(**wanted["index"])
client.create_collection(wanted["collection"], schema=schema, index_params=index)
for batch in ParquetFile(here / "codes.parquet").iter_batches(1000):
    client.insert(wanted["collection"], [{**row, "code": bytes(row["code"])} for row in batch.to_pylist()])
'''
_README = """\
A collection for Milvus 2.4 or newer. Needs pymilvus and pyarrow:

    python load.py http://localhost:19530      creates the collection "{table}" and inserts the rows

For many millions of rows, remove the last two lines of load.py, so that it only creates the collection. Then put
codes.parquet into the cluster's bucket and import it there:

    from pymilvus.bulk_writer import bulk_import
    bulk_import(url="http://localhost:19530", collection_name="{table}", files=[["codes.parquet"]])

load.py was run against Milvus Lite 2.5. No file here was ever run against a cluster, and bulk_import was never run.
To search for a query's packed code (uint8):

    client.search("{table}", data=[code.tobytes()], limit=10, output_fields=["id"])

BIN_FLAT compares every row; items at the same distance come in its own order.
position is the primary key: the position of the item in the database. id is the name of the image.
"""


def write(source: Source, folder: Path) -> str:
    """Write ``codes.parquet``, ``schema.json`` and ``load.py``.

    Args:
        source: Codes to export.
        folder: Empty folder to write into.

    Returns:
        How the result was checked, for the user.

    Raises:
        ConfigError: If pyarrow is not installed.
        ArtifactError: If an id is too long for Milvus, or if the file is read back with other codes.
    """
    pa, parquet = optional("pyarrow", "export"), optional("pyarrow.parquet", "export")
    vector = pa.list_(pa.uint8())
    schema = pa.schema([("position", pa.int64()), ("id", pa.string()), ("code", vector)])
    path = folder / "codes.parquet"
    longest = 255  # at least, so that images with longer names can be added
    with parquet.ParquetWriter(path, schema) as writer:
        for block in source.blocks("writing"):
            longest = max(longest, *(len(name.encode()) for name in block.ids))
            ends = np.arange(len(block.ids) + 1, dtype=np.int32) * source.width
            columns = [
                pa.array(np.arange(block.rows.start, block.rows.stop)),
                pa.array(block.ids, pa.string()),
                pa.ListArray.from_arrays(ends, block.packed.ravel(), type=vector),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    if longest > _ID_BYTES:
        raise ArtifactError(f"Milvus can hold ids of at most {_ID_BYTES} bytes, got one of {longest}: rename the image")
    wanted = {
        "collection": source.table,
        "fields": [
            {"name": "position", "type": "INT64", "settings": {"is_primary": True}},
            {"name": "id", "type": "VARCHAR", "settings": {"max_length": longest}},
            {"name": "code", "type": "BINARY_VECTOR", "settings": {"dim": 8 * source.width}},
        ],
        "index": {"field_name": "code", "index_type": "BIN_FLAT", "metric_type": "HAMMING"},
    }
    write_json(folder / "schema.json", wanted)
    write_text(folder / "load.py", _LOAD)
    source.describe(folder, _README.format(table=source.table))
    return f"{source.compare(_read(parquet.ParquetFile(path)), path)}; never run against a cluster"


def _read(file) -> Iterator[tuple[list[str], np.ndarray]]:
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        yield table["id"].to_pylist(), np.array(table["code"].to_pylist(), np.uint8)

"""Export to Parquet and safetensors: columns that many programs can read."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deephash_cli.commands.export.source import Source, optional, write_ids
from deephash_cli.errors import ArtifactError
from deephash_cli.retrieval.codes import Lines

_PARQUET = """\
A Parquet file with the columns id, code ({width} bytes){labels}. Needs pyarrow and numpy:

    import numpy, pyarrow.parquet
    table = pyarrow.parquet.read_table("codes.parquet")
    codes = numpy.frombuffer(b"".join(table["code"].to_pylist()), numpy.uint8).reshape(-1, {width})
    print(table["id"][0], codes[0], table.schema.metadata[b"bits"])
"""
_SAFETENSORS = """\
A safetensors file with codes, uint8 (n, {width}){labels}; ids.txt has one id per line. Needs safetensors:

    from safetensors import safe_open
    file = safe_open("codes.safetensors", framework="numpy")    # or "pt"
    codes = file.get_tensor("codes")
    ids = open("ids.txt", encoding="utf-8", newline="\\n").read().split("\\n")[:-1]
    print(ids[0], codes[0], file.metadata()["bits"])
"""


def _metadata(source: Source) -> dict[str, str]:
    """Metadata to store beside the columns: text as it is, every other value as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in {"format": "deephash codes", **source.facts}.items()
    }


def write_parquet(source: Source, folder: Path) -> str:
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
    schema = pa.schema(fields, metadata=_metadata(source))
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
    source.describe(
        folder, _PARQUET.format(width=width, labels=" and labels (class numbers)" if labels.shape[1] else "")
    )
    return source.compare(_read_parquet(parquet.ParquetFile(path), width), path)


def _read_parquet(file, width: int) -> Iterator[tuple[list[str], np.ndarray]]:
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, ["id", "code"])
        codes = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint8)
        yield table["id"].to_pylist(), codes.reshape(-1, width)


def write_safetensors(source: Source, folder: Path) -> str:
    """Write ``codes.safetensors`` and ``ids.txt``.

    The file is written without the library, which would need all of it in memory. The format is the length of a
    header, the header, and the arrays.

    Args:
        source: Codes to export.
        folder: Empty folder to write into.

    Returns:
        How the result was checked, for the user.

    Raises:
        ConfigError: If safetensors is not installed.
        ArtifactError: If the file is read back with other codes.
    """
    safetensors = optional("safetensors", "export")
    arrays = {"codes": source.database.packed, "labels": source.database.labels}
    arrays = {name: array for name, array in arrays.items() if array.shape[1]}
    header: dict[str, object] = {"__metadata__": _metadata(source)}
    start = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "U8", "shape": list(array.shape), "data_offsets": [start, start + array.size]}
        start += array.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "codes.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            for start in range(0, len(array), source.rows):
                file.write(np.ascontiguousarray(array[start : start + source.rows]).data)
    write_ids(source, folder)
    labels = " and labels, uint8, one column per class" if "labels" in arrays else ""
    source.describe(folder, _SAFETENSORS.format(width=source.width, labels=labels))
    with safetensors.safe_open(path, framework="numpy") as tensors:
        if sorted(tensors.keys()) != sorted(arrays):
            raise ArtifactError(f"{path.name} was read back with the tensors {', '.join(tensors.keys())}")
        codes, ids = tensors.get_slice("codes"), Lines(folder / "ids.txt", source.database.n)
        return source.compare(((ids[block.rows], codes[block.rows]) for block in source.blocks("checking")), path)

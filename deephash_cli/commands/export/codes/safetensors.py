"""Export to safetensors: one array of codes, one of labels."""

import json
from pathlib import Path

import numpy as np

from deephash_cli.commands.export.source import Source, optional, write_ids
from deephash_cli.errors import ArtifactError
from deephash_cli.retrieval.codes_folder import Lines

ANY_PACKING = True

_SAFETENSORS = """\
A safetensors file with codes, {dtype} (n, {width}){labels}; ids.txt has one id per line. Needs safetensors:

    from safetensors import safe_open
    file = safe_open("codes.safetensors", framework="numpy")    # or "pt"
    codes = file.get_tensor("codes")
    ids = open("ids.txt", encoding="utf-8", newline="\\n").read().split("\\n")[:-1]
    print(ids[0], codes[0], file.metadata()["bits"])
"""


def write(source: Source, folder: Path) -> str:
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
    labels = source.database.labels
    arrays = {"codes": ("U8" if source.dtype == np.uint8 else "I8", source.database.packed), "labels": ("U8", labels)}
    arrays = {name: entry for name, entry in arrays.items() if entry[1].shape[1]}
    header: dict[str, object] = {"__metadata__": source.metadata}
    start = 0
    for name, (dtype, array) in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, start + array.size]}
        start += array.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "codes.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in source.blocks("writing"):
            file.write(np.ascontiguousarray(block.packed).data)
        for start in range(0, len(labels) if labels.shape[1] else 0, source.rows):
            file.write(np.ascontiguousarray(labels[start : start + source.rows]).data)
    write_ids(source, folder)
    told = " and labels, uint8, one column per class" if "labels" in arrays else ""
    source.describe(folder, _SAFETENSORS.format(dtype=source.dtype, width=source.width, labels=told))
    with safetensors.safe_open(path, framework="numpy") as tensors:
        if sorted(tensors.keys()) != sorted(arrays):
            raise ArtifactError(f"{path.name} was read back with the tensors {', '.join(tensors.keys())}")
        codes, ids = tensors.get_slice("codes"), Lines(folder / "ids.txt", source.database.n)
        return source.compare(((ids[block.rows], codes[block.rows]) for block in source.blocks("checking")), path)

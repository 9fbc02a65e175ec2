"""Export to safetensors: one array of codes, one of labels."""

import json
from pathlib import Path

import numpy as np

from deephash_cli.commands.export.source import Source, optional, write_ids
from deephash_cli.errors import ArtifactError
from deephash_cli.retrieval.codes_folder import Lines

_SAFETENSORS = """\
A safetensors file with codes, uint8 (n, {width}){labels}; ids.txt has one id per line. Needs safetensors:

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
    arrays = {"codes": source.database.packed, "labels": source.database.labels}
    arrays = {name: array for name, array in arrays.items() if array.shape[1]}
    header: dict[str, object] = {"__metadata__": source.metadata}
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

"""Export to NumPy: arrays of codes and labels, as ``deephash eval`` and most programs read them."""

from pathlib import Path

import numpy as np

from deephash_cli import npy
from deephash_cli.commands.export.source import Source, write_ids
from deephash_cli.retrieval.codes_folder import Lines

ANY_PACKING = True

_README = """\
NumPy arrays: codes.npy, {dtype} (n, {width}){labels}; ids.txt has one id per line. Needs numpy:

    import numpy
    codes = numpy.load("codes.npy", mmap_mode="r")
    ids = open("ids.txt", encoding="utf-8", newline="\\n").read().split("\\n")[:-1]
    print(ids[0], codes[0])
"""


def write(source: Source, folder: Path) -> str:
    """Write ``codes.npy``, ``labels.npy`` if there are labels, and ``ids.txt``.

    Args:
        source: Codes to export.
        folder: Empty folder to write into.

    Returns:
        How the result was checked, for the user.

    Raises:
        ArtifactError: If the file is read back with other codes.
    """
    path = folder / "codes.npy"
    shape, labels = (source.database.n, source.width), source.database.labels
    with path.open("wb") as file:
        header = {"descr": source.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in source.blocks("writing"):
            file.write(np.ascontiguousarray(block.packed).data)
    if labels.shape[1]:
        np.save(folder / "labels.npy", labels, allow_pickle=False)
    write_ids(source, folder)
    told = " and labels.npy, uint8, one column per class" if labels.shape[1] else ""
    source.describe(folder, _README.format(dtype=source.dtype, width=source.width, labels=told))
    codes, ids = npy.load(path), Lines(folder / "ids.txt", shape[0])
    return source.compare(((ids[block.rows], codes[block.rows]) for block in source.blocks("checking")), path)

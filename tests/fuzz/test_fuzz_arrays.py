"""Damaged .npy files give the array that their header describes, or one sentence; memory stays bounded."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pytest

from deephash_cli import npy
from deephash_cli.data.vectors import vectors
from deephash_cli.files import sha256_file
from deephash_cli.retrieval import codes_folder, external_codes
from deephash_cli.retrieval.codes import CodeSet, pack, unpack

MEMORY = 64 * 2**20  # bytes: the files have some hundred
N, BITS = 24, 12


def arrays() -> dict[str, np.ndarray]:
    """Valid arrays: codes in several formats, labels and vectors."""
    rng = np.random.default_rng(0)
    signs = np.where(rng.random((N, BITS)) < 0.5, -1, 1)
    ids = np.arange(N) % 3
    return {
        "signs": signs.astype(np.int8),
        "signs as floats": signs.astype(np.float32),
        "truth values": signs > 0,
        "class ids": ids,
        "multi-hot": np.eye(3, dtype=np.uint8)[ids],
        "vectors": rng.normal(size=(N, 5)).astype(np.float32),
    }


def as_codes(file: str) -> Any:
    query, database, _ = external_codes.load(Path(file), Path("good.npy"), Path("labels.npy"), Path("labels.npy"))
    assert database.n == N
    return unpack(query.packed, query.bits)


def as_labels(file: str) -> Any:
    query, database, _ = external_codes.load(Path("good.npy"), Path("good.npy"), Path(file), Path("labels.npy"))
    return similar(query.labels, database.labels)


def as_labels_of_vectors(file: str) -> Any:
    labels = vectors("vectors.npy", file, None).labels
    used = labels[:, labels.any(axis=0)]
    return similar(used, used)


def as_vectors(file: str) -> Any:
    dataset = vectors(file, "labels.npy", None)
    return np.asarray(dataset.images.batch(np.arange(len(dataset))))


def similar(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return whether each item of one side shares a label with each of the other: class numbers or multi-hot."""
    if a.ndim == 1:
        return (a[:, None] == b[None]) & (a[:, None] >= 0)
    return a.astype(int) @ b.T.astype(int) > 0


def signs_of(array: np.ndarray) -> np.ndarray:
    return array > 0


def similar_to_original(array: np.ndarray) -> np.ndarray:
    """The truth for labels of queries, beside the labels of the database as they were."""
    return similar(*both_multi_hot(array))


def both_multi_hot(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    original = arrays()["class ids"]
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1:
        return array.astype(np.int64), original
    return array == 1, np.eye(array.shape[1], dtype=np.uint8)[original]


def similar_to_itself(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        array = array == 1
    return similar(array, array)


# What reads each array, and what it must give of the array that NumPy reads.
READERS: dict[str, tuple[Callable[[str], Any], Callable[[np.ndarray], np.ndarray]]] = {
    "signs": (as_codes, signs_of),
    "signs as floats": (as_codes, signs_of),
    "truth values": (as_codes, signs_of),
    "class ids": (as_labels, similar_to_original),
    "multi-hot": (as_labels_of_vectors, similar_to_itself),
    "vectors": (as_vectors, lambda array: array.astype(np.float32)),
}

HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (24, 5), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (24,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (24, 9223372036854775807)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': ()}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 5)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (24, 0)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 24}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0, 5)}",
    "{'descr': '<f4', 'fortran_order': 1, 'shape': (24, 5)}", "{'descr': '<f4', 'shape': (24, 5)}", "{}", "[]",
    "None", "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (24, 5)}", "(" * 5000, "[" * 90 + "]" * 90,
    "9" * 5000, "{'descr': '<f8', 'fortran_order': False, 'shape': (12, 5)}",
    "{'descr': '<f2', 'fortran_order': False, 'shape': (24, 10)}",
    "{'descr': '|V4', 'fortran_order': False, 'shape': (24, 5)}",
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (12, 5)}",
    "{'descr': '<c8', 'fortran_order': False, 'shape': (12, 5)}",
    "{'descr': '<U1', 'fortran_order': False, 'shape': (24, 5)}",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (24, 5)}",
    "{'descr': '>f4', 'fortran_order': False, 'shape': (24, 5)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (24, 5), 'extra': 1}",
    "__import__('os').system('touch mark')", "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 120)}",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (24, 5)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1,) * 64}", "é", "\0", "{'descr': '<f4'", "{'descr': 5}",
)  # fmt: skip


def with_header(rng: Any, original: bytes) -> bytes:
    """Return the file with another header: one of the list, or a version or length that does not fit."""
    start = 10 + int.from_bytes(original[8:10], "little")
    kind = int(rng.integers(4))
    if kind == 0:
        return original[:6] + rng.integers(0, 6, 2, dtype=np.uint8).tobytes() + original[8:]
    if kind == 1:
        return original[:8] + rng.integers(0, 256, 2, dtype=np.uint8).tobytes() + original[10:]
    text = mutations.pick(rng, HEADERS) if kind == 2 else mutations.text(rng, original[10:start].decode("latin-1"))
    header = text.encode("latin-1", errors="replace").rstrip(b"\n")
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return original[:8] + len(header).to_bytes(2, "little") + header + original[start:]


def damaged(rng: Any, original: bytes) -> bytes:
    kind = int(rng.integers(5))
    if kind <= 2:
        return with_header(rng, original)
    if kind == 3:
        return mutations.content(rng, original)
    size = int(rng.integers(len(original) + 1))
    return original[:size] if rng.integers(2) else original + bytes(size)


def as_numpy_reads(file: str) -> np.ndarray | None:
    """Return the array that NumPy reads from a file; None if it reads none."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        return array if isinstance(array, np.ndarray) else None
    except Exception:
        return None


def measured(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """Do something that may be refused; too much memory is a failure, too."""
    tracemalloc.start()
    try:
        result, wrong = mutations.refusal(work)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return result, wrong or (f"{peak / 2**20:.0f} MB of memory" if peak > MEMORY else None)


@pytest.fixture
def files() -> None:
    """Valid files in the current folder."""
    made = arrays()
    np.save("good.npy", made["signs"])
    np.save("labels.npy", made["class ids"])
    np.save("vectors.npy", made["vectors"])
    for name in READERS:
        np.save(f"{name}.npy", made[name])


@pytest.mark.parametrize("kind", READERS)
def test_the_arrays_are_read(files, kind):
    read, meant = READERS[kind]
    assert np.array_equal(read(f"{kind}.npy"), meant(arrays()[kind]))


@pytest.mark.filterwarnings("ignore")  # NumPy's, of headers that the test itself reads
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("numbers", mutations.chunks(25, 275))
def test_damaged_arrays(files, kind, numbers):
    read, meant = READERS[kind]
    original = Path(f"{kind}.npy").read_bytes()
    failures = []
    for number in numbers:
        changed = damaged(mutations.rng_of(number), original)
        Path("x.npy").write_bytes(changed)
        result, wrong = measured(lambda: read("x.npy"))
        if result is not None:
            array = as_numpy_reads("x.npy")
            if array is None:
                wrong = wrong or "read, although NumPy reads no array"
            elif array.shape[0] != N or not np.array_equal(result, meant(np.asarray(array))):
                wrong = wrong or f"other values than those of the file, an array of {array.dtype} {array.shape}"
        if wrong:
            failures.append(f"{number}: {wrong}\n   {changed[:250]!r}")
    assert not Path("mark").exists()
    assert not failures, mutations.report(failures)


@pytest.mark.parametrize("numbers", mutations.chunks(15, 215))
def test_damaged_codes_folders(numbers):
    """The manifest says the same digests, as of a person who made both."""
    rng = np.random.default_rng(1)
    labels = np.eye(3, dtype=np.uint8)[np.arange(N) % 3]
    sides = [
        CodeSet(pack(rng.random((N, BITS)) < 0.5), BITS, labels, [f"{side} {i}" for i in range(N)]) for side in "qd"
    ]
    codes_folder.save_codes(Path("codes"), *sides, {})
    shutil.copytree("codes", "original")
    manifest = json.loads(Path("original/manifest.json").read_text())
    failures = []
    for number in numbers:
        rng = mutations.rng_of(number)
        name = mutations.pick(rng, sorted(manifest["files"]))
        original = Path("original", name).read_bytes()
        changed = damaged(rng, original) if name.endswith(".npy") else mutations.content(rng, original)
        Path("codes", name).write_bytes(changed)
        entry = {"sha256": sha256_file(Path("codes", name)), "bytes": len(changed)}
        new = {**manifest, "files": {**manifest["files"], name: entry}}
        Path("codes/manifest.json").write_text(json.dumps(new))
        result, wrong = measured(lambda: codes_folder.load_codes(Path("codes")))
        if result is not None:
            for side, found in zip(("query", "database"), result, strict=False):
                array = as_numpy_reads(f"codes/{side}.npy")
                same = array is not None and np.array_equal(found.packed, array)
                if not same or np.asarray(array).shape != (N, 2) or found.n != N or len(found.ids) != N:
                    wrong = wrong or f"the {side} side is not that of the files"
        if wrong:
            failures.append(f"{number}: {name}: {wrong}\n   {changed[:250]!r}")
        Path("codes", name).write_bytes(original)
    assert not failures, mutations.report(failures)


@pytest.mark.parametrize("highest", [2 * 10**6, 2**62])
def test_class_ids_that_are_far_apart_take_no_memory(files, highest):
    """A mistake in one label must not take gigabytes: as for external codes, or one sentence."""
    ids = arrays()["class ids"].copy()
    ids[3] = highest
    np.save("far.npy", ids)
    for read in (as_labels, as_labels_of_vectors):
        result, wrong = measured(lambda read=read: read("far.npy"))
        assert wrong is None, read.__name__
        assert result is None or not result[3].sum() > 1


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_that_is_longer_than_its_file_takes_no_memory(files, version):
    """NumPy would make room for as many bytes as the header's length says, up to 4 GiB."""
    original = Path("signs.npy").read_bytes()
    Path("x.npy").write_bytes(original[:6] + bytes([version, 0]) + (2**30).to_bytes(4, "little") + original[10:])
    result, wrong = measured(lambda: npy.read_header(Path("x.npy")))
    assert result is None
    assert wrong is None


def test_a_header_of_a_giant_array_is_not_believed(files):
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 5), }\n"
    Path("x.npy").write_bytes(header + len(text).to_bytes(2, "little") + text + bytes(480))
    result, wrong = measured(lambda: npy.load(Path("x.npy")))
    assert result is None
    assert wrong is None

"""Each reader gets thousands of mutated inputs: the data or one named error, in a second and 256 MB."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from searching import SETTINGS, codes
from synthetic import curves, write_gallery, write_run, write_steps

from deephash_cli import runs
from deephash_cli.commands import compare, report, sync
from deephash_cli.commands.report import curves as drawn
from deephash_cli.data.csv_table import csv_table
from deephash_cli.data.dataset import ImageFiles, RetrievalDataset
from deephash_cli.data.image_list import image_list
from deephash_cli.data.protocol import load_split, make_split, save_split
from deephash_cli.data.vectors import vectors
from deephash_cli.files import sha256_file
from deephash_cli.retrieval import codes_folder, external_codes, indexes
from deephash_cli.retrieval.codes import CodeSet
from deephash_cli.runs import gallery, listing, records, results
from deephash_cli.runs import wandb as dashboards
from deephash_cli.training import checkpoints, saving

FAST, ALL, CHUNK = 50, 5050, 1000
N, BITS = 24, 12
RUN = Path("runs/a")


@dataclass(frozen=True)
class Reader:
    """A file, and what reads it.

    Attributes:
        file: The file that is changed.
        read: Function that reads it, and returns its data.
        finish: Function that is called after each change, such as to write a digest that a stranger could write, too.
        is_exact: Whether the data must be equal to the original data; otherwise other values of the file are other
            data.
        share: Number of inputs of which one is read; more than 1 if reading takes long.
    """

    file: str
    read: Callable[[], Any]
    finish: Callable[[], None] = lambda: None
    is_exact: bool = False
    share: int = 1


def tables() -> Any:
    """What compare, report and runs show of the run and of another one."""
    found, left_out = results.collect([Path("runs")])
    assert [entry.folder for entry in left_out] in ([], [RUN])
    sections = results.sections(found)
    texts = [form(sections, ["map"], compare.Style()) for form in compare.FORMATS.values()]
    listed, unreadable = listing.read_all([RUN, Path("runs/b")])
    assert len(listed) + len(unreadable) == 2
    return texts, listed


def page() -> str:
    """The page that deephash report writes about the run and another one."""
    found, left_out = results.collect([Path("runs")])
    text = report.render(found, left_out, [Path("runs")], "map", "deephash report runs")
    assert "<script>alert" not in text
    return text


def steps() -> Any:
    return drawn._steps(RUN / runs.STEPS), records.epochs(RUN), list(records.steps(RUN / runs.STEPS))


def dataset() -> RetrievalDataset:
    ids = [f"{number:03}.png" for number in range(N)]
    labels = np.eye(3, dtype=np.uint8)[np.arange(N) % 3]
    return RetrievalDataset("toys", ids, labels, ["a", "b", "c"], ImageFiles([Path(name) for name in ids], Path()))


def split() -> Any:
    found = load_split(Path("split.json"), dataset())
    return [rows.tolist() for rows in (found.query, found.train, found.database)]


def stored() -> Any:
    return [
        (side.packed.tolist(), side.labels.tolist(), list(side.ids)) for side in codes_folder.load_codes(Path("c"))[:2]
    ]


def index() -> Any:
    return indexes.load(Path("i.faiss"), codes_folder.open_side(Path("c"), "database")).n


def network() -> Any:
    found = checkpoints.read_checkpoint(Path("k.ckpt"))
    return {name: tensor for name, tensor in found["state_dict"].items() if not isinstance(tensor, torch.Tensor)}


def with_digests() -> None:
    """Write the digests of the codes as they are into their manifest."""
    manifest = json.loads(Path("c/manifest.json").read_text())
    for name in manifest["files"]:
        file = Path("c", name)
        manifest["files"][name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    Path("c/manifest.json").write_text(json.dumps(manifest))


def with_sidecar() -> None:
    record = {
        "format": 1,
        "deephash": "0",
        "bytes": Path("k.ckpt").stat().st_size,
        "sha256": sha256_file(Path("k.ckpt")),
    }
    Path("k.ckpt.json").write_text(json.dumps(record))


def with_record() -> None:
    record = json.loads(Path("i.faiss.json").read_text())
    record |= {"bytes": Path("i.faiss").stat().st_size, "sha256": sha256_file(Path("i.faiss"))}
    Path("i.faiss.json").write_text(json.dumps(record))


READERS = {
    "run.json": Reader("runs/a/run.json", tables),
    "config.yaml": Reader("runs/a/config.yaml", tables),
    "metrics.json": Reader("runs/a/metrics.json", tables),
    "metrics.json in a report": Reader("runs/a/metrics.json", page, share=10),
    "metrics.jsonl": Reader("runs/a/metrics.jsonl", steps),
    "retrieval.json": Reader("runs/a/retrieval.json", lambda: gallery.read(RUN).queries),
    "retrieval.webp": Reader("runs/a/retrieval.webp", lambda: gallery.read(RUN).queries),
    "wandb/status.json": Reader("runs/a/wandb/status.json", lambda: (dashboards.status(RUN), sync._plan(RUN, False))),
    "split.json": Reader("split.json", split, is_exact=True),
    "manifest.json": Reader("c/manifest.json", stored, is_exact=True),
    "codes": Reader("c/database.npy", stored, is_exact=True),
    "codes, digest written": Reader("c/database.npy", stored, with_digests),
    "labels, digest written": Reader("c/database_labels.npy", stored, with_digests),
    "ids, digest written": Reader("c/database_ids.txt", stored, with_digests),
    "index": Reader("i.faiss", index, is_exact=True),
    "index, digest written": Reader("i.faiss", index, with_record),
    "record of an index": Reader("i.faiss.json", index, is_exact=True),
    "checkpoint": Reader("k.ckpt", network, is_exact=True),
    "checkpoint, digest written": Reader("k.ckpt", network, with_sidecar),
    "sidecar": Reader("k.ckpt.json", network, is_exact=True),
    "CSV table": Reader("table.csv", lambda: csv_table(None, "table.csv").ids),
    "list": Reader("train.txt", lambda: image_list(".", "train.txt", "query.txt", None).ids),
    "vectors": Reader("x.npy", lambda: vectors("x.npy", "y.npy", None).images.batch(np.arange(N))),
    "external codes": Reader("q.npy", lambda: external_codes.load(*map(Path, ("q.npy", "q.npy", "y.npy", "y.npy")))[0]),
}


@pytest.fixture
def place() -> None:
    """All the files in the current folder."""
    for name, seed in (("a", 0), ("b", 1)):
        folder = write_run(f"runs/{name}", seed=seed, metrics=curves(BITS, 0.5), record={"id": name})
        write_steps(folder)
        write_gallery(folder)
        (folder / "wandb").mkdir()
        state = {"status": "offline", "reason": None, "whole": True, "folder": str(folder.absolute())}
        (folder / "wandb" / "status.json").write_text(json.dumps(state))
    data = dataset()
    save_split(Path("split.json"), make_split("holdout", data, 0), data)
    packed = codes(N, BITS)
    sides = [CodeSet(packed, BITS, data.labels, [f"{side}{number}" for number in range(N)]) for side in "qd"]
    codes_folder.save_codes(Path("c"), *sides, {})
    database = codes_folder.open_side(Path("c"), "database")
    indexes.save(indexes.build("hnsw", packed, BITS, SETTINGS["hnsw"]), Path("i.faiss"), database)
    network = {"state_dict": {"weight": torch.zeros(3, 4), "steps": torch.tensor(3)}, "epoch": 2, "callbacks": {}}
    saving.VerifiedCheckpointIO().save_checkpoint(network, "k.ckpt")
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(name)
    rows = [f"{name},{'ab'[number % 2]},{'query' if number > 5 else 'train'}" for number, name in enumerate(names)]
    Path("table.csv").write_text("path,labels,split\n" + "\n".join(rows) + "\n")
    for role, part in (("train", names[:6]), ("query", names[6:])):
        Path(f"{role}.txt").write_text("".join(f"{name}\t{number % 2} 1\n" for number, name in enumerate(part)))
    np.save("x.npy", np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32))
    np.save("y.npy", np.arange(N) % 3)
    np.save("q.npy", np.where(np.random.default_rng(1).random((N, BITS)) < 0.5, -1, 1).astype(np.int8))


def changed(file: Path, original: bytes, number: int) -> bytes:
    """Return a mutation: of a JSON or YAML file mostly of one of its values, of any other file of its bytes."""
    rng = mutations.rng_of(number)
    if file.suffix not in (".json", ".yaml") or rng.integers(3) == 0:
        return mutations.content(rng, original)
    value, _ = mutations.value(rng, yaml.safe_load(original))
    if file.suffix == ".yaml":
        return yaml.safe_dump(value).encode()
    try:
        return mutations.as_json(value).encode("utf-8", errors="surrogatepass")
    except ValueError:  # a number of more digits than Python writes
        return b"[1" + b"0" * 5000 + b"]"


@pytest.mark.filterwarnings("ignore:.*invalid escape|.*invalid .* literal")  # NumPy's, of a header that is no Python
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("numbers", mutations.chunks(FAST, ALL, CHUNK))
def test_a_reader_gives_the_data_or_one_named_error(place, name, numbers):
    reader = READERS[name]
    file = Path(reader.file)
    original = file.read_bytes()
    right = reader.read()
    beside = {path: path.read_bytes() for path in (Path("c/manifest.json"), Path("k.ckpt.json"), Path("i.faiss.json"))}
    failures = []
    with mutations.little_memory():
        for number in numbers[:: reader.share]:
            content = changed(file, original, number)
            file.write_bytes(content)
            reader.finish()
            result, wrong = mutations.bounded(reader.read)
            if wrong is None and result is not None and reader.is_exact and result != right:
                wrong = "other data than the original"
            if wrong:
                failures.append(f"{number}: {wrong}\n   {content[:250]!r}")
            for path, text in beside.items():
                path.write_bytes(text)
    assert not failures, mutations.report(failures)

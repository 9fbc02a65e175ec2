"""200,000 image files: workers hold no names of their own; memory, and images/s beside a bare loop, are printed."""

import io
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK
from photographs import NAMES, photograph

from deephash_cli.data.decoding import decode
from deephash_cli.data.image_folder import image_folder
from deephash_cli.data.loaders import Rows, encode_loader
from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.names import Names

FILES, CLASSES, FEW = 200_000, 200, 4000
WORKERS = 2
LOOKS = 40  # at the memory of a training, twice a second
FORM = Preprocessing(64, 0.875, "center", "bilinear", (0.0,) * 3, (1.0,) * 3)
DECODED = 20_000  # images of each timed pass

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """Folders of many and of few JPEG files of 96 x 72 pixels, no two of which are equal."""
    whole = photograph(NAMES[0])
    originals = []
    for left in range(0, 500, 5):
        content = io.BytesIO()
        whole.crop((left, left // 2, left + 128, left // 2 + 96)).resize((96, 72)).save(content, "JPEG")
        originals.append(content.getvalue())
    made = {}
    for count in (FEW, FILES):
        made[count] = tmp_path_factory.mktemp("files")
        for number in range(count):
            place = made[count] / f"class {number % CLASSES:03d}"
            if number < CLASSES:
                place.mkdir()
            # what follows the end of a JPEG is not read
            file = place / f"photograph {number:07d}.jpg"
            file.write_bytes(originals[number % len(originals)] + str(number).encode())
    return made


def memory(process: int) -> dict[str, float]:
    """Return megabytes of a process by kind: Rss, Pss, and Private, which it shares with no other."""
    found = {"Rss": 0.0, "Pss": 0.0, "Private": 0.0}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, kilobytes, *_ = line.split()
        kind = "Private" if name.startswith("Private_") else name.rstrip(":")
        if kind in found:
            found[kind] += int(kilobytes) * 1024 / 1e6
    return found


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def memory_of_training(folder: Path, run: Path) -> list[tuple[dict[str, float], list[dict[str, float]]]]:
    """Start a training, and return the memory of its process and of each worker twice: at once, and after a while."""
    settings = ["dataset=image_folder", f"dataset.root={folder}", *QUICK, f"loader.num_workers={WORKERS}"]
    program = "from deephash_cli.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", *settings, "trainer.max_epochs=10000", f"run_dir={run}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        end, looks = time.monotonic() + 1500, []
        while len(looks) < LOOKS:
            assert process.poll() is None, process.communicate()[0].decode()
            assert time.monotonic() < end, "the training started no workers"
            time.sleep(0.5)
            if len(found := children(process.pid)) == WORKERS:
                looks.append((memory(process.pid), [memory(child) for child in found]))
        return [looks[0], looks[-1]]
    finally:
        process.kill()
        process.communicate(timeout=60)


def size_of_names(count: int) -> float:
    """Megabytes of the names of so many files in one buffer."""
    return sum(len(f"class 000/photograph {number:07d}.jpg") + 9 for number in range(count)) / 1e6


def test_workers_of_a_training_start_without_names_of_their_own(folders, tmp_path):
    held = {count: memory_of_training(folders[count], tmp_path / str(count)) for count in (FEW, FILES)}
    for count, looks in held.items():
        for when, (own, workers) in zip(("at once", "later"), looks, strict=True):
            rounded = [{kind: round(size) for kind, size in one.items()} for one in (own, *workers)]
            print(f"\n{count} files, {when}: process {rounded[0]} MB, workers {rounded[1:]} MB")  # noqa: T201
    # Only at once: what the process writes to later, such as its buffer of outputs, leaves the old pages to the workers
    few, many = (statistics.mean(worker["Private"] for worker in held[count][0][1]) for count in (FEW, FILES))
    assert many - few < size_of_names(FILES)  # a copy of its own, even the smallest one, would take more


def bare_loop(paths: list[Path]) -> None:
    for path in paths:
        FORM.pixels(decode(path, at_least=FORM.resized))


def test_workers_that_read_many_files_hold_no_names_of_their_own(folders):
    inputs, loaders = {}, {}
    for count in (FEW, FILES):
        dataset = image_folder(folders[count])
        assert isinstance(dataset.ids, Names)
        assert len(dataset) == count
        rows = np.random.default_rng(0).permutation(count)[:DECODED]
        inputs[count] = dataset.images, rows
        whole = Rows(dataset.images.prepared(FORM), torch.from_numpy(dataset.labels), rows)
        loaders[count] = encode_loader(whole, 128, WORKERS, pin_memory=False)
    images, rows = inputs[FILES]
    shares = [[images.path(row) for row in rows[number::WORKERS].tolist()] for number in range(WORKERS)]
    seconds: dict[str, list[float]] = {"loader": [], "bare": []}
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        for turn in range(6):
            for name in seconds if turn % 2 else reversed(seconds):
                began = time.perf_counter()
                if name == "loader":
                    assert sum(len(batch.indices) for batch in loaders[FILES]) == DECODED
                else:
                    pool.map(bare_loop, shares, chunksize=1)
                if turn:  # the first pass starts the workers and fills the system's cache of files
                    seconds[name].append(time.perf_counter() - began)
    ratios = [bare / ours for ours, bare in zip(seconds["loader"], seconds["bare"], strict=True)]
    speeds = {name: round(DECODED / statistics.median(found)) for name, found in seconds.items()}
    print(f"\nimages/s with {WORKERS} processes, load {os.getloadavg()[0]:.1f}: {speeds}, ratios {np.round(ratios, 2)}")  # noqa: T201
    assert sum(len(batch.indices) for batch in loaders[FEW]) == FEW
    private = {
        count: [memory(worker.pid)["Private"] for worker in loader._iterator._workers]
        for count, loader in loaders.items()
    }
    print(f"private memory of the workers: { {count: np.round(sizes) for count, sizes in private.items()} } MB")  # noqa: T201
    assert statistics.mean(private[FILES]) - statistics.mean(private[FEW]) < size_of_names(FILES)

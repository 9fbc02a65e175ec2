"""Compare the loader of image files with bare loops, and the memory of a million names with that of Python's strings.

See README.md here. The rows of a table take turns in one run, on the same files, with the same number of processes.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import sklearn.datasets
import torch
import torchvision
from PIL import Image

from deephash_cli.data.dataset import ImageFiles
from deephash_cli.data.loaders import Rows, encode_loader
from deephash_cli.data.preprocessing import Preprocessing
from deephash_cli.names import Names

FORM = Preprocessing(224, 0.875, "center", "bicubic", (0.0,) * 3, (1.0,) * 3)
BATCH = 64


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of 500 x 375 pixels: random parts of two photographs."""
    random = np.random.default_rng(0)
    samples = Path(sklearn.datasets.__file__).parent / "images"
    photographs = [Image.open(samples / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        width = int(random.integers(400, 560))
        height = width * 3 // 4
        photograph = photographs[number % 2]
        left, top = random.integers(0, photograph.width - width), random.integers(0, photograph.height - height)
        part = photograph.crop((left, top, left + width, top + height))
        part.resize((500, 375)).save(path, quality=90)
    return paths


def torchvision_alone(paths: Sequence[Path]) -> None:
    """Read and decode with torchvision, and keep nothing."""
    torch.set_num_threads(1)
    for path in paths:
        torchvision.io.decode_jpeg(torchvision.io.read_file(str(path)))


def pillow_alone(paths: Sequence[Path]) -> None:
    """Read and decode with Pillow, and keep nothing."""
    for path in paths:
        with Image.open(path) as image:
            image.load()


def pillow_resized(paths: Sequence[Path]) -> None:
    """Read, decode, resize and crop with Pillow, and make batches, which are sent nowhere."""
    height, width = FORM.resized_sides(375, 500)
    left, top = (width - FORM.size) // 2, (height - FORM.size) // 2
    box = (left, top, left + FORM.size, top + FORM.size)
    for start in range(0, len(paths), BATCH):
        images = np.empty((BATCH, 3, FORM.size, FORM.size), np.uint8)
        for position, path in enumerate(paths[start : start + BATCH]):
            with Image.open(path) as image:
                image.load()
                resized = image.resize((width, height), Image.Resampling.BICUBIC)
            images[position] = np.asarray(resized.crop(box)).transpose(2, 0, 1)


BARE: dict[str, Callable[[Sequence[Path]], None]] = {
    "Pillow: decode, resize, batch": pillow_resized,
    "Pillow: decode alone": pillow_alone,
    "torchvision.io: decode alone": torchvision_alone,
}


def decoding(count: int, workers: int, rounds: int) -> None:
    """Print images per second of our loader and of each bare loop, and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), count)
        files = ImageFiles(paths, Path(folder), FORM)
        loader = encode_loader(Rows(files, torch.zeros(count, 10), np.arange(count)), BATCH, workers, False)
        shares = [paths[number::workers] for number in range(workers)]
        speeds: dict[str, list[float]] = {name: [] for name in ("ours", *BARE)}
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            for turn in range(rounds + 1):
                for name in speeds if turn % 2 else reversed(speeds):
                    began = time.perf_counter()
                    if name == "ours":
                        for _ in loader:
                            pass
                    else:
                        pool.map(BARE[name], shares, chunksize=1)
                    if turn:  # the first one starts processes and reads the files from the disk
                        speeds[name].append(count / (time.perf_counter() - began))
    for name, values in speeds.items():
        ratios = sorted(ours / value for ours, value in zip(speeds["ours"], values, strict=True))
        speed, ratio = statistics.median(values), statistics.median(ratios)
        print(f"| {workers} | {name} | {speed:,.0f} | {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |", flush=True)


def private_bytes() -> int:
    """Return the bytes of memory that no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def held(make: Callable[[list[str]], Sequence[object]], count: int, connection) -> None:
    """Send the bytes that names take in this process, and those that a worker needs that looks at each of them."""
    texts = (f"class {number % 1000:04d}/photograph {number:08d}.jpg" for number in range(count))
    before = private_bytes()
    names = make(list(texts))
    own = private_bytes() - before

    def look(ours) -> None:
        first = private_bytes()
        for name in names:
            str(name)
        ours.send(private_bytes() - first)

    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=look, args=(theirs,))
    worker.start()
    connection.send((own, ours.recv()))
    worker.join()


def ids_and_paths(texts: list[str]) -> Sequence[object]:
    """Return what versions up to 0.1 held: ids, and a path for each."""
    return [*texts, *map(Path, texts)]


def memory(count: int) -> None:
    """Print the memory that names take as Python's objects and in one buffer, here and in each worker."""
    print(f"\n| {count:,} names | MB in the first process | more MB in each worker |\n| --- | --- | --- |")
    for name, make in (("strings and paths", ids_and_paths), ("strings", list), ("`Names`", Names)):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=held, args=(make, count, theirs))
        process.start()
        own, more = ours.recv()
        process.join()
        print(f"| {name} | {own / 1e6:,.0f} | {more / 1e6:,.0f} |", flush=True)


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="JPEG files (default: 2000)")
    parser.add_argument("--names", type=int, default=1_000_000, help="names (default: a million)")
    parser.add_argument("--workers", type=int, action="append", help="processes; may be repeated (default: 1 and 2)")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each row (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Pillow {PIL.__version__}, ")
    print(f"torchvision {torchvision.__version__}, {options.images} files of 500 x 375 pixels\n")
    print("| processes | what | images/s | ours / this: median (range) |\n| --- | --- | --- | --- |")
    for workers in options.workers or (1, 2):
        decoding(options.images, workers, options.rounds)
    if sys.platform == "linux":
        memory(options.names)


if __name__ == "__main__":
    main()

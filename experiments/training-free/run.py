"""Hash the frozen features of several backbones without training, and print this experiment's tables.

    python run.py <folder for the runs> [<data set> [<model> ...]]

A model that cannot be loaded here is named with the reason. Started again, only what is missing is done. ``pixels``
stands for the pixels themselves, in place of features.
"""

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from deephash_cli.cli.checking import train_settings
from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.training.targets import build

METHODS, LENGTHS, SEEDS = ("pcarr", "itq", "lsh"), (16, 32, 64), range(1, 11)
MODELS = (
    "pixels", "efficientnet_lite0", "resnet50", "convnext_t", "vit_b16", "clip_b16", "siglip2_b16", "dinov2_s",
    "dinov2_b", "dinov3_s",
)  # fmt: skip
METRICS = ("map", "map_at_1000")
PROGRAM = (sys.executable, "-c", "from deephash_cli.cli.entry import main; main()")


def pixels(name: str, place: Path) -> list[str]:
    """Write the pixels of a data set as vectors in [0, 1], and return the settings that read them."""
    dataset: RetrievalDataset = build(train_settings(f"dataset={name}").dataset.source)
    if not (place / "ids.txt").exists():
        place.mkdir(parents=True, exist_ok=True)
        rows = np.arange(len(dataset))
        np.save(place / "vectors.npy", (dataset.images.batch(rows).reshape(len(rows), -1) / 255).astype(np.float16))
        np.save(place / "labels.npy", dataset.labels)
        (place / "ids.txt").write_text("".join(f"{name}\n" for name in dataset.ids))
    files = {"vectors": "vectors.npy", "labels": "labels.npy", "ids": "ids.txt"}
    return ["dataset=vectors", *(f"dataset.{name}={place / file}" for name, file in files.items())]


def sweep(model: str, data: str, root: Path) -> str:
    """Do all runs of one model, and return why they could not be done; "" if they were."""
    source = pixels(data, root / "pixels") if model == "pixels" else [f"dataset={data}", f"model={model}"]
    settings = [
        f"method={','.join(METHODS)}", f"bits={','.join(map(str, LENGTHS))}", f"seed={','.join(map(str, SEEDS))}",
        *source, "dataset.protocol=s1", "dataset.map_at=[1000]", "logger=none", "gallery=false", f"runs={root / model}",
    ]  # fmt: skip
    done = subprocess.run(
        [*PROGRAM, "train", "-m", *settings], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    return "" if done.returncode == 0 else (errors or [f"exit code {done.returncode}"])[0]


def table(models: list[str], metric: str, root: Path) -> None:
    """Print mean and standard deviation over seeds by backbone, method and code length."""
    print(f"| backbone | method |{''.join(f' {bits} bits |' for bits in LENGTHS)} seeds |")
    print("| --- | --- |" + " --- |" * (len(LENGTHS) + 1))
    for model in models:
        values: dict[tuple[str, int], list[float]] = defaultdict(list)
        for file in sorted((root / model).glob("*/metrics.json")):
            metrics = json.loads(file.read_text())
            values[metrics["method"], metrics["bits"]].append(metrics[metric])
        for method in METHODS:
            cells = [values[method, bits] for bits in LENGTHS]
            shown = [f"{statistics.mean(cell):.3f} ± {statistics.stdev(cell):.3f}".replace("0.", ".") for cell in cells]
            print(f"| {model} | {method} | {' | '.join(shown)} | {min(map(len, cells))} |")


def main(root: Path, data: str = "fashion_mini", *models: str) -> None:
    """Do the runs and print the tables."""
    done = []
    for model in models or MODELS:
        if reason := sweep(model, data, root):
            print(f"not here: {model}: {reason}", flush=True)
        else:
            done.append(model)
    for metric in METRICS:
        print(f"\n{metric}\n")
        table(done, metric, root)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

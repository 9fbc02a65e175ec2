"""What is wrong is said before anything heavy is imported, and a finished run is used without what trained it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photos

from deephash_cli.retrieval.codes import CodeSet, pack
from deephash_cli.retrieval.codes_folder import MANIFEST, save_codes

HEAVY = {"torch", "torchvision", "pytorch_lightning", "timm", "wandb"}


def write_inputs() -> None:
    """Write to the current folder what the commands below read: each has one mistake."""
    write_photos(Path("one"), classes=["bag"], each=4)
    Path("headless.csv").write_text("one/bag/000.jpg,bag\none/bag/001.jpg,bag\n")
    Path("gone.csv").write_text("path,labels\nnowhere.jpg,bag\n")
    np.save("x.npy", np.zeros((8, 4), np.float32))
    np.save("y.npy", np.zeros(7, np.int64))
    codes = CodeSet(pack(np.zeros((3, 8), bool)), 8, np.ones((3, 1), np.uint8), ["a", "b", "c"])
    save_codes(Path("codes"), codes, codes, {})
    Path("codes", MANIFEST).unlink()


CASES = {
    "no folder": ("train dataset=image_folder dataset.root=nowhere", 3, "nowhere"),
    "no header": ("train dataset=csv dataset.file=headless.csv", 3, "headless.csv"),
    "no image": ("train dataset=csv dataset.file=gone.csv", 3, "nowhere.jpg"),
    "one class": ("train dataset=image_folder dataset.root=one method=dpsh", 3, "label"),
    "no vectors": ("train dataset=vectors dataset.vectors=nowhere.npy method=itq", 3, "nowhere.npy"),
    "too few labels": ("train dataset=vectors dataset.vectors=x.npy dataset.labels=y.npy method=itq", 3, "y.npy"),
    "no manifest": ("eval codes=codes", 4, MANIFEST),
    "no run to search in": ("search run=nowhere query=one/bag/000.jpg", 4, "nowhere"),
    "k=0": ("search query=one/bag/000.jpg k=0", 2, "k must be"),
    "bits=0": ("train bits=0", 2, "bits must be"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_found_before_torch_is_imported(case):
    line, code, named = CASES[case]
    write_inputs()
    words = ["-X", "importtime", "-c", "from deephash_cli.cli.main import main; main()", *line.split()]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, env={**os.environ})
    imported, said = [], []
    for text in done.stderr.splitlines():
        (imported if text.startswith("import time:") else said).append(text)
    modules = {text.rpartition("|")[2].strip().partition(".")[0] for text in imported}
    assert "deephash_cli" in modules
    assert done.returncode == code, said
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    assert named in said[0]
    assert not modules & HEAVY
    assert not list(Path("runs").glob("*"))


# What a search in a run of the default model does without. torch._dynamo and sympy come with torchvision.
NEEDLESS = {
    "torchvision", "torch._dynamo", "sympy", "pytorch_lightning", "lightning_fabric", "torchmetrics", "timm", "wandb",
    "huggingface_hub", "numba", "scipy", "sklearn", "pandas", "matplotlib",
}  # fmt: skip
USE = """
import json, sys
from deephash_cli.cli import main as cli
codes = [
    cli.run(["search", "run=run", "query=photos/bag/000.jpg", "picture=found.png"]),
    cli.run(["encode", "run=run", "input=photos", "output=codes", "num_workers=0", "accelerator=cpu"]),
]
from deephash_cli.commands.serve import app, connections, guard, server  # as the verb imports them
from deephash_cli.inference.searcher import open_searcher
print(json.dumps([codes, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("model", ["efficientnet_lite0", pytest.param("small_cnn", marks=pytest.mark.slow)])
def test_search_encode_and_serve_import_what_they_need_and_no_more(deephash, model):
    write_photos(Path("photos"), each=8)
    data = [
        "dataset=image_folder",
        "dataset.root=photos",
        f"model={model}",
        "model.image_size=16",
        "loader.num_workers=0",
    ]
    more = ["method=dpsh", "bits=8", "trainer=cpu", "trainer.max_epochs=1", "logger=none", "run_dir=run"]
    assert deephash("train", *data, *more).code == 0
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, timeout=120, env={**os.environ})
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0], done
    assert "torch" in modules
    assert not NEEDLESS.intersection(modules)

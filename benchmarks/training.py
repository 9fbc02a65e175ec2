"""Compare training and encoding with the same network in a bare PyTorch loop. See README.md here.

Each row is printed as Markdown. Ours and the bare loop take turns in one process, on the same images and batches. On a
GPU the bare loop has all inputs and labels there before the clock starts, and every clock is read when the GPU has
nothing left to do.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer

from deephash_cli import console
from deephash_cli.cli.checking import check
from deephash_cli.data.loaders import EpochSampler
from deephash_cli.methods.base import BufferedModule
from deephash_cli.training.fit import Job, prepare
from deephash_cli.training.inputs import Computing, Loading, Source
from deephash_cli.training.instantiate import build_module
from deephash_cli.training.targets import build
from deephash_cli.training.trainer import make_trainer, run_trainer

COMMON = ("dataset=fashion_mini", "method=dpsh", "bits='48'", "logger=none")
# name: settings, training images, images to encode
CASES: dict[str, tuple[tuple[str, ...], int, int]] = {
    "features of a frozen EfficientNet-Lite0": ((), 5000, 9000),
    "SmallCNN, 32 px": (("model=small_cnn",), 5000, 5000),
    "EfficientNet-Lite0, 96 px": (
        ("model.frozen=false", "model.network.frozen_norm=true", "model.network.channels_last=true"), 640, 640
    ),
}  # fmt: skip
# In whole batches of each size, also of the 512 that trainer=gpu encodes: a GPU prepares its kernels for each size.
_WHOLE = 4608
_TUNED = ("trainer=gpu", "model.frozen=false", "model.network.frozen_norm=true")
GPU_CASES: dict[str, tuple[tuple[str, ...], int, int]] = {
    "features of a frozen EfficientNet-Lite0, batches of 128": (("trainer=gpu",), _WHOLE, _WHOLE),
    "EfficientNet-Lite0, 96 px, 128": (_TUNED, _WHOLE, _WHOLE),
    "EfficientNet-Lite0, 224 px, 64": ((*_TUNED, "model.image_size=224", "loader.batch_size=64"), _WHOLE, _WHOLE),
    "EfficientNet-Lite0, 224 px, 256": ((*_TUNED, "model.image_size=224", "loader.batch_size=256"), _WHOLE, _WHOLE),
    "ResNet-50, 224 px, 128": (
        (*_TUNED, "model=resnet50", "model.weights=none", "model.image_size=224"),
        _WHOLE,
        _WHOLE,
    ),
}


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given: a GPU works on while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class EpochTime(Callback):
    """Measure the seconds from the first batch of an epoch to its end, without setup and teardown."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, _) -> None:
        """Start the clock."""
        wait_for(trainer.strategy.root_device)
        self.seconds = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, _) -> None:
        """Stop the clock."""
        wait_for(trainer.strategy.root_device)
        self.seconds = time.perf_counter() - self.seconds


class Case:
    """One network that is trained by our trainer, and a copy of it for the bare loop."""

    def __init__(self, settings: tuple[str, ...], train_images: int, encoded: int, folder: Path):
        config = check("train", ["trainer.max_epochs=1", *COMMON, *settings], None, multirun=False)
        self.folder = folder
        self.config = config
        self.job: Job = prepare(config)
        self.timer = EpochTime()
        trainer = self._new_trainer()
        self.device = trainer.strategy.root_device
        loading, computing = Loading(**config.loader), Computing(**config.features)
        self.source = Source(self.job.dataset, self.job.network, self.device, loading, computing)
        self.rows = self.job.split.train[:train_images]
        self.encoded = self.job.split.database[:encoded]
        self.training_inputs, self.encoding_inputs = self._inputs(self.rows, True), self._inputs(self.encoded, False)
        self.precision = trainer.precision_plugin.forward_context
        self.bare = self._new_module().to(self.device)
        self.optimizer = self._optimizer_of(self.bare)
        self.scheduler = build(config.scheduler)(self.optimizer, total_steps=2**30)

    def _new_trainer(self) -> Trainer:
        return make_trainer(self.config, self.folder, list, [self.timer])

    def _new_module(self) -> BufferedModule:
        torch.manual_seed(0)
        network = build(self.config.model.network, bits=self.config.bits)
        return build_module(self.config, network, self.source.labels[self.rows].float())

    def _optimizer_of(self, module: BufferedModule) -> torch.optim.Optimizer:
        new, old = list(module.network.new_layers()), list(module.network.backbone.parameters())
        groups = [{"params": [w for w in new if w.requires_grad]}, {"params": [w for w in old if w.requires_grad]}]
        return build(self.config.optimizer)([group for group in groups if group["params"]])

    def train_ours(self) -> float:
        """Train one epoch with our trainer, and return its seconds."""
        trainer, module = self._new_trainer(), self._new_module()
        run_trainer(trainer, module, self.source.shuffled(self.rows, 0))
        return self.timer.seconds

    def train_bare(self) -> float:
        """Train one epoch as somebody would by hand (batches, augmentation, buffer, loss, step); return its seconds."""
        module, config = self.bare.train(), self.config
        labels = self.source.labels[self.rows].float().to(self.device)
        wait_for(self.device)
        began = time.perf_counter()
        batches = EpochSampler(len(self.rows), config.loader.batch_size, 0)
        if self.device.type == "cuda":  # with lists of positions, each use of one would wait for a copy
            batches = [torch.tensor(positions, device=self.device) for positions in batches]
        for positions in batches:
            inputs, batch_labels = self.training_inputs(positions), labels[positions]
            with self.precision():
                u = module.network(inputs if inputs.ndim == 2 else module.augment(inputs)).float()
            module.u_buffer[positions] = u.detach()
            similar = (batch_labels @ labels.T > 0).float()
            loss = sum(module.loss(u, module.u_buffer, similar, two_sided=False).values())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
        wait_for(self.device)
        return time.perf_counter() - began

    def encode_ours(self) -> float:
        """Encode images to packed codes, and return the seconds."""
        wait_for(self.device)
        began = time.perf_counter()
        self.source.codes(self.encoded, self.precision)
        return time.perf_counter() - began

    def encode_bare(self) -> float:
        """Run only the forward pass, without codes, labels and names, and return the seconds."""
        network, size = self.job.network.eval(), self.config.loader.eval_batch_size
        wait_for(self.device)
        began = time.perf_counter()
        with torch.inference_mode(), self.precision():
            for start in range(0, len(self.encoded), size):
                network(self.encoding_inputs(slice(start, start + size)))
        wait_for(self.device)
        return time.perf_counter() - began

    def _inputs(self, rows: np.ndarray, are_held: bool) -> Callable[[Any], torch.Tensor]:
        """Return a function from positions among some rows to their images or features.

        A GPU has all of them from now on. A CPU holds those that are used again in each epoch.
        """
        if self.device.type == "cpu" and not are_held:
            return lambda positions: torch.from_numpy(self.source.inputs.batch(rows[positions]))
        there = torch.from_numpy(self.source.inputs.batch(rows)).to(self.device)
        return lambda positions: there[positions]


def in_turns(ours: Callable[[], float], bare: Callable[[], float], images: int, rounds: int) -> str:
    """Time both in turn; return a row's cells: images per second of each, the median ratio of pairs and its range."""
    ours(), bare()  # untimed: prepares memory, kernels and caches
    pairs = [(ours(), bare()) if turn % 2 else (bare(), ours())[::-1] for turn in range(rounds)]
    speeds = [statistics.median(images / pair[side] for pair in pairs) for side in (0, 1)]
    ratios = sorted(pair[1] / pair[0] for pair in pairs)
    middle = statistics.median(ratios)
    return f"{speeds[0]:,.0f} | {speeds[1]:,.0f} | **{middle:.3f}** ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def main() -> None:
    """Measure the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of timed runs (default: 9)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch")
    known, cases = {**CASES, **GPU_CASES}, GPU_CASES if torch.cuda.is_available() else CASES
    parser.add_argument("--case", action="append", choices=known, help="may be repeated (default: all for this device)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console.be_silent()
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)  # Lightning sets it, and a bare loop would not have Lightning
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    machine = f"{device}, {options.threads} thread(s), load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, torch {torch.__version__}, {options.rounds} pairs of runs\n")
    print("| what | ours, images/s | bare, images/s | ours / bare: median (range) |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, console.quiet_lightning():
        for name in options.case or cases:
            settings, train_images, encoded = known[name]
            case = Case(settings, train_images, encoded, Path(folder))
            for task, ours, bare, images in (
                ("training", case.train_ours, case.train_bare, len(case.rows)),
                ("encoding", case.encode_ours, case.encode_bare, len(case.encoded)),
            ):
                print(f"| {task}, {name} |", in_turns(ours, bare, images, options.rounds), "|", flush=True)


if __name__ == "__main__":
    main()

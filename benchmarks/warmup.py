"""Measure what the first epoch of a network costs on a GPU beyond each later one. See README.md here.

It trains EfficientNet-Lite0 at 224 px in half precision for three short epochs, whose last batch is smaller than the
others, and prints a row of a Markdown table. One process measures one row, because what is prepared is kept as long as
the process lives.
"""

import argparse
import time

import torch

from deephash_cli.cli.checking import check
from deephash_cli.training.targets import build

_HEADER = (
    "| memory format | cudnn.benchmark | first step, s | first smaller batch, s | first epoch, s | a later epoch, s |\n"
    "| --- | --- | ---: | ---: | ---: | ---: |"
)
_IMAGES, _BATCH, _EPOCHS = 1288, 64, 3  # twenty batches of 64 and one of 8
_FORMATS = {True: "channels-last", False: "contiguous"}


def epoch(network: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> list[float]:
    """Train for one epoch on random images, and return the seconds of each step."""
    seconds = []
    for batch in images.split(_BATCH):
        began = time.perf_counter()
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = network(batch).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def row(device: torch.device, size: int, channels_last: bool, benchmark: bool) -> str:
    """Measure one way of training and return its row of the table."""
    settings = (
        "model.frozen=false",
        "model.network.frozen_norm=true",
        f"model.network.channels_last={channels_last}",
        f"model.image_size={size}",
    )
    config = check("train", ["dataset=fashion_mini", "logger=none", *settings], None, multirun=False)
    torch.backends.cudnn.benchmark = benchmark
    torch.manual_seed(0)
    network = build(config.model.network, bits=48).to(device).train()
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], 1e-4)
    images = torch.randint(256, (_IMAGES, 1, 28, 28), dtype=torch.uint8, device=device)
    first, *later = [epoch(network, optimizer, images) for _ in range(_EPOCHS)]
    cells = [first[0], first[-1], sum(first), min(map(sum, later))]
    return " | ".join([f"| {_FORMATS[channels_last]}", str(benchmark), *(f"{cell:.2f}" for cell in cells)]) + " |"


def main() -> None:
    """Print a table of one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--benchmark", action="store_true", help="let cuDNN try its algorithms and take the fastest")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default: 224)")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(_HEADER, row(device, options.size, options.channels_last, options.benchmark), sep="\n")


if __name__ == "__main__":
    main()

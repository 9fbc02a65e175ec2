"""Print this experiment's tables from the run folders of its sweep: python table.py <folder of runs>."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from deephash_cli.catalogue import catalogue

LENGTHS = (12, 24, 32, 48)
# Read in secondary texts, not in the papers: the README names them.
PUBLISHED = {
    "itq": (0.262, 0.275, 0.286, 0.294),
    "lfh": (0.418, 0.574, 0.641, 0.693),
    "sdh": (0.454, 0.633, 0.651, 0.660),
    "fasthash": (0.597, 0.663, 0.685, 0.702),
    "cosdish": (0.583, 0.661, 0.680, 0.702),
    "dpsh": (0.713, 0.727, 0.744, 0.757),
    "dtsh": (0.710, 0.750, 0.765, 0.774),
    "dsdh": (0.740, 0.786, 0.801, 0.820),
    "dhn": (None, None, None, 0.621),
}


def show(value: float | None) -> str:
    """As the field writes it: .123."""
    return "" if value is None else f"{value:.3f}".removeprefix("0")


def main(root: Path) -> None:
    """Print them."""
    maps: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    splits = set()
    for file in sorted(root.glob("*/metrics.json")):
        metrics = json.loads(file.read_text())
        maps[metrics["method"]][metrics["bits"]].append(metrics["map"])
        splits.add(metrics["split"]["sha256"])
    if len(splits) != 1:
        sys.exit(f"{root} must hold runs on one split, got {len(splits)}")
    means = {name: [statistics.mean(lengths[bits]) for bits in LENGTHS] for name, lengths in maps.items()}
    learns_from = {entry.name: entry.supervision for entry in catalogue(None)}

    print(f"| method | learns from |{''.join(f' {bits} bits |' for bits in LENGTHS)} seeds |")
    print("| --- | --- |" + " --- |" * (len(LENGTHS) + 1))
    for name in sorted(means, key=lambda name: (learns_from[name] != "none", statistics.mean(means[name]))):
        cells = [
            f"{show(mean)} ± {show(statistics.stdev(maps[name][bits]))}"
            for bits, mean in zip(LENGTHS, means[name], strict=True)
        ]
        source = "no labels" if learns_from[name] == "none" else learns_from[name]
        seeds = "/".join(sorted({str(len(values)) for values in maps[name].values()}))
        print(f"| {name} | {source} | {' | '.join(cells)} | {seeds} |")

    print(f"\n| method |{''.join(f' {bits}: here | published |' for bits in LENGTHS)}")
    print("| --- |" + " --- | --- |" * len(LENGTHS))
    for name, published in PUBLISHED.items():
        pairs = zip(means[name], published, strict=True)
        print(f"| {name} |{''.join(f' {show(here)} | {show(there)} |' for here, there in pairs)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

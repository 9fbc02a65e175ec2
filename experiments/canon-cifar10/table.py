"""Print this experiment's tables from the run folders of its sweep: python table.py <folder of runs>."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from deephash_cli.commands.methods import catalogue
from deephash_cli.commands.report.published import beside

LENGTHS = (12, 24, 32, 48)
# The order of the second table. Its numbers are those of the report: for each method the first secondary source.
COMPARED = ("itq", "lfh", "sdh", "fasthash", "cosdish", "dpsh", "dtsh", "dsdh", "dhn")


def published_map(method: str) -> dict[int, float]:
    """Return the published mAP on s1 by code length, from the first source that quotes a paper."""
    entries = beside(method, "cifar10", "s1", list(LENGTHS))
    return next(entry.map for entry in entries if entry.secondary)


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
    for name in COMPARED:
        pairs = zip(means[name], map(published_map(name).get, LENGTHS), strict=True)
        print(f"| {name} |{''.join(f' {show(here)} | {show(there)} |' for here, there in pairs)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

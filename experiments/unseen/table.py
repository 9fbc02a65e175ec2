"""Write results.csv and print this experiment's tables from run folders: python table.py <folder of runs>..."""

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

PROTOCOLS = ("seen@seen", "seen@all", "unseen@unseen", "unseen@all")
METHODS = ("dpsh", "dsdh", "hashnet", "csq", "orthohash", "greedyhash", "dch", "sdh", "itq", "bihalf")
HERE = Path(__file__).parent


def read(roots: list[Path]) -> list[dict]:
    """One line for each run. All methods must have been trained on the same rows for a data set and seed."""
    lines, splits = [], {}
    for file in sorted(path for root in roots for path in root.glob("*/metrics.json")):
        metrics = json.loads(file.read_text())
        if "by_classes" not in metrics:
            sys.exit(f"{file} has no unseen classes")
        place = metrics["dataset"], metrics["seed"]
        if splits.setdefault(place, metrics["split"]) != metrics["split"]:
            sys.exit(f"{file} is not on the split of the other runs of {' seed '.join(map(str, place))}")
        lines.append({
            **{name: metrics[name] for name in ("dataset", "method", "bits", "seed")},
            "split_seed": metrics["split"]["seed"],
            "unseen": "; ".join(metrics["split"]["changes"]["unseen"]["classes"]),
            **{name: metrics["by_classes"][name]["map"] for name in PROTOCOLS},
            "map": metrics["map"],
        })  # fmt: skip
    return sorted(lines, key=lambda line: (line["dataset"], METHODS.index(line["method"]), line["bits"], line["seed"]))


def show(values: list[float]) -> str:
    """As the field writes it: .123, or .123 ± .004 over several seeds."""
    texts = [f"{statistics.mean(values):.3f}", *([f"{statistics.stdev(values):.3f}"] if len(values) > 1 else [])]
    return " ± ".join(text.replace("0.", ".", 1) for text in texts)


def main(roots: list[Path]) -> None:
    """Print for each data set the unseen classes, a table of all runs, and the order of the methods."""
    lines = read(roots)
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        here = [line for line in lines if line["dataset"] == dataset]
        print(f"\n`{dataset}`:\n\n| seed | unseen classes |\n| --- | --- |")
        for seed, unseen in sorted({(line["seed"], line["unseen"]) for line in here}):
            print(f"| {seed} | {unseen} |")
        cells = defaultdict(list)
        for line in here:
            cells[line["method"], line["bits"]].append(line)
        print(f"\n| method | bits | {' | '.join(PROTOCOLS)} | seeds |\n| --- | --- |{' --- |' * 5}")
        for (method, bits), runs in cells.items():
            values = " | ".join(show([run[name] for run in runs]) for name in PROTOCOLS)
            print(f"| {method} | {bits} | {values} | {', '.join(str(run['seed']) for run in runs)} |")
        print("\n| bits | protocol | methods, best mean first |\n| --- | --- | --- |")
        for bits in sorted({line["bits"] for line in here}):
            for name in PROTOCOLS:
                means = {m: statistics.mean(run[name] for run in runs) for (m, b), runs in cells.items() if b == bits}
                print(f"| {bits} | {name} | {', '.join(sorted(means, key=lambda method: -means[method]))} |")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

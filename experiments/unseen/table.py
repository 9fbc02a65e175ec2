"""Write results.csv and print this experiment's tables from run folders: python table.py <folder of runs>..."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from tables import show, write_csv

PROTOCOLS = ("seen@seen", "seen@all", "unseen@unseen", "unseen@all")
# Those that ran on all data sets, in the order of the tables; the others ran on CIFAR-10.
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
    return sorted(lines, key=lambda line: (line["dataset"], order_of(line["method"]), line["bits"], line["seed"]))


def order_of(method: str) -> tuple[int, str]:
    """Sort key of a method."""
    return (METHODS.index(method), "") if method in METHODS else (len(METHODS), method)


def every_method(lines: list[dict]) -> None:
    """Print one row for each method, best mean of unseen@unseen first, with its rank by each protocol."""
    lengths = sorted({line["bits"] for line in lines})
    cells = defaultdict(list)
    for line in lines:
        for name in PROTOCOLS:
            cells[line["method"], line["bits"], name].append(line[name])
    methods = {line["method"] for line in lines}
    means = {
        name: {method: statistics.mean(statistics.mean(cells[method, k, name]) for k in lengths) for method in methods}
        for name in PROTOCOLS
    }
    orders = {name: sorted(methods, key=lambda method: -found[method]) for name, found in means.items()}
    heads = (f"{name}, {k} bits" for name in ("unseen@unseen", "seen@seen") for k in lengths)
    print(f"\n| method | {' | '.join(heads)} | rank: {' | '.join(PROTOCOLS)} |")
    print(f"| --- |{' --- |' * (2 * len(lengths) + len(PROTOCOLS))}")
    for method in orders["unseen@unseen"]:
        shown = (show(cells[method, k, name]) for name in ("unseen@unseen", "seen@seen") for k in lengths)
        ranks = (str(1 + orders[name].index(method)) for name in PROTOCOLS)
        print(f"| {method} | {' | '.join(shown)} | {' | '.join(ranks)} |")


def main(roots: list[Path]) -> None:
    """Print for each data set the unseen classes, a table of all runs, and the order of the methods."""
    lines = read(roots)
    write_csv(HERE / "results.csv", lines)
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        everything = [line for line in lines if line["dataset"] == dataset]
        here = [line for line in everything if line["method"] in METHODS]
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
        if len(everything) > len(here):
            every_method(everything)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

"""Print this experiment's tables from run folders: python table.py <folder of runs>... [--metric map]."""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def show(values: list[float]) -> str:
    """As the field writes it: .123, or .123 ± .004 over several seeds."""
    texts = [f"{statistics.mean(values):.3f}", *([f"{statistics.stdev(values):.3f}"] if len(values) > 1 else [])]
    return " ± ".join(text.replace("0.", ".", 1) for text in texts)


def main() -> None:
    """Print a table for each data set: a row for each method, in the order of its mean over all lengths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("roots", nargs="+", type=Path, metavar="folder")
    parser.add_argument("--metric", default="map")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[int, list[dict[str, Any]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for file in sorted(path for root in options.roots for path in root.glob("*/metrics.json")):
        run = json.loads(file.read_text())
        found[run["dataset"]][run["method"]][run["bits"]].append(run)
    for dataset, methods in sorted(found.items()):
        runs = [run for lengths in methods.values() for cell in lengths.values() for run in cell]
        if len(splits := {run["split"]["sha256"] for run in runs}) != 1:
            sys.exit(f"the runs on {dataset} must be on one split, got {len(splits)}")
        lengths = sorted({run["bits"] for run in runs})
        print(f"\n`{dataset}`, `{options.metric}`:\n\n| method | {' | '.join(f'{k} bits' for k in lengths)} | seeds |")
        print("| --- |" + " --- |" * (len(lengths) + 1))
        values = {
            method: {k: [run[options.metric] for run in cells[k]] for k in lengths if k in cells}
            for method, cells in methods.items()
        }
        means = {
            method: statistics.mean(statistics.mean(cell) for cell in cells.values())
            for method, cells in values.items()
        }
        for method in sorted(values, key=lambda name: means[name]):
            mark = "‡" if any(run.get("transductive") for cell in methods[method].values() for run in cell) else ""
            cells = " | ".join(show(values[method][k]) if k in values[method] else "" for k in lengths)
            counts = sorted({len(cell) for cell in values[method].values()})
            print(f"| {method}{mark} | {cells} | {' or '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()

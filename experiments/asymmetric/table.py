"""Print this experiment's tables from run folders: python table.py <folder of runs>..."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from tables import show

METHODS = ("dpsh", "dsdh", "itq", "lsh")
COLUMNS = {
    "map": lambda metrics: metrics["map"],
    "map_asymmetric": lambda metrics: metrics["map_asymmetric"],
    "gain": lambda metrics: metrics["map_asymmetric"] - metrics["map"],
    "ceiling": lambda metrics: metrics["ceiling"]["map_outputs"],
    "map_best": lambda metrics: metrics["map_best"],
    "map_worst": lambda metrics: metrics["map_worst"],
}


def main(roots: list[Path]) -> None:
    """Print a table for each data set and kind of backbone."""
    found: dict[tuple[str, str], dict[tuple[str, int], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(path for root in roots for path in root.glob("*/metrics.json")):
        metrics = json.loads(file.read_text())
        # Features are computed once, and recorded, only for a backbone that does not learn
        kind = (metrics["dataset"], "frozen" if "features" in metrics else "fine-tuned")
        found[kind][metrics["method"], metrics["bits"]].append(metrics)
    for (dataset, backbone), cells in sorted(found.items(), reverse=True):
        if len(splits := {run["split"]["sha256"] for runs in cells.values() for run in runs}) != 1:
            sys.exit(f"the runs on {dataset} must be on one split, got {len(splits)}")
        print(f"\n`{dataset}`, {backbone}:\n\n| method | bits | {' | '.join(COLUMNS)} | seeds |")
        print("| --- | --- |" + " --- |" * (len(COLUMNS) + 1))
        for (method, bits), runs in sorted(cells.items(), key=lambda cell: (METHODS.index(cell[0][0]), cell[0][1])):
            values = " | ".join(show([column(run) for run in runs]) for column in COLUMNS.values())
            print(f"| {method} | {bits} | {values} | {', '.join(str(run['seed']) for run in runs)} |")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

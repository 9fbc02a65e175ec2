"""Print this experiment's table from run folders: python table.py <folder of runs>..."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from tables import show

METHODS = ("dpsh", "hashnet", "csq", "orthohash", "itq")
COLUMNS = {
    "mAP@5000": lambda metrics: metrics["map_at_5000"],
    "NDCG@100": lambda metrics: metrics["ndcg_at_k"]["100"],
    "ACG@100": lambda metrics: metrics["acg_at_k"]["100"],
    "WAP": lambda metrics: metrics["wap"],
    "WAP@5000": lambda metrics: metrics["wap_at_5000"],
}


def main(roots: list[Path]) -> None:
    """Print a table with a line for each method and code length."""
    cells: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(path for root in roots for path in root.glob("*/metrics.json")):
        metrics = json.loads(file.read_text())
        cells[metrics["method"], metrics["bits"]].append(metrics)
    kinds = {(run["split"]["sha256"], run["policies"]["similar"]) for runs in cells.values() for run in runs}
    if len(kinds) != 1:
        sys.exit(f"the runs must be on one split and have one setting of metrics.similar, got {len(kinds)} kinds")
    print(f"| method | bits | {' | '.join(COLUMNS)} | seeds |\n| --- | --- |" + " --- |" * (len(COLUMNS) + 1))
    for (method, bits), runs in sorted(cells.items(), key=lambda cell: (METHODS.index(cell[0][0]), cell[0][1])):
        values = " | ".join(show([column(run) for run in runs]) for column in COLUMNS.values())
        print(f"| {method} | {bits} | {values} | {', '.join(str(run['seed']) for run in runs)} |")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

"""Write results.csv and print this experiment's tables: python table.py <runs by default> [<tuned runs>]."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from hydra.utils import get_class

sys.path.append(str(Path(__file__).parents[1]))
from tables import show, write_csv

HERE = Path(__file__).parent
METRICS = ("map", "map_at_1000", "map_best", "map_worst", "unique_code_ratio")
SETTINGS = ("default", "tuned")


def read(roots: list[Path]) -> list[dict]:
    """One line for each run; all must be on one split."""
    lines, splits = [], set()
    for settings, root in zip(SETTINGS, roots, strict=False):
        for file in sorted(root.glob("*/metrics.json")):
            metrics = json.loads(file.read_text())
            splits.add(metrics["split"]["sha256"])
            lines.append({
                **{name: metrics[name] for name in ("method", "bits", "seed")},
                "settings": settings,
                "learns_from": get_class(metrics["module"]["_target_"]).supervision,
                "transductive": metrics.get("transductive", False),
                **{name: metrics[name] for name in METRICS},
            })  # fmt: skip
    if len(splits) != 1:
        sys.exit(f"all runs must be on one split, got {len(splits)}")
    return sorted(lines, key=lambda line: (line["method"], *(line[name] for name in ("settings", "bits", "seed"))))


def table(lines: list[dict], metric: str) -> None:
    """Print a row for each method, in the order of its mean over all lengths."""
    cells: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        mark = {"tuned": "*"}.get(line["settings"], "") + ("‡" if line["transductive"] else "")
        cells[line["method"] + mark][line["bits"]].append(line[metric])
    lengths = sorted({line["bits"] for line in lines})
    from_what = {line["method"]: line["learns_from"] for line in lines}
    print(f"| method | learns from | {' | '.join(f'{k} bits' for k in lengths)} | seeds |")
    print(f"| --- | --- |{' --- |' * (len(lengths) + 1)}")
    for method in sorted(cells, key=lambda name: statistics.mean(map(statistics.mean, cells[name].values()))):
        counts = sorted({len(values) for values in cells[method].values()})
        shown = " | ".join(show(cells[method][k]) for k in lengths)
        print(f"| {method} | {from_what[method.rstrip('*‡')]} | {shown} | {' or '.join(map(str, counts))} |")


def print_tables(title: str, lines: list[dict]) -> None:
    """Print a table of all methods, and one of those without labels."""
    print(f"{title}, `map`:\n")
    table(lines, "map")
    print("\nMethods without labels, `map_at_1000`:\n")
    table([line for line in lines if line["learns_from"] == "none"], "map_at_1000")


def main(roots: list[Path]) -> None:
    """Write all runs, and print the tables."""
    lines = read(roots)
    write_csv(HERE / "results.csv", lines)
    default = [line for line in lines if line["settings"] == "default"]
    tuned = {line["method"] for line in lines if line["settings"] == "tuned"}
    best = [line for line in lines if line["settings"] == "tuned" or line["method"] not in tuned]
    print_tables("Default settings", default)
    if tuned:
        print_tables("\nSettings chosen on validation queries (*), or the defaults if these were the best", best)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

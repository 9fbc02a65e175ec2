"""Print this experiment's tables from the run folders of its sweeps: python table.py <folder of runs>."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

LENGTHS = (16, 32, 64)


def show(values: list[float]) -> str:
    """Mean and standard deviation, as the field writes them: .123 ± .004."""
    if not values:
        return ""
    numbers = [statistics.mean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{number:.3f}".removeprefix("0") for number in numbers)


def seconds(run: Path) -> float:
    """Seconds that the epochs of a run took, without reading data, computing features and evaluating."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return sum(line.get("time/epoch_seconds", 0) for line in lines)


def main(root: Path) -> None:
    """Print them."""
    maps: dict[tuple[str, bool], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    times: dict[tuple[str, bool], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    splits = set()
    for file in sorted(root.glob("*/metrics.json")):
        metrics = json.loads(file.read_text())
        nested = metrics.get("nested", {})
        kind = metrics["method"], bool(nested)
        splits.add(metrics["split"]["sha256"])
        times[kind][metrics["bits"]].append(seconds(file.parent))
        for bits, part in {**nested, metrics["bits"]: metrics}.items():
            maps[kind][int(bits)].append(part["map"])
    if len(splits) != 1:
        sys.exit(f"{root} must hold runs on one split, got {len(splits)}")
    methods = sorted({method for method, _ in maps})

    print(f"| method |{''.join(f' {bits} bits |' for bits in LENGTHS)} seeds |")
    print("| --- |" + " --- |" * (len(LENGTHS) + 1))
    for method in methods:
        for nested, name in ((False, "each length alone"), (True, "nested")):
            found = maps[method, nested]
            cells = " | ".join(show(found[bits]) for bits in LENGTHS)
            seeds = "/".join(sorted({str(len(found[bits])) for bits in LENGTHS}))
            print(f"| {method}, {name} | {cells} | {seeds} |")
        costs = [
            f"{statistics.mean(maps[method, True][bits]) - statistics.mean(maps[method, False][bits]):+.3f}"
            for bits in LENGTHS
            if maps[method, True][bits] and maps[method, False][bits]
        ]
        print(f"| {method}, difference | {' | '.join(costs)} | |")

    print("\n| method | seconds of three trainings | seconds of one nested training | saved |")
    print("| --- | --- | --- | --- |")
    for method in methods:
        alone = [times[method, False][bits] for bits in LENGTHS]
        if all(alone) and times[method, True][64]:
            before = sum(map(statistics.mean, alone))
            after = statistics.mean(times[method, True][64])
            print(f"| {method} | {before:.0f} | {after:.0f} | {1 - after / before:.0%} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

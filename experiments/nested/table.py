"""Print this experiment's tables from the run folders of its sweeps: python table.py <folder of runs>."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from tables import show

LENGTHS = (16, 32, 64)


def seconds(run: Path) -> float:
    """Seconds of the fastest epoch of a run: other programs of the machine slow down the others."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return min(line["time/epoch_seconds"] for line in lines if "time/epoch_seconds" in line)


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
        alone, together = (maps[method, nested] for nested in (False, True))
        costs = [
            f"{statistics.mean(together[bits]) - statistics.mean(alone[bits]):+.3f}"
            if together[bits] and alone[bits]
            else ""
            for bits in LENGTHS
        ]
        print(f"| {method}, difference | {' | '.join(costs)} | |")

    print("\n| method | seconds of an epoch, three trainings together | one nested training | saved |")
    print("| --- | --- | --- | --- |")
    for method in methods:
        alone = [times[method, False][bits] for bits in LENGTHS]
        if all(alone) and times[method, True][64]:
            before = sum(map(statistics.mean, alone))
            after = statistics.mean(times[method, True][64])
            print(f"| {method} | {before:.2f} | {after:.2f} | {1 - after / before:.0%} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

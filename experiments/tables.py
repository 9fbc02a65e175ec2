"""What the tables of several experiments need: numbers as the field writes them, and a file with all digits."""

import csv
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def show(values: Sequence[float]) -> str:
    """Return the mean, and over several seeds the standard deviation, as the field writes them: .123 ± .004."""
    if not values:
        return ""
    numbers = [statistics.mean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(re.sub(r"^(-?)0\.", r"\1.", f"{number:.3f}") for number in numbers)


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each run, with all digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)

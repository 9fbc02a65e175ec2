"""Compare two folders of runs: after a change that should move no number, codes are byte-equal and metrics equal.

    python benchmarks/same_runs.py <folder of runs before> <folder of runs after>

Runs are paired by data set, method, code length and seed. Versions and the checkpoint's digest, whose file has times in
it, are left out of the comparison.
"""

import sys
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.files import read_sealed

APART = ("versions", "checkpoint")  # keys of the provenance and of the metrics that two equal runs differ in


def by_settings(root: Path) -> dict[str, Path]:
    """Return the run folders below a folder by the part of their names that comes before the time."""
    found: dict[str, Path] = {}
    for path, _ in runs.scan(root):
        name = path.name.rsplit("-", 3)[0]
        if name in found:
            sys.exit(f"{root} has two runs of {name}, and it is not known which to compare: move one of them away")
        found[name] = path
    return found


def content(file: Path) -> Any:
    """Return the content of a file as it is compared."""
    if file.name not in ("manifest.json", runs.METRICS):
        return file.read_bytes()
    record = read_sealed(file)  # without the digest of the file itself, which differs if anything in it does
    facts = record.get("provenance", record)
    for name in APART:
        facts.pop(name, None)
    return record


def main(before: Path, after: Path) -> int:
    """Print a line for each run, and return 1 if any differs or has no partner."""
    ours, theirs = by_settings(before), by_settings(after)
    different = sorted(ours.keys() ^ theirs.keys())
    for name in sorted(ours.keys() & theirs.keys()):
        files = [file.relative_to(ours[name]) for file in sorted((ours[name] / runs.CODES).iterdir())]
        unequal = [
            str(file)
            for file in (*files, Path(runs.METRICS))
            if content(ours[name] / file) != content(theirs[name] / file)
        ]
        verdict = f"DIFFERENT: {' '.join(unequal)}" if unequal else f"{len(files) + 1} files are equal"
        print(f"{name}: {verdict}")
        different += [name] if unequal else []
    print(f"{len(ours)} runs before, {len(theirs)} after, {len(different)} different or without a partner")
    return int(bool(different) or not ours)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))

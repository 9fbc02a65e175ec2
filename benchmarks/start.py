"""Time whole commands, from the start of the process to its end: most of that is importing. See README.md here.

The commands take turns, so that other load on the machine affects all of them. Everything is printed as Markdown.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from evaluation import environment, head, machine, row, usable_cores
from PIL import Image

DATA = ("dataset=fashion_mini", "logger=none", "gallery=false")
# Where the time of a command is a goal, with that goal in seconds.
COMMANDS: dict[str, tuple[tuple[str, ...], float | None]] = {
    "help": (("--help",), None),
    "evaluate 1,000 x 9,000 codes": (("eval", "run=run"), None),
    "search one image": (("search", "run=run", "query=images/query.png"), 2),
    "encode one image": (("encode", "run=run", "input=images", "output={new}"), None),
    "train ITQ on cached features": (("train", "method=itq", "bits=32", "runs={new}", *DATA), 5),
}
PREPARE = ("train", "method=dpsh", "bits=32", "trainer.max_epochs=1", "run_dir=run", *DATA)


def run(folder: Path, arguments: tuple[str, ...], threads: int) -> tuple[float, float]:
    """Run a command, and return the seconds that passed and those that its processes computed.

    Raises:
        SystemExit: If the command fails.
    """
    words = [word.format(new=f"new-{time.time_ns()}") for word in arguments]
    tool = Path(sys.executable).with_name("deephash")
    with (folder / "log.txt").open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen([tool, *words], cwd=folder, stdout=log, stderr=log, env=environment(threads))
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"deephash {' '.join(words)} failed: {(folder / 'log.txt').read_text()}")
    return seconds, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Make a run of the default model, which is not timed, and time the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: the usable cores")
    parser.add_argument("--repeat", type=int, default=5, help="number of timed runs of each command")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / "query.png")
        run(folder, PREPARE, options.threads)
        times: dict[str, list[tuple[float, float]]] = {command: [] for command in COMMANDS}
        for number in range(options.repeat + 1):  # the first run fills caches and is not counted
            for command, (arguments, _) in COMMANDS.items():
                measured = run(folder, arguments, options.threads)
                times[command] += [measured] if number else []
        print(f"{machine(options.threads)}; {options.repeat} runs of each command\n")
        head("command", "seconds, median", "range", "computing, median", "goal")
        for command, found in times.items():
            passed, computed = zip(*found, strict=True)
            goal = COMMANDS[command][1]
            cells = f"{min(passed):.2f} to {max(passed):.2f}", f"{statistics.median(computed):.2f}"
            row(command, f"{statistics.median(passed):.2f}", *cells, "" if goal is None else f"under {goal:g}")


if __name__ == "__main__":
    main()

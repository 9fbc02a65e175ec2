"""Check and measure this machine's NVIDIA GPU in at most six minutes, and write a Markdown file. See README.md here.

The tests that need a GPU, a recipe with its mAP, what a first epoch costs, and `training.py`. Each part is a process
with a deadline; one that fails or runs out of time says so in its row, and the others are still done.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 345  # for all parts together; the rest of six minutes is for starting this program and stopping a part
RECIPE = "method=dpsh bits=48 trainer=gpu"
_COMMAND = "from deephash_cli.cli.entry import main; main()"
_DEVICE = """
import json, torch
if torch.cuda.is_available():
    versions = {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    print(json.dumps([torch.cuda.get_device_name(), versions]))
"""


@dataclass(frozen=True)
class Part:
    """One measurement, made by a process of its own.

    Attributes:
        name: Key of the part, for ``--part``; several parts may share it.
        title: What is measured, for the table.
        arguments: Arguments of the Python interpreter.
        seconds: Longest time that it may take.
        summary: Function from what it printed to the result in one cell of the table; None if it prints a table.
    """

    name: str
    title: str
    arguments: Sequence[str]
    seconds: float
    summary: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        part: The part.
        seconds: Time that it took.
        problem: Why it has no result, in one sentence; "" if it has one.
        output: What it printed.
    """

    part: Part
    seconds: float
    problem: str
    output: str

    @property
    def row(self) -> str:
        """The row of the part in the table of all parts."""
        summary = self.part.summary(self.output) if self.part.summary and not self.problem else "see below"
        return f"| {self.part.title} | {self.seconds:.0f} | {self.problem or summary} |"


def parts(folder: Path, recipe: str) -> list[Part]:
    """Return the parts in the order in which they are done.

    Args:
        folder: Empty folder for the run of the recipe.
        recipe: Settings of ``deephash train``.
    """
    tests = sorted(str(file) for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text())
    # Without two options of pyproject.toml, which need packages that a GPU machine may lack
    options = ("-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider", "--strict-markers")
    pytest = ("-m", "pytest", "-q", *options, "-m", "gpu")
    run = folder / "run"
    train = ("-c", _COMMAND, "train", *recipe.split(), "logger=none", "gallery=false", f"run_dir={run}")
    warmup, training = (str(ROOT / "benchmarks" / name) for name in ("warmup.py", "training.py"))
    return [
        Part("tests", "tests that need a GPU", (*pytest, *tests), 90, last_line),
        Part("recipe", f"`deephash train {recipe}`", train, 60, lambda _: map_of(run)),
        Part("warmup", "first epoch, contiguous", (warmup,), 25),
        Part("warmup", "first epoch, channels-last", (warmup, "--channels-last"), 45),
        Part("training", "training.py, 3 pairs of runs", (training, "--rounds", "3"), 200),
        # Last, because trying every algorithm may take longer than the rest
        Part("warmup", "first epoch, contiguous, cudnn.benchmark", (warmup, "--benchmark"), 25),
        Part("warmup", "first epoch, channels-last, cudnn.benchmark", (warmup, "--channels-last", "--benchmark"), 60),
    ]


def last_line(output: str) -> str:
    """Return the last line of an output, without the rule that pytest draws around it."""
    return (["", *output.strip().splitlines()])[-1].strip("= ")


def map_of(run: Path) -> str:
    """Return the mean average precision of a finished run."""
    return f"mAP {json.loads((run / 'metrics.json').read_text())['map']:.3f}"


def do(part: Part, seconds: float, folder: Path) -> Outcome:
    """Do a part, for no longer than it may take.

    Args:
        part: The part.
        seconds: Time that is left for all parts.
        folder: Folder for the caches, so that nothing on this machine is used or changed.
    """
    limit = min(part.seconds, seconds)
    if limit <= 0:
        return Outcome(part, 0, "left out: no time was left", "")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",  # what was measured before the deadline counts
        "DEEPHASH_CACHE_DIR": str(folder / "cache"),
    }
    began = time.monotonic()
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        process = subprocess.Popen(
            [sys.executable, *part.arguments], stdout=out, stderr=err, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # and its own processes
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output, errors = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    problem = ""
    if code is None:
        problem = f"out of time after {limit:.0f} s"
    elif code:
        sys.stderr.write(f"{output}{errors}")
        problem = f"failed with exit code {code}: {last_line(errors) or last_line(output)}"
    return Outcome(part, time.monotonic() - began, problem.replace("|", "\\|"), output)


def document(machine: str, outcomes: Sequence[Outcome]) -> str:
    """Return the Markdown file: the machine, a row for each part, and the tables that parts printed."""
    lines = [machine, "", "| part | seconds | result |", "| --- | ---: | --- |", *(each.row for each in outcomes)]
    for name in dict.fromkeys(each.part.name for each in outcomes if each.part.summary is None):
        outputs = [each.output for each in outcomes if each.part.name == name]
        rows = [line for output in outputs for line in output.splitlines() if line.startswith("|")]
        lines += ["", f"`{name}.py`:", "", *dict.fromkeys(rows)] if rows else []  # with one header
    return "\n".join(lines) + "\n"


def machine() -> tuple[str, str] | None:
    """Return the name of the card, and a paragraph about the machine; None if torch finds no CUDA device."""
    # In a process of its own, because this one would keep memory of the card
    found = subprocess.run([sys.executable, "-c", _DEVICE], stdout=subprocess.PIPE, text=True, timeout=60).stdout
    if not found:
        return None
    card, versions = json.loads(found)
    facts = {
        **versions,
        "driver": _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "Python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
        "commit": _printed("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return card, f"{card}, {now}: " + ", ".join(f"{name} {value}" for name, value in facts.items()) + "."


def _printed(*command: str) -> str:
    """Return the first line that a program prints; "unknown" if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def measure(todo: Sequence[Part], about: str, file: Path, folder: Path, until: float) -> int:
    """Do the parts, and write the file again after each, so that an interruption loses nothing.

    Args:
        todo: Parts to do.
        about: Paragraph about the machine.
        file: Markdown file to write.
        folder: Empty folder for what the parts write.
        until: Time at which all parts must have ended, by ``time.monotonic``.

    Returns:
        The exit code: 0 if every part has a result.
    """
    outcomes = []
    for part in todo:
        print(f"{part.title} ...", file=sys.stderr, flush=True)
        outcomes.append(do(part, until - time.monotonic(), folder))
        file.write_text(document(about, outcomes))
    print(file.read_text())
    print(f"written to {file}", file=sys.stderr)
    return int(any(each.problem for each in outcomes))


def main() -> int:
    """Measure the GPU of this machine, and return the exit code."""
    until = time.monotonic() + SECONDS
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(dict.fromkeys(part.name for part in parts(Path(), RECIPE)))
    parser.add_argument("--part", action="append", choices=names, help="may be repeated (default: all)")
    parser.add_argument("--recipe", default=RECIPE, help=f"settings of deephash train (default: {RECIPE})")
    parser.add_argument("--output", type=Path, help="file to write (default: benchmarks/gpu-<card>.md)")
    options = parser.parse_args()
    found = machine()
    if found is None:
        print("torch finds no CUDA device on this machine: run this on one with an NVIDIA GPU", file=sys.stderr)
        return 2
    card, about = found
    file = options.output or ROOT / "benchmarks" / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower())}.md"
    with tempfile.TemporaryDirectory() as folder:
        todo = [part for part in parts(Path(folder), options.recipe) if part.name in (options.part or names)]
        return measure(todo, about, file, Path(folder), until)


if __name__ == "__main__":
    sys.exit(main())

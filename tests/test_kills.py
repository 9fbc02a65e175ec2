"""Runs that are killed at random moments: started again, they end with the bytes of a run that was never killed.

A process counts what it does: training steps, flushes to the disk, and renames. It kills itself at a random one of
them, or some milliseconds later. All of this happens in processes of their own, through the command line.
"""

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

SEEDS = 20
METHODS = ("dsdh", "itq", "dpsh")
PROGRAM = """
import os, signal, sys, threading
from pathlib import Path

from deephash_cli.cli.main import main
from deephash_cli.methods.base import HashingModule, ShallowHasher

event, delay, name, total = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
del sys.argv[1:5]
seen = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def count():
    global seen
    seen += 1
    with open(total, "ab", 0) as file:  # one byte each: a kill leaves no half number
        file.write(b".")
    if seen == event:
        threading.Timer(delay, die).start() if delay else die()

def counted(function):
    def call(*arguments, **options):
        if name and function is rename and Path(arguments[1]).name == name:
            die()
        count()
        return function(*arguments, **options)
    return call

rename = os.replace
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
for kind in (HashingModule, ShallowHasher):
    kind.training_step = counted(kind.training_step)
main()
"""


class Moment(NamedTuple):
    """When a process kills itself: at its n-th event, some seconds later, or before it writes a file of this name."""

    event: int = 0
    delay: float = 0.0
    file: str = ""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Return a function: the command line that trains with a method, without its run folder."""
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    kinds = np.arange(157) % 5
    np.save(place / "x.npy", (rng.normal(size=(5, 16))[kinds] * 1.5 + rng.normal(size=(157, 16))).astype(np.float32))
    np.save(place / "y.npy", kinds)
    data = ("dataset=vectors", f"dataset.vectors={place / 'x.npy'}", f"dataset.labels={place / 'y.npy'}")
    run = ("bits=12", "trainer=cpu", "trainer.max_epochs=6", "loader.batch_size=32", "checkpoint.every_seconds=0")
    return lambda method: ("train", f"method={method}", *data, *run, "logger=none", "validation.queries=8")


def start(command, place, moment=None):
    """Run a command line in a process and return what it leaves: its exit code, and its number of events."""
    total = place / "total"
    total.unlink(missing_ok=True)
    given = moment or Moment()
    program = [sys.executable, "-c", PROGRAM, str(given.event), str(given.delay), given.file, str(total)]
    environment = {**os.environ, "DEEPHASH_CACHE_DIR": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*program, *command], env=environment, cwd=place, capture_output=True, text=True, check=False, timeout=240
    )
    assert moment or done.returncode == 0, done.stderr
    return done.returncode, total.stat().st_size if total.exists() else 0


@pytest.fixture(scope="module")
def wholes(settings, tmp_path_factory):
    """Place of a whole run of each method, with the run folder ``run``, and its number of events."""
    places = {method: tmp_path_factory.mktemp(method) for method in METHODS}

    def run(method):
        return start((*settings(method), f"run_dir={places[method] / 'run'}"), places[method])[1]

    with ThreadPoolExecutor(2) as pool:
        events = pool.map(run, METHODS)
        return {method: (places[method], number) for method, number in zip(METHODS, events, strict=True)}


def assert_ends_as(whole, place):
    (metrics,) = place.rglob("metrics.json")
    folder = metrics.parent
    for file in (*(whole / "run" / "codes").iterdir(), whole / "run" / "metrics.json"):
        assert (folder / file.relative_to(whole / "run")).read_bytes() == file.read_bytes(), (place, file.name)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_at_a_random_moment_goes_on_to_the_same_bytes(settings, wholes, tmp_path):
    def kill_and_continue(seed):
        choose = random.Random(seed)
        method = METHODS[seed % len(METHODS)]
        whole, events = wholes[method]
        place = tmp_path / str(seed)
        place.mkdir()
        where = "runs=runs" if seed % 2 else "run_dir=run"
        moment = Moment(choose.randint(1, events), choose.choice([0.0, choose.uniform(0.001, 0.05)]))
        code, _ = start((*settings(method), where, "resume=auto"), place, moment)
        assert code == -signal.SIGKILL
        start((*settings(method), where, "resume=auto"), place)
        assert_ends_as(whole, place)
        return moment

    with ThreadPoolExecutor(2) as pool:
        moments = list(pool.map(kill_and_continue, range(SEEDS)))
    assert len(set(moments)) > SEEDS / 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", ["runs=runs", "run_dir=run"])
def test_a_run_killed_before_its_first_record_is_started_again(settings, wholes, tmp_path, where):
    for method, file in (("dsdh", "config.yaml"), ("itq", "run.json")):
        place = tmp_path / method
        place.mkdir()
        code, _ = start((*settings(method), where, "resume=auto"), place, Moment(file=file))
        assert code == -signal.SIGKILL
        assert not list(place.rglob("run.json"))
        start((*settings(method), where, "resume=auto"), place)
        assert_ends_as(wholes[method][0], place)

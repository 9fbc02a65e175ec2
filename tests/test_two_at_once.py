"""Two processes at once, and processes that die: one run for one configuration, work that is shared and taken over."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deephash_cli import runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM = "import sys; from deephash_cli.cli import main as cli; sys.exit(cli.run(sys.argv[1:]))"
# The process kills itself at the rename of a file.
DYING = """
import os, signal, sys
from pathlib import Path
from deephash_cli.cli import main as cli
replace = Path.replace
def rename(self, target):
    if Path(target).name == "{name}":
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = rename
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.fixture
def settings(tmp_path) -> list[str]:
    """Settings of a run of some seconds."""
    rng = np.random.default_rng(0)
    classes = np.arange(400) % 4
    x = rng.normal(size=(4, 16))[classes] + 0.5 * rng.normal(size=(400, 16))
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    np.save(tmp_path / "y.npy", classes)
    return [
        "dataset=vectors", f"dataset.vectors={tmp_path / 'x.npy'}", f"dataset.labels={tmp_path / 'y.npy'}", "bits=16",
        "method=dpsh", "trainer=cpu", "logger=none", "trainer.max_epochs=40", "checkpoint.every_seconds=0",
    ]  # fmt: skip


def start(*words: str, program: str = PROGRAM) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def jobs_done(out: str) -> set[str]:
    """Return the run folders that a sweep has named as those of finished jobs."""
    return set(re.findall(r"run folder (\S+)$", out, re.MULTILINE))


def test_two_starts_of_one_configuration_make_one_run(settings):
    both = [start("train", *settings, "resume=auto") for _ in range(2)]
    codes, outs, errs = zip(*map(ended, both), strict=True)
    (folder,) = [path for path, _ in runs.scan(Path("runs"))]
    assert runs.read_record(folder)["status"] == "finished"
    if sorted(codes) == [0, 2]:  # or the second one came when the first had finished
        assert f"error: {folder} is in use by process " in errs[codes.index(2)]
    else:
        assert f"already done: {folder}" in "".join(outs)


def test_two_equal_sweeps_share_the_work_and_both_end_with_the_truth(settings):
    both = [start("train", "-m", "seed=0,1,2", *settings) for _ in range(2)]
    results = [ended(process) for process in both]
    assert [code for code, _, _ in results] == [0, 0], results
    folders = {str(path) for path, record in runs.scan(Path("runs")) if record["status"] == "finished"}
    assert len(folders) == 3
    assert len(list(runs.scan(Path("runs")))) == 3
    for _, out, _ in results:
        assert jobs_done(out) == folders
        assert re.search(r"all +│ +3 │", out), "the table has all three seeds"


def test_a_sweep_takes_over_the_job_of_one_that_is_killed(settings):
    sweep = ("train", "-m", "seed=0,1", *settings, "trainer.max_epochs=300")
    first = start(*sweep)
    while not any(record["status"] == "running" for _, record in runs.scan(Path("runs"))):
        time.sleep(0.2)
        assert first.poll() is None
    second = start(*sweep)
    before = []  # the first job may be done by now, which is said here
    for line in second.stdout:
        before.append(line)
        if "is looked at again at the end" in line:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    code, out, err = ended(second)
    assert code == 0, err
    assert sorted(record["status"] for _, record in runs.scan(Path("runs"))) == ["finished", "finished"]
    assert jobs_done("".join(before) + out) == {str(path) for path, _ in runs.scan(Path("runs"))}


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
@pytest.mark.parametrize("resume", [[], ["resume=auto"]], ids=["again", "auto"])
def test_a_run_killed_before_its_record_is_done_by_the_same_command(settings, name, resume, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    command = ["train", *settings, *resume, "trainer.max_epochs=2"]
    assert ended(start(*command, f"run_dir={folder}", program=DYING.format(name=name)))[0] == -signal.SIGKILL
    code, _, err = ended(start("train", f"resume={folder}"))
    assert code == 4
    assert f"again, with run_dir={folder}" in err
    for place in (folder, whole):
        code, _, err = ended(start(*command, f"run_dir={place}"))
        assert code == 0, err
    for file in ("metrics.json", "codes/database.npy", "codes/query.npy"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes()
    assert not list(folder.rglob("*.tmp"))


def test_encoding_killed_before_its_record_is_done_by_the_same_command(settings, tmp_path):
    assert ended(start("train", *settings, "trainer.max_epochs=2", f"run_dir={tmp_path / 'run'}"))[0] == 0
    command = ["encode", f"run={tmp_path / 'run'}", f"input={tmp_path / 'x.npy'}"]
    killed = start(*command, f"output={tmp_path / 'codes'}", program=DYING.format(name="encode.json"))
    assert ended(killed)[0] == -signal.SIGKILL
    for name in ("codes", "whole"):
        code, _, err = ended(start(*command, f"output={tmp_path / name}"))
        assert code == 0, err
    whole, codes = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "codes"))
    assert codes == whole
    assert json.loads(codes["manifest.json"])["database"]["count"] == 400

"""A disk that is really full: small file systems in memory, mounted where only the tested command sees them."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UNSHARE = ["unshare", "--mount", "--map-root-user", "--user"]
# Mount a file system of $1 kB, run the command on it, make room, and run the command again.
SCRIPT = """
mount -t tmpfs -o size=$1k none "$2" || exit 99
cd "$2"; shift 2
"$@" > /dev/null; echo "first $?"
mount -o remount,size=200m none . || exit 99
"$@" > /dev/null 2>&1; echo "second $?"
find . -name "*.tmp"
"""
PROGRAM = "import sys; from deephash_cli.cli import main as cli; sys.exit(cli.run(sys.argv[1:]))"


def _can_mount(place) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*UNSHARE, "mount", "-t", "tmpfs", "-o", "size=4k", "none", str(place)]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


@pytest.fixture
def vectors(tmp_path):
    """Settings that train on vectors in files; the test is skipped where no file system can be mounted."""
    if not _can_mount(tmp_path):
        pytest.skip("this machine allows no private mounts")
    rng = np.random.default_rng(0)
    classes = np.arange(300) % 3
    np.save(tmp_path / "x.npy", (rng.normal(size=(3, 64))[classes] + rng.normal(size=(300, 64))).astype(np.float32))
    np.save(tmp_path / "y.npy", classes)
    return [
        "dataset=vectors", f"dataset.vectors={tmp_path / 'x.npy'}", f"dataset.labels={tmp_path / 'y.npy'}", "bits=16",
        "method=itq", "trainer=cpu", "logger=none",
    ]  # fmt: skip


def on_a_small_disk(tmp_path, kilobytes, *words):
    """Run a command on a small disk, and again with more room: exit codes of both, what the first said, leftovers."""
    place = tmp_path / "disk"
    place.mkdir(exist_ok=True)
    command = [
        *UNSHARE,
        "bash",
        "-c",
        SCRIPT,
        "bash",
        str(kilobytes),
        str(place),
        sys.executable,
        "-c",
        PROGRAM,
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 99, done.stderr
    (first, second), left = [line.split()[1] for line in done.stdout.splitlines()[:2]], done.stdout.splitlines()[2:]
    return int(first), int(second), done.stderr, left


# From a disk that cannot even hold a lock file to one that has room for nearly everything, in pages of 4 kB.
@pytest.mark.parametrize("kilobytes", [4, 12, 20, 40])
def test_a_run_on_a_full_disk_names_the_cause_and_is_done_by_the_same_command(vectors, tmp_path, kilobytes):
    words = ["train", *vectors, "run_dir=run", "resume=auto"]
    first, second, err, left = on_a_small_disk(tmp_path, kilobytes, *words)
    assert second == 0, err
    assert left == []
    assert "Traceback" not in err
    if first:
        assert first == 4, err
        (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in said
        assert "MB are free" in said or "kB are free" in said


@pytest.mark.parametrize("kilobytes", [4, 16])
def test_encoding_on_a_full_disk_names_the_cause_and_is_done_by_the_same_command(vectors, tmp_path, kilobytes):
    run = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, "train", *vectors, f"run_dir={run}"]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    words = ["encode", f"run={run}", f"input={tmp_path / 'x.npy'}", "output=codes", "shard_size=100"]
    first, second, err, left = on_a_small_disk(tmp_path, kilobytes, *words)
    assert second == 0, err
    assert left == []
    assert "Traceback" not in err
    if first:
        assert first == 4, err
        assert "No space left on device" in err

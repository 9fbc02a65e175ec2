"""Commands in environments that are not friendly: no network, no room for temporary files, no home, odd clocks."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from deephash_cli.files import read_json

pytestmark = pytest.mark.slow
VERB = (sys.executable, "-c", "from deephash_cli.cli.main import main; main()")
TRAIN = (
    "train", "dataset=vectors", "dataset.vectors=x.npy", "dataset.labels=y.npy", "bits=12",
    "method=dpsh", "trainer=cpu", "trainer.max_epochs=2", "logger.mode=disabled", "run_dir=run",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with vectors of ten classes, and a run of them in an ordinary environment."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 10
    np.save(folder / "x.npy", (rng.normal(size=(10, 16))[labels] + rng.normal(size=(600, 16)) / 2).astype(np.float32))
    np.save(folder / "y.npy", labels)
    call(*VERB, *TRAIN, cwd=folder)
    return folder


def call(*command: str | Path, cwd: Path, **environment: str | None) -> str:
    """Run a command that must succeed without a word about an error, and return its output."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return result.stdout


def elsewhere(place: Path, tmp_path: Path) -> Path:
    """A copy of the data without the run."""
    for name in ("x.npy", "y.npy"):
        shutil.copy(place / name, tmp_path / name)
    return tmp_path


def assert_same_result(one: Path, other: Path) -> None:
    for name in ("codes/query.npy", "codes/database.npy", "metrics.json"):
        assert (one / "run" / name).read_bytes() == (other / "run" / name).read_bytes(), name


def can(*command: str) -> bool:
    """Whether a command for namespaces of one's own works on this machine."""
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can("unshare", "-n", "true"), reason="needs the right to make a network namespace")
def test_without_any_network(place, tmp_path):
    folder = elsewhere(place, tmp_path)
    offline = ("unshare", "-n", *VERB)
    call(*offline, *TRAIN, cwd=folder)
    assert_same_result(place, folder)
    new = np.load(folder / "x.npy")[:50]
    np.save(folder / "new.npy", new)
    commands = (
        ("eval", "run=run"),
        ("encode", "run=run", "input=new.npy", "output=codes"),
        ("search", "run=run", "query=new.npy", "picture=null", "output=found.json"),
        ("index", "run=run", "output=it.faiss"),
        ("export", "run=run", "to=safetensors", "output=exported"),
        ("runs", "."),
        ("verify", "."),
        ("compare", "."),
        ("report", ".", "-o", "report.html"),
        ("sync", ".", "--dry-run"),
        ("methods",),
    )
    for command in commands:
        call(*offline, *command, cwd=folder)


@pytest.mark.skipif(not can("unshare", "-m", "true"), reason="needs the right to mount a file system of its own")
def test_without_room_for_temporary_files(place, tmp_path):
    folder = elsewhere(place, tmp_path)
    (folder / "full").mkdir()
    script = 'mount -t tmpfs -o size=4k tmpfs full && head -c 4096 /dev/zero > full/x && exec "$@"'
    call(
        "unshare", "-m", "sh", "-c", script, "sh", *VERB, *TRAIN,
        cwd=folder, TMPDIR=str(folder / "full"), DEEPHASH_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert_same_result(place, folder)


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": None, "XDG_CACHE_HOME": None, "DEEPHASH_CACHE_DIR": None},
        {"HOME": "/dev/null", "XDG_CACHE_HOME": None, "DEEPHASH_CACHE_DIR": None},
        {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "C"},
        {"TZ": "nonsense/nowhere", "PYTHONHASHSEED": "7"},
        {"PYTHONOPTIMIZE": "1"},
    ],
)
def test_other_variables(place, tmp_path, environment):
    folder = elsewhere(place, tmp_path)
    call(*VERB, *TRAIN, cwd=folder, **environment)
    assert_same_result(place, folder)
    call(*VERB, "runs", ".", cwd=folder, **environment)


def test_a_clock_after_2038(place, tmp_path):
    folder = elsewhere(place, tmp_path)
    start = (
        "import time, datetime, types, deephash_cli.runs.folder as folder\n"
        "shift, now = 20 * 365 * 86400, time.time; time.time = lambda: now() + shift\n"
        "class Later(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None): return super().now(tz) + datetime.timedelta(seconds=shift)\n"
        "folder.datetime = types.SimpleNamespace(datetime=Later, UTC=datetime.UTC)\n"
        "from deephash_cli.cli.main import main; main()"
    )
    call(sys.executable, "-c", start, *TRAIN, cwd=folder)
    assert_same_result(place, folder)
    assert int(read_json(folder / "run" / "run.json")["started"][:4]) > 2038
    assert "run" in call(*VERB, "runs", ".", cwd=folder)


def test_a_run_that_was_moved(place, tmp_path):
    folder = elsewhere(place, tmp_path)
    shutil.copytree(place / "run", folder / "moved" / "here")
    np.save(folder / "new.npy", np.load(folder / "x.npy")[:20])
    commands = (
        ("eval", "run=moved/here"),
        ("report", "moved", "-o", "report.html"),
        ("compare", "moved"),
        ("verify", "moved"),
        ("search", "run=moved/here", "query=new.npy", "picture=null"),
        ("encode", "run=moved/here", "input=new.npy", "output=codes"),
        ("train", "resume=moved/here", "trainer.max_epochs=3"),
    )
    for command in commands:
        call(*VERB, *command, cwd=folder)
    assert read_json(folder / "moved" / "here" / "metrics.json")["epochs"] == 3


@pytest.fixture
def open_folder():
    """A folder that another user can reach: those of pytest are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.mark.skipif(
    not can(*NOBODY, sys.executable, "-c", "import deephash_cli"), reason="needs the right to become another user"
)
def test_another_user_without_a_home(place, open_folder):
    folder = elsewhere(place, open_folder)
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65534, 65534)
    call(*NOBODY, *VERB, *TRAIN, cwd=folder, HOME="/nonexistent", DEEPHASH_CACHE_DIR=None, XDG_CACHE_HOME=None)
    assert (folder / "run" / "codes").owner() == "nobody"
    for name in ("query.npy", "database.npy"):
        assert (folder / "run/codes" / name).read_bytes() == (place / "run/codes" / name).read_bytes()


def test_files_for_their_owner_alone(place, tmp_path):
    folder = elsewhere(place, tmp_path)
    call("sh", "-c", 'umask 077 && exec "$@"', "sh", *VERB, *TRAIN, cwd=folder)
    assert_same_result(place, folder)
    for path in (folder / "run").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

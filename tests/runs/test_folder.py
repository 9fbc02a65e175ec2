"""The run folder: names, locks, records, fingerprints of settings, and hidden secrets."""

import errno
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import digests
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deephash_cli import __version__, runs
from deephash_cli.errors import ArtifactError, ConfigError


def make(root: Path, fingerprint: str = "f", status: str | None = None, started: str | None = None) -> Path:
    """Make the folder of a run that was started, and that ended if ``status`` is given."""
    run = runs.create(root, "data-method-8-s0", None)
    run.start("seed: 0\n", fingerprint, ["seed=0"])
    if status:
        run.end(status)
    if started:
        digests.edit(run.path / runs.RECORD, started=started)
    run.close()
    return run.path


# Names


def test_fifty_runs_at_once_get_fifty_folders(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: runs.create(tmp_path / "runs", "name", None), range(50)))
    for run in made:
        run.close()
    assert len({run.path for run in made}) == 50
    assert all(re.fullmatch(r"name-\d{8}-\d{6}-[a-z2-7]{13}", run.path.name) for run in made), "64 random bits"


def test_a_name_that_is_taken_is_tried_again_and_a_folder_is_never_shared(tmp_path, monkeypatch):
    class Frozen(runs.folder.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 1, tzinfo=tz)

    monkeypatch.setattr(runs.folder.datetime, "datetime", Frozen)
    letters = iter([b"a" * 8, b"a" * 8, b"b" * 8])
    monkeypatch.setattr(runs.folder.secrets, "token_bytes", lambda _: next(letters))
    first, second = (runs.create(tmp_path, "name", None) for _ in range(2))
    assert first.path != second.path
    monkeypatch.setattr(runs.folder.secrets, "token_bytes", lambda _: b"a" * 8)
    with pytest.raises(ConfigError, match="cannot make a run folder"):
        runs.create(tmp_path, "name", None)
    first.close()
    second.close()


def test_a_folder_of_ones_own_is_made_with_its_parents(tmp_path):
    run = runs.create(tmp_path / "unused", "name", str(tmp_path / "a" / "b c" / "ü"))
    assert run.path.is_dir()
    assert not (tmp_path / "unused").exists()
    run.close()


def test_a_folder_of_ones_own_must_be_empty(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match=r"is not empty: choose another folder$"):
        runs.create(tmp_path / "unused", "name", str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    (tmp_path / runs.RECORD).write_text("{}")
    with pytest.raises(ConfigError, match="is not empty: choose another folder, or resume="):
        runs.create(tmp_path / "unused", "name", str(tmp_path))


@pytest.mark.parametrize("run_dir", [None, "file/below"])
def test_a_place_where_no_folder_can_be(tmp_path, run_dir):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make a run folder at "):
        runs.create(tmp_path / "file", "name", run_dir and str(tmp_path / run_dir))


def test_check_writable_makes_nothing(tmp_path):
    runs.check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not a folder; set runs=<folder>"):
        runs.check_writable(tmp_path / "file" / "below")


# The lock


def test_two_writers_of_one_folder(tmp_path):
    run = runs.create(tmp_path, "name", None)
    with pytest.raises(ConfigError, match=rf"is in use by process {os.getpid()} on .* since .*: wait for it to end"):
        runs.Run(run.path)
    run.close()
    runs.Run(run.path).close()


def test_the_lock_of_a_dead_process_is_no_lock(tmp_path):
    code = f"""
import os
from pathlib import Path
from deephash_cli import runs
run = runs.create(Path({str(tmp_path)!r}), "name", None)
print(run.path, flush=True)
os.kill(os.getpid(), 9)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    folder = Path(result.stdout.strip())
    assert (folder / ".lock").read_text().startswith("process ")
    runs.Run(folder).close()


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("deephash_cli.files.fcntl.flock", refuse)


def test_a_file_system_without_locks_names_the_setting_that_does_without(tmp_path, without_locks, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"\(No locks available\): on a file system without locks, set DEEPHASH_LOCKS"
    ):
        runs.create(tmp_path, "name", None)
    monkeypatch.setenv("DEEPHASH_LOCKS", "of")
    with pytest.raises(ConfigError, match="DEEPHASH_LOCKS must be on or off, got 'of'"):
        runs.create(tmp_path, "name", None)
    monkeypatch.setenv("DEEPHASH_LOCKS", "off")
    folder = make(tmp_path / "runs")
    assert runs.status(folder, runs.read_record(folder)) == "running", "this process is still there"
    record = {**runs.read_record(folder), "process": 2**30}
    assert runs.status(folder, record) == "interrupted"
    assert runs.status(folder, {**record, "host": "elsewhere"}) == "running"
    with runs.starting(tmp_path / "runs", "f"):
        assert runs.find(tmp_path / "runs", "f") == folder


# Folders that died before they were recorded


CONFIG = "method: dpsh\nbits: 48\nseed: 0\nmodule:\n  _target_: x\n"
# What a killed run may leave at each moment before run.json is there.
BEGINNINGS = {
    "nothing": {},
    "a lock": {".lock": "process 1 on vm since 2030"},
    "a lock without its text": {".lock": "", "checkpoints": None},
    "half of the settings": {
        ".lock": "process 1 on vm since 2030",
        "checkpoints": None,
        ".config.yaml.abcdefgh.tmp": "m",
    },
    "settings": {".lock": "process 1 on vm since 2030", "checkpoints": None, "config.yaml": CONFIG},
    "half a record": {".lock": "", "checkpoints": None, "config.yaml": CONFIG, ".run.json.abcdefgh.tmp": "{"},
}
# What is not ours alone, and must neither be removed nor written over.
FOREIGN = {
    "a note": {".lock": "", "checkpoints": None, "notes.txt": "mine"},
    "settings of another program": {".lock": "", "config.yaml": "mine: 1\n"},
    "settings without a lock": {"config.yaml": CONFIG},
    "a lock of another program": {".lock": "held", "config.yaml": CONFIG},
    "a checkpoint": {".lock": "", "checkpoints": None, "checkpoints/last.ckpt": "weights"},
    "a file called checkpoints": {".lock": "", "checkpoints": "mine"},
}


def lay_out(folder: Path, files: dict[str, str | None]) -> Path:
    """Write files into a new folder; None makes a folder."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).mkdir() if text is None else (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("files", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_folder_that_died_before_its_record_is_taken_up(tmp_path, files):
    folder = lay_out(tmp_path / "run", files)
    with pytest.raises(ArtifactError, match=rf"holds no run yet, .* run the command .* again, with run_dir={folder}"):
        runs.read_record(folder)
    run = runs.create(tmp_path / "unused", "name", str(folder))
    run.start(CONFIG, "f", [])
    run.close()
    assert runs.read_record(folder)["status"] == "running"
    assert sorted(file.name for file in folder.iterdir()) == [".lock", "checkpoints", "config.yaml", "run.json"]


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_what_somebody_put_into_a_folder_is_never_taken_for_a_beginning(tmp_path, files):
    folder = lay_out(tmp_path / "run", files)
    with pytest.raises(ConfigError, match=r"is not empty: choose another folder$"):
        runs.create(tmp_path / "unused", "name", str(folder))
    with pytest.raises(ArtifactError, match=r"is not a run folder: it has no run\.json"):
        runs.read_record(folder)
    assert {name: None if (folder / name).is_dir() else (folder / name).read_text() for name in files} == files


def test_an_unnamed_folder_that_died_before_its_record_is_used_again(tmp_path):
    name = "name-20300101-000000-abc"
    left = lay_out(tmp_path / name, BEGINNINGS["settings"])
    other = lay_out(tmp_path / "name-mine", FOREIGN["a note"])
    first, second = (runs.create(tmp_path, "name", None) for _ in range(2))
    assert first.path == left
    assert second.path not in (left, other), "nobody shares a folder that is in use"
    first.close()
    second.close()


@pytest.mark.parametrize("failing", ["mkdir", "open"])
def test_a_full_disk_is_the_cause_that_is_named_and_leaves_no_folder(tmp_path, monkeypatch, failing):
    real = getattr(Path, failing)

    def full(self, *arguments, **options):
        if self.name in ("run", ".lock") and self.parent.name in ("place", "run"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *arguments, **options)

    (tmp_path / "place").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, full)
        with pytest.raises(ArtifactError, match=r"place/run: No space left on device \(\d.* MB are free\)"):
            runs.create(tmp_path / "unused", "name", str(tmp_path / "place" / "run"))
    assert list((tmp_path / "place").iterdir()) == []
    runs.create(tmp_path / "unused", "name", str(tmp_path / "place" / "run")).close()


# The newest run


def test_the_newest_run_is_the_one_started_last_whatever_the_clock_says(tmp_path, monkeypatch):
    make(tmp_path / "runs", status="finished", started="2030-01-02T00:00:00+00:00")
    later = make(tmp_path / "runs", status="finished", started="2030-01-01T00:00:00+00:00")
    monkeypatch.setenv("DEEPHASH_OUTPUT_DIR", str(tmp_path / "runs"))
    assert runs.given_or_latest(None) == later
    assert runs.find(tmp_path / "runs", "f") == later


@pytest.mark.parametrize("damage", ["remove", "empty", "lower"])
def test_a_counter_that_is_missing_or_damaged_is_made_from_the_records(tmp_path, damage):
    numbers = [runs.read_record(make(tmp_path))["number"] for _ in range(3)]
    assert numbers == [1, 2, 3]
    counter = tmp_path / ".deephash" / "number.json"
    if damage == "remove":
        counter.unlink()
    else:
        counter.write_text("" if damage == "empty" else counter.read_text().replace("3", "1", 1))
    assert runs.read_record(make(tmp_path))["number"] == 4


def test_runs_of_earlier_versions_are_older_and_a_resumed_run_is_the_newest(tmp_path):
    old = make(tmp_path, status="failed", started="2031-01-01T00:00:00+00:00")
    record = runs.read_record(old)
    (old / runs.RECORD).write_text(json.dumps({key: value for key, value in record.items() if key != "number"}))
    new = make(tmp_path, status="failed", started="2030-01-01T00:00:00+00:00")
    assert runs.find(tmp_path, "f") == new
    run = runs.Run(old)
    run.start(CONFIG, "f", [])
    run.close()
    assert runs.find(tmp_path, "f") == old


@pytest.mark.parametrize("number", [True, -1, "7", 1.5, None, [1]])
def test_a_number_that_is_none_counts_as_none(number):
    assert runs.age({"number": number, "started": "x"}) == (0, "x")


# Records


def test_a_record_tells_how_a_run_went(tmp_path):
    folder = make(tmp_path)
    record = runs.read_record(folder)
    assert record["status"] == "running"
    assert record["process"] == os.getpid()
    assert record["overrides"] == ["seed=0"]
    assert record["versions"]["deephash"] == __version__
    assert (folder / runs.CONFIG).read_text() == "seed: 0\n"

    run = runs.Run(folder)
    assert run.start("seed: 0\n", "f", ["seed=0"]) == record["id"], "a resumed run keeps its id"
    run.end("failed", "why")
    run.close()
    record = runs.read_record(folder)
    assert (record["status"], record["error"]) == ("failed", "why")
    assert record["started"] <= record["ended"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    folder = make(tmp_path)
    for name in (".run.json.abcd_123.tmp", "checkpoints/.last.ckpt.abcdefgh.tmp", ".notes.tmp"):
        (folder / name).write_text("half")
    run = runs.Run(folder)
    run.start("seed: 0\n", "f", [])
    run.close()
    assert [file.name for file in folder.rglob("*.tmp")] == [".notes.tmp"], "somebody else's file stays"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"status": "finished"}', "not json",
     '{"status": 1, "started": 2, "fingerprint": 3, "overrides": 4}',
     '{"status": "finished", "started": "x", "fingerprint": "f", "overrides": [1]}', "\x00", "[" * 10000],
)  # fmt: skip
def test_a_record_that_is_none_is_refused_and_passed_over(tmp_path, content):
    good = make(tmp_path, status="finished")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / runs.RECORD).write_text(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError):
        runs.read_record(tmp_path / "bad")
    assert [path for path, _ in runs.scan(tmp_path)] == [good]
    assert runs.find(tmp_path, "f") == good


def test_find_prefers_a_finished_run_then_the_newest(tmp_path):
    assert runs.find(tmp_path / "nowhere", "f") is None
    make(tmp_path, "other", "finished")
    assert runs.find(tmp_path, "f") is None
    old = make(tmp_path, status="interrupted", started="2030-01-01T00:00:00+00:00")
    assert runs.find(tmp_path, "f") == old
    new = make(tmp_path, status="failed", started="2030-01-02T00:00:00+00:00")
    assert runs.find(tmp_path, "f") == new
    done = make(tmp_path, status="finished", started="2029-01-01T00:00:00+00:00")
    assert runs.find(tmp_path, "f") == done


# What makes two runs the same

SETTINGS = {
    "seed": 0,
    "bits": 48,
    "runs": "runs",
    "run_dir": None,
    "resume": "none",
    "group": None,
    "logger": {"mode": "auto"},
    "trainer": {"max_epochs": 3, "max_time": None},
    "loader": {"batch_size": 8, "num_workers": 0, "pin_memory": False},
    "checkpoint": {"every_n_epochs": 1},
    "metrics": {"ks": [1, 5]},
    "optimizer": {"lr": 0.1},
}


def changed(name: str, value: object) -> dict:
    copy = json.loads(json.dumps(SETTINGS))
    *parents, last = name.split(".")
    node = copy
    for parent in parents:
        node = node[parent]
    node[last] = value
    return copy


@pytest.mark.parametrize("name", list(runs.flatten(SETTINGS)))
def test_a_fingerprint_changes_with_every_setting_that_matters(name):
    same = any(name == key or name.startswith(f"{key}.") for key in runs.INCIDENTAL)
    other = changed(name, "something else")
    assert (runs.fingerprint(other) == runs.fingerprint(SETTINGS)) == same
    assert bool(runs.forbidden_changes(SETTINGS, other)) != any(
        name == key or name.startswith(f"{key}.") for key in runs.RESUMABLE
    )


def test_a_fingerprint_does_not_depend_on_the_order_but_on_the_version(monkeypatch):
    before = runs.fingerprint(SETTINGS)
    assert runs.fingerprint(dict(reversed(SETTINGS.items()))) == before
    assert re.fullmatch("[0-9a-f]{16}", before)
    monkeypatch.setattr("deephash_cli.runs.settings.__version__", "9.9")
    assert runs.fingerprint(SETTINGS) != before


def test_settings_that_later_versions_added_leave_the_fingerprints_of_earlier_runs_as_they_were():
    added = {"trial": None, "bad_images": "stop", "fit_rows": 500_000, "nested": []}
    assert runs.fingerprint({**SETTINGS, **added}) == runs.fingerprint(SETTINGS)
    strict = changed("metrics.similar", "all")
    assert runs.fingerprint(changed("metrics.similar", "one")) == runs.fingerprint(SETTINGS) != runs.fingerprint(strict)
    assert runs.forbidden_changes(SETTINGS, strict)  # it chooses the best epoch
    assert runs.forbidden_changes(SETTINGS, {**SETTINGS, **added}) == []
    assert runs.fingerprint({**SETTINGS, **added, "trial": 300}) != runs.fingerprint(SETTINGS)


def test_a_setting_whose_name_only_begins_alike_matters():
    assert runs.fingerprint({**SETTINGS, "runs_of_luck": 1}) != runs.fingerprint(SETTINGS)


def test_forbidden_changes_are_named_with_both_values():
    assert runs.forbidden_changes(SETTINGS, changed("optimizer.lr", 0.2)) == ["optimizer.lr: 0.1 -> 0.2"]
    assert runs.forbidden_changes(SETTINGS, {**SETTINGS, "new": 1}) == ["new: None -> 1"]
    assert runs.forbidden_changes(SETTINGS, {**SETTINGS, "nested": [4]}) == ["nested: [] -> [4]"]
    assert runs.forbidden_changes(SETTINGS, changed("trainer.max_epochs", 99)) == []
    for precision, changes in (("fp32", []), ("bf16", ["features.precision: fp32 -> bf16"])):  # an earlier run has none
        assert runs.forbidden_changes(SETTINGS, {**SETTINGS, "features": {"precision": precision}}) == changes


NESTED = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), NESTED, max_size=4))
def test_flatten_loses_nothing(settings):
    rebuilt: dict = {}
    for name, value in runs.flatten(settings).items():
        *parents, last = name.split(".")
        node = rebuilt
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    assert rebuilt == settings
    assert runs.forbidden_changes(settings, settings) == []


# Secrets


def test_secrets_are_hidden_by_the_name_of_a_setting():
    hidden = runs.redact(
        {"api_key": "k", "a": {"Password": "p", "b": 1}, "token": "", "list": [{"secret": "s"}], "c": "x"}
    )
    assert hidden == {
        "api_key": "<hidden>",
        "a": {"Password": "<hidden>", "b": 1},
        "token": "",
        "list": [{"secret": "<hidden>"}],
        "c": "x",
    }


def test_secrets_of_the_environment_are_hidden_wherever_they_got_to(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    monkeypatch.setenv("MY_KEYS", "short")
    monkeypatch.setenv("MY_NAME", "somebody-else")
    settings = {
        "project": "hunter2hunter2",
        "url": "https://u:hunter2hunter2@host",
        "tags": ["hunter2hunter2", "short"],
    }
    assert runs.redact({**settings, "name": "somebody-else"}) == {
        "project": "<hidden>",
        "url": "<hidden>",
        "tags": ["<hidden>", "short"],
        "name": "somebody-else",
    }


def test_secrets_in_what_was_typed_are_hidden(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    run = runs.create(tmp_path, "name", None)
    run.start("seed: 0\n", "f", ["+logger.api_key=abc", "run_dir=hunter2hunter2", "seed=0"])
    run.close()
    assert runs.read_record(run.path)["overrides"] == ["+logger.api_key=<hidden>", "run_dir=<hidden>", "seed=0"]

"""Loggers: metrics.jsonl is the record, dashboards get copies, and a broken dashboard never ends a run."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import QUICK, write_photos
from faults import Fault
from wandb_files import files_with, inspect

from deephash_cli import runs
from deephash_cli.cli import main as cli
from deephash_cli.errors import ArtifactError
from deephash_cli.runs import wandb as dashboards
from deephash_cli.training import loggers as tracking
from deephash_cli.training.loggers import RecordLogger

SECRET = "marker-5f3a9c1e"  # it is in the environment of the runs of ``sweep`` and must not be in any file
WITHOUT_LOGGER = [override for override in QUICK if not override.startswith("logger=")]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / runs.STEPS).read_text().splitlines()]


def the_run() -> Path:
    (folder,) = (path for path, _ in runs.scan(Path("runs")))
    return folder


@pytest.fixture
def command(tmp_path):
    return ["dataset=image_folder", f"dataset.root={write_photos(tmp_path / 'photos')}", "bits=8", *WITHOUT_LOGGER]


# The record


def test_the_record_has_every_epoch_and_every_number(deephash, command):
    result = deephash("train", *command, "logger=none", "loader.batch_size=16", "validation.queries=6")
    assert result.code == 0, result
    record = lines(the_run())
    trained = [line for line in record if "train/loss" in line]
    steps = -(-(54 - 6) // 16)
    assert [line["step"] for line in trained] == [steps, 2 * steps]
    for line in trained:
        parts = {"train/loss", "train/similarity", "train/quantization", "lr/new_layers", "lr/backbone"}
        assert parts | {"time/epoch_seconds", "time/images_per_second", "epoch", "time"} <= line.keys()
        assert line["train/loss"] == pytest.approx(line["train/similarity"] + line["train/quantization"], rel=1e-5)
    assert len([line for line in record if "validation/map" in line]) == 2
    assert not (the_run() / "wandb").exists()


def test_a_record_is_cut_back_to_its_checkpoint_and_continued(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "x": 1.0}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(whole) + '{"step": 3, "x"')
    tracking.RecordLogger(file, 2)
    assert file.read_text() == "".join(whole[:2])
    logger = tracking.RecordLogger(file, 2)
    logger.log_metrics({"x": 2}, step=2)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("broken", ["", "\n", "[]", "1", "null", '"step"', "{}", '{"step"', "\x00"])
def test_broken_lines_of_a_record_are_dropped(tmp_path, broken):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n' + broken + "\n")
    tracking.RecordLogger(file, 5)
    assert file.read_text() == '{"step": 1}\n'


# W&B


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of three jobs in one process, logged with W&B without a key; the last job fails."""
    place = tmp_path_factory.mktemp("sweep")
    photos = write_photos(place / "photos")
    (place / "home").mkdir()
    settings = ["dataset=image_folder", f"dataset.root={photos}", *WITHOUT_LOGGER]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        patch.setenv("HOME", str(place / "home"))
        patch.setenv("MY_SECRET_TOKEN", SECRET)
        secret = ["+augment.api_key=abcdef-by-name", "++augment.note=${oc.env:MY_SECRET_TOKEN}", "augment=none"]
        assert cli.run(["train", "-m", "bits=8", "optimizer.lr=0.001,0.002,1e30", *settings, *secret]) == 6
    return place


def by_rate(place: Path) -> dict[float, Path]:
    return {
        float(yaml.safe_load((folder / runs.CONFIG).read_text())["optimizer"]["lr"]): folder
        for folder, _ in runs.scan(place / "runs")
    }


def test_each_job_has_one_run_of_its_own_inside_its_folder(sweep):
    folders = by_rate(sweep)
    assert len(folders) == 3
    names, groups = set(), set()
    for folder in folders.values():
        (offline,) = (folder / "wandb").glob("offline-run-*")
        names.add(offline.name)
        summary = json.loads(inspect(folder, "--summary"))
        assert summary["name"] == folder.name
        assert summary["run_id"] == runs.read_record(folder)["id"]
        assert summary["project"] == "deephash"
        groups.add(summary["config"]["group"])
    assert len(names) == 3
    assert len(groups) == 1


def test_nothing_is_written_outside_the_run_folders(sweep):
    assert list((sweep / "home").iterdir()) == []
    assert {entry.name for entry in sweep.iterdir()} <= {"photos", "home", "runs", "cache"}


def test_the_summary_has_the_metrics_and_the_config_the_settings(sweep):
    folder = by_rate(sweep)[0.001]
    summary = json.loads(inspect(folder, "--summary"))
    metrics = json.loads((folder / runs.METRICS).read_text())
    assert summary["state"] == "finished"
    assert summary["exit_code"] == 0
    for name in ("map", "map_stable", "precision_within_2", "unique_code_ratio", "queries"):
        assert summary["summary"][f"eval/{name}"] == metrics[name]
    assert summary["config"]["bits"] == 8
    assert summary["config"]["optimizer"]["lr"] == 0.001
    odd = [name for name in summary["summary"] if not re.fullmatch(r"[a-z_]+(/[a-z0-9_]+)?", name)]
    assert odd == [], "names that W&B cannot sort and plot"


def test_the_curves_have_a_row_for_every_k(sweep):
    folder = by_rate(sweep)[0.001]
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    metrics = json.loads((folder / runs.METRICS).read_text())
    curve = {str(item["eval/k"]): item for item in history if "eval/k" in item}
    assert list(curve) == list(metrics["precision_at_k"])
    for k, item in curve.items():
        assert item["eval/precision_at_k"] == pytest.approx(metrics["precision_at_k"][k])
        assert item["eval/recall_at_k"] == pytest.approx(metrics["recall_at_k"][k])
    assert len([item for item in history if "train/loss" in item]) == 2
    defined = [record["metric"] for record in records if record["type"] == "metric"]
    steps = {metric.get("name") or metric["glob_name"]: metric.get("step_metric") for metric in defined}
    assert steps["eval/precision_at_k"] == steps["eval/recall_at_k"] == "eval/k"
    assert steps["eval/map_by_bits"] == "eval/bits"
    assert steps["train/*"] == "trainer/global_step"
    (point,) = (item for item in history if "eval/map_by_bits" in item)
    assert (point["eval/bits"], point["eval/map_by_bits"]) == (8, metrics["map"])


def test_a_job_that_failed_is_marked_so(sweep):
    folder = by_rate(sweep)[1e30]
    assert runs.read_record(folder)["status"] == "failed"
    summary = json.loads(inspect(folder, "--summary"))
    assert summary["exit_code"] != 0
    assert summary["state"] != "finished"


def test_secrets_reach_no_file(sweep):
    assert files_with(SECRET, sweep) == []
    assert files_with("abcdef-by-name", sweep) == []
    assert files_with("<hidden>", sweep / "runs"), "the settings are there, without their values"


def test_a_run_with_wandb_disabled(deephash, command, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    result = deephash("train", *command, "logger.mode=online")
    assert (result.code, result.surprises) == (0, "")
    assert not list(Path().rglob("*.wandb"))


@pytest.mark.parametrize("broken", ["import", "init"])
def test_a_wandb_that_does_not_work_costs_a_warning(deephash, command, monkeypatch, broken):
    if broken == "import":
        monkeypatch.setitem(sys.modules, "wandb", None)
    else:
        import wandb

        def init(**_):
            raise RuntimeError("no wandb today")

        monkeypatch.setattr(wandb, "init", init)
    result = deephash("train", *command)
    assert result.code == 0, result
    assert result.surprises.splitlines()[-1].startswith("warning: this run is logged into its own folder only: ")
    assert "Traceback" not in result.err
    assert (the_run() / runs.METRICS).is_file()
    assert runs.read_record(the_run())["status"] == "finished"


def test_a_wandb_that_breaks_at_the_end_costs_a_warning(deephash, command, monkeypatch):
    def broken(self):
        raise RuntimeError("the service went away")

    monkeypatch.setattr(dashboards.Session, "log_results", broken)
    result = deephash("train", *command)
    assert result.code == 0, result
    assert "warning: the dashboard did not get everything: the service went away" in result.err
    assert runs.read_record(the_run())["status"] == "finished"


def test_a_key_is_looked_for_where_wandb_keeps_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert not dashboards.has_key()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 0123\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert dashboards.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not dashboards.has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert dashboards.has_key()


def test_a_netrc_that_cannot_be_read_is_no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("what is this\n")
    assert not dashboards.has_key()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["http://127.0.0.1:9", "silent"])
def test_a_server_that_does_not_answer_costs_a_minute_at_most(command, tmp_path, server):
    """Port 9 refuses the connection; the silent server accepts it and never answers."""
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}" if server == "silent" else server
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
        code = f"import sys; from deephash_cli.cli import main as cli; sys.exit(cli.run(['train', *{command!r}]))"
        started = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment
        )
        seconds = time.monotonic() - started
    assert result.returncode == 0, result
    assert "warning: W&B cannot be used online" in result.stderr
    assert seconds < 90
    assert runs.read_record(the_run())["status"] == "finished"
    assert files_with("0" * 40, Path("runs")) == []


# The other loggers


def test_csv(deephash, command):
    assert deephash("train", *command, "logger=csv").code == 0
    text = (the_run() / "csv" / "metrics.csv").read_text()
    metrics = json.loads((the_run() / runs.METRICS).read_text())
    assert "train/loss" in text.splitlines()[0]
    assert "eval/map" in text.splitlines()[0]
    assert repr(metrics["map"]) in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(deephash, command):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert deephash("train", *command, "logger=tensorboard").code == 0
    events = event_accumulator.EventAccumulator(str(the_run() / "tensorboard"))
    events.Reload()
    assert {"train/loss", "eval/map"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss")) == 2
    metrics = json.loads((the_run() / runs.METRICS).read_text())
    assert events.Scalars("eval/map")[0].value == pytest.approx(metrics["map"], rel=1e-6)


def test_a_logger_that_fails_costs_a_warning(deephash, command, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_fabric.loggers.csv_logs._ExperimentWriter.save", full)
    result = deephash("train", *command, "logger=csv")
    assert result.code == 0, result
    warned = "warning: the dashboard failed, and the run continues without it: [Errno 28] No space left on device"
    assert result.err.count(warned) == 1
    assert runs.read_record(the_run())["status"] == "finished"


def test_a_full_disk_ends_the_record_of_a_run_in_a_sentence(tmp_path, monkeypatch):
    record = RecordLogger(tmp_path / "metrics.jsonl", 0)
    record.log_metrics({"loss": 1.0}, 0)
    whole = record.file.read_bytes()
    with (
        Fault("write", tmp_path, 1).armed(),
        pytest.raises(ArtifactError, match=r"metrics\.jsonl: No space left on dev"),
    ):
        record.log_metrics({"loss": 0.5}, 1)
    assert record.file.read_bytes() == whole, "no half line stays"
    record.log_metrics({"loss": 0.5}, 1)
    assert len(record.file.read_text().splitlines()) == 2


def test_a_record_with_bytes_that_are_no_text_is_continued(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 1}\n{"step": 2, "l\xffss": 1\n')
    RecordLogger(file, 5)
    assert file.read_text() == '{"step": 1, "loss": 1}\n'


def test_the_logger_does_not_change_the_result(deephash, command):
    for logger in ("none", "csv"):
        assert deephash("train", *command, f"logger={logger}", f"run_dir={logger}").code == 0
    assert Path("none", runs.METRICS).read_bytes() == Path("csv", runs.METRICS).read_bytes()
    assert "wandb" not in {entry.name for entry in Path("csv").iterdir()}

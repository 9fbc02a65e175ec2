"""``deephash sync``: offline logs of W&B are uploaded; a lost log is made again, the same, from the run folder."""

import json
import os
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import digests
import pytest
import yaml
from conftest import QUICK, write_photos
from PIL import Image
from wandb_files import files_with, inspect

from deephash_cli import choices, runs
from deephash_cli.cli import main as cli
from deephash_cli.commands import sync
from deephash_cli.errors import Stopped
from deephash_cli.files import write_json
from deephash_cli.retrieval import scoring
from deephash_cli.runs import wandb as dashboards

KEY = "0123456789" * 4
SECRET = "marker-77aa20c4"
CLASSES = ("<script>alert(1)<", "=cmd()", "皮包 ü")
TILE, K = 16, 3


# A W&B server


class Server(ThreadingHTTPServer):
    """The part of W&B's server that a run needs; ``behaviour`` says whether it accepts runs or fails in some way."""

    def __init__(self, behaviour: str = "accept"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour
        self.requests: list[tuple[str, bytes]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, operation: str) -> list[dict]:
        """Return the variables of each request for an operation."""
        questions = [json.loads(body) for path, body in self.requests if path == "/graphql" and body]
        return [question["variables"] for question in questions if question.get("operationName") == operation]

    def handle_error(self, request, client_address):
        """Ignore clients that have closed their connection."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        """Print no log messages."""

    def do_GET(self):
        self._answer(200, {})

    def do_PUT(self):
        self._body()
        self._answer(200, {})

    def do_POST(self):
        body = self._body()
        if self.server.behaviour == "stalls" and not re.search(b"UpsertBucket|RunResumeStatus", body):
            self.server.closing.wait(60)
        elif self.path != "/graphql":
            self._answer(200, {"exitcode": None, "limits": {}})
        elif self.server.behaviour == "stuck":
            self.server.closing.wait(60)
        elif self.server.behaviour == "refuse":
            self._answer(401, {"errors": [{"message": "invalid key"}]})
        else:
            question = json.loads(body)
            data = self._data(question.get("operationName"), question.get("variables") or {})
            self._answer(200, {"data": data} if data else {"data": {}, "errors": [{"message": "what is that"}]})

    def _data(self, operation, variables):
        home = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
        run = {"id": "r", "name": variables.get("name"), "displayName": "", "config": "{}", "historyLineCount": 0}
        files = [{"name": name, "uploadUrl": f"{self.server.url}/put/{name}"} for name in variables.get("files", [])]
        return {
            "RunResumeStatus": {"model": {**home, "bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": {**run, "project": home}, "inserted": True}},
            "CreateArtifact": {"createArtifact": {"artifact": artifact}},
            "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}},
            "Viewer": {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}},
        }.get(operation)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append((self.path, body))
        return body

    def _answer(self, code, content):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def serve(monkeypatch):
    """Start a server that this process uses as W&B's server, and set a key for it."""
    servers = []

    def start(behaviour: str = "accept") -> Server:
        server = Server(behaviour)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        return server

    yield start
    for server in servers:
        server.closing.set()
        server.shutdown()
        server.server_close()


# A run that W&B has logged offline


def write_sheet(folder: Path) -> None:
    """Retrieved images of two queries, as a training leaves them in the run folder."""
    found = [{"id": f"found/{i}", "labels": [CLASSES[1]], "distance": i, "relevant": i == 1} for i in range(K)]
    query = {"id": "photo/1", "labels": [CLASSES[0], CLASSES[2]], "average_precision": 0.25, "results": found}
    queries = [{**query, "kind": "hardest"}, {**query, "id": "photo/2", "kind": "drawn", "results": found[:1]}]
    write_json(folder / runs.RETRIEVAL, {"tile": TILE, "k": K, "ties": "in database order", "queries": queries})
    sheet = Image.new("RGB", (TILE * (K + 1), TILE * 2), (90, 90, 90))
    sheet.save(folder / runs.RETRIEVAL_IMAGE, lossless=True)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    place = tmp_path_factory.mktemp("logged")
    photos = write_photos(place / "photos", CLASSES)
    conclude = dashboards.Session.log_results

    def log_results(self):
        write_sheet(self._folder)
        conclude(self)

    quick = [setting for setting in QUICK if not setting.startswith("logger=")]
    data = ["dataset=image_folder", f"dataset.root={photos}", "dataset.unseen=0.3"]
    settings = [*data, *quick, "bits=8", "nested=[4]", "group=ours"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DEEPHASH_CACHE_DIR", str(place / "cache"))
        patch.setenv("HOME", str(place))
        patch.setattr(dashboards.Session, "log_results", log_results)
        before = variables()
        assert cli.run(["train", *settings, "logger.tags=[mine]", f"run_dir={place / 'run'}"]) == 0
        assert variables() == before, "environment variables of one run would reach the next"
    return place / "run"


@pytest.fixture
def run(logged):
    """Copy the logged run; its W&B status names the copy's folder, so it does not look moved."""
    folder = Path(shutil.copytree(logged, Path("runs") / "run", symlinks=True))
    state = folder / dashboards.FOLDER / dashboards.STATUS
    write_json(state, {**json.loads(state.read_text()), "folder": str(folder.absolute())})
    return folder


def variables() -> dict[str, str]:
    """Return the environment variables of W&B."""
    return {name: value for name, value in os.environ.items() if "WANDB" in name}


def change_record(folder: Path, **changes) -> None:
    write_json(folder / runs.RECORD, {**runs.read_record(folder), **changes})


def change_settings(folder: Path, **changes) -> None:
    settings = yaml.safe_load((folder / runs.CONFIG).read_text())
    (folder / runs.CONFIG).write_text(yaml.safe_dump({**settings, **changes}))
    digests.renew(folder)


def summary(folder: Path) -> dict:
    return json.loads(inspect(folder, "--summary"))


def history(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def without_times(item):
    """Return an item without times and without random ids of W&B."""
    if isinstance(item, dict):
        chance = ("_timestamp", "_runtime", "artifact_path", "_latest_artifact_path")
        return {key: without_times(value) for key, value in item.items() if not key.endswith(chance)}
    return [without_times(value) for value in item] if isinstance(item, list) else item


def media(folder: Path) -> dict[str, bytes]:
    (place,) = folder.glob("wandb/offline-run-*/files/media")
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def table(folder: Path, name: str) -> dict:
    (content,) = (content for file, content in media(folder).items() if file.startswith(f"table/eval/{name}_"))
    return json.loads(content)


def tree(folder: Path) -> dict[str, int]:
    return {file.as_posix(): file.lstat().st_mtime_ns for file in folder.rglob("*")}


# What is logged


def test_tables_and_charts_have_what_the_metrics_have(logged):
    metrics = json.loads((logged / runs.METRICS).read_text())
    for name in ("pr_by_rank", "pr_by_radius"):
        step = name.removeprefix("pr_by_")
        content = table(logged, f"{name}_table")
        assert content["columns"] == [step, "precision", "recall"]
        columns = [metrics[name][column] for column in content["columns"]]
        assert content["data"] == [list(row) for row in zip(*columns, strict=True)]
    at_k = table(logged, "at_k_table")
    assert [str(row[0]) for row in at_k["data"]] == list(metrics["precision_at_k"])
    distances = table(logged, "distances_table")["data"]
    for kind, key in (("relevant", "share a label"), ("other", "share no label")):
        assert [row[2] for row in distances if row[1] == key] == metrics["distances"][kind]
    assert [row[1] for row in table(logged, "bit_balance_table")["data"]] == metrics["bit_balance"]["ones"]
    row = dict(zip(*(lambda content: (content["columns"], content["data"][0]))(table(logged, "results")), strict=True))
    assert row == {
        "method": "dpsh", "bits": 8, "dataset": metrics["dataset"], "split": metrics["split"]["name"],
        "split_sha256": metrics["split"]["sha256"], "seed": 0, "map": metrics["map"],
        "precision_at_100": metrics["precision_at_k"]["100"],
    }  # fmt: skip
    charts = json.dumps(json.loads(inspect(logged, "--summary"))) + inspect(logged)
    for name in ("pr_by_rank", "pr_by_radius", "at_k", "distances", "bit_balance"):
        assert f"eval/{name}" in charts


def test_the_summary_has_numbers_tags_and_group(logged):
    found = summary(logged)
    metrics = json.loads((logged / runs.METRICS).read_text())
    numbers = found["summary"]
    assert numbers["eval/precision_at_100"] == metrics["precision_at_k"]["100"]
    assert numbers["eval/recall_at_10"] == metrics["recall_at_k"]["10"]
    assert numbers["eval/bit_balance_mean_deviation"] == metrics["bit_balance"]["mean_deviation"]
    assert numbers["eval/bit_correlation_max_absolute"] == metrics["bit_correlation"]["max_absolute"]
    assert [numbers["eval/map_low"], numbers["eval/map_high"]] == metrics["confidence"]["map"]
    nested = scoring.numbers(metrics["nested"]["4"])
    assert len(nested) > 50
    assert {name: numbers[f"eval/{name}_4_bits"] for name in nested} == nested
    for whole, ending in ((metrics, ""), (metrics["nested"]["4"], "_4_bits")):
        for protocol, part in whole["by_classes"].items():
            assert numbers[f"eval/{protocol}/map{ending}"] == part["map"]
            assert numbers[f"eval/{protocol}/precision_at_1{ending}"] == part["precision_at_k"]["1"]
    history = [
        record["history"]["item"] for record in map(json.loads, inspect(logged).splitlines()) if "history" in record
    ]
    points = {item["eval/bits"]: item["eval/map_by_bits"] for item in history if "eval/map_by_bits" in item}
    assert points == {4: metrics["nested"]["4"]["map"], 8: metrics["map"]}
    assert found["tags"] == ["image_folder", "dpsh", "8 bits", "mine"]
    assert found["config"]["group"] == "ours"
    assert "ours" in inspect(logged)


def test_names_of_classes_are_data(logged):
    names = [row[0] for row in table(logged, "per_class")["data"]]
    assert sorted(names) == sorted(CLASSES)
    assert sum(row[2] for row in table(logged, "per_class")["data"]) == 6


def test_retrieved_images_are_framed_and_named(logged):
    (item,) = (item for item in history(logged) if "eval/retrieval.captions" in item)
    (place,) = logged.glob("wandb/offline-run-*/files")
    assert len(item["eval/retrieval.filenames"]) == 2
    with Image.open(place / item["eval/retrieval.filenames"][0]) as image:
        assert image.size == (TILE * (K + 1), TILE)
        corners = [image.convert("RGB").getpixel((column * TILE, 0)) for column in range(K + 1)]
    right, wrong = dashboards._FRAMES[True], dashboards._FRAMES[False]
    assert corners == [(90, 90, 90), wrong, right, wrong]
    assert item["eval/retrieval.captions"][0] == (
        f"photo/1 ({CLASSES[0]}, {CLASSES[2]}), hardest: average precision 0.2500; "
        f"found: {'; '.join(f'{CLASSES[1]} at {i}' for i in range(K))}"
    )


def test_codes_are_an_artifact(logged):
    (line,) = (line for line in inspect(logged).splitlines() if f'"codes-{runs.read_record(logged)["id"]}"' in line)
    for name in ("query.npy", "database_labels.npy", "database_ids.txt", "manifest.json", runs.METRICS):
        assert f'"{name}"' in line


def test_what_became_of_it_is_in_the_run_folder(logged):
    assert dashboards.status(logged) == {
        "status": "offline", "reason": None, "whole": True, "folder": str(logged),
    }  # fmt: skip


# Logged again


@pytest.mark.parametrize("lost", [True, False])
def test_a_run_that_is_logged_again_is_the_same(deephash, monkeypatch, logged, run, lost):
    if lost:
        shutil.rmtree(run / dashboards.FOLDER)
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = variables()
    result = deephash("sync", "runs", *([] if lost else ["--rebuild"]))
    assert (result.code, result.err) == (0, "")
    assert result.out == "rebuilt: runs/run: WANDB_MODE keeps it offline\nrebuilt 1\n"
    assert variables() == before
    live, again = summary(logged), summary(run)
    for key in ("config", "tags", "run_id", "project", "entity", "exit_code", "state", "step"):
        assert again[key] == live[key], key
    assert without_times(again["summary"]) == without_times(live["summary"])
    assert without_times(history(run)) == without_times(history(logged))
    assert media(run) == media(logged)
    assert len(list((run / dashboards.FOLDER).glob("replaced-offline-run-*"))) == (not lost)
    assert deephash("sync", "--dry-run", "runs").out.startswith("would upload: runs/run: offline-run-")


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("interrupted", 130)])
def test_a_run_that_did_not_finish_is_marked_so(deephash, monkeypatch, run, status, code):
    change_record(run, status=status)
    (run / runs.METRICS).unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert deephash("sync", "--rebuild", "runs").code == 0
    assert summary(run)["exit_code"] == code
    assert [item for item in history(run) if "train/loss" in item]


def test_what_is_broken_is_left_out_and_the_rest_is_there(deephash, monkeypatch, run):
    (run / runs.RETRIEVAL_IMAGE).write_bytes(b"RIFF, but no picture")
    monkeypatch.setattr(dashboards, "CODES_LIMIT", 10)
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = deephash("sync", "--rebuild", "runs")
    assert result.code == 0
    assert result.err.startswith("warning: W&B did not get the retrieved images: ")
    numbers = summary(run)["summary"]
    assert "stay in the run folder" in numbers["eval/codes_left_out"]
    assert "eval/map" in numbers
    assert "eval/per_class" in numbers


def test_the_default_project_is_that_of_the_settings():
    assert yaml.safe_load((choices.CONF_DIR / "logger" / "wandb.yaml").read_text())["project"] == sync.PROJECT
    assert yaml.safe_load((choices.CONF_DIR / "logger" / "wandb.yaml").read_text())["_target_"] == sync.LOGGERS[0]


# What sync would do


def test_a_dry_run_needs_no_key_and_changes_nothing(deephash, run):
    before = tree(run)
    result = deephash("sync", "runs", "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "would upload 1"
    shutil.rmtree(run / dashboards.FOLDER)
    assert "would upload: runs/run: logged again from the run folder, because W&B's log is missing" in (
        deephash("sync", "--dry-run", "runs").out
    )
    assert tree(run) == {name: when for name, when in before.items() if "/wandb" not in name} | {
        name: when for name, when in tree(run).items() if name == "runs/run/wandb"
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"whole": False}, "would upload: runs/run: logged again from the run folder, because W&B's log is incomplete"),
        ({"folder": "\0"}, "would upload: runs/run: logged again from the run folder, because the folder was moved"),
        ({"folder": "/else"}, "would upload: runs/run: logged again from the run folder, because the folder was moved"),
        ({"status": "online"}, "nothing to upload: runs/run: it was logged online"),
    ],
)
def test_what_a_run_needs_is_seen_from_its_folder(deephash, run, change, said):
    state = run / dashboards.FOLDER / dashboards.STATUS
    write_json(state, {**json.loads(state.read_text()), **change})
    assert deephash("sync", "--dry-run", "runs").out.startswith(said)


def test_a_run_was_not_moved_if_only_the_current_folder_is_another(deephash, run, monkeypatch):
    Path("below").mkdir()
    Path("linked").symlink_to("runs")
    for path in ("linked", "below/../runs"):
        assert "offline-run-" in deephash("sync", "--dry-run", path).out.splitlines()[0]
    monkeypatch.chdir("below")
    assert "offline-run-" in deephash("sync", "--dry-run", "../runs").out.splitlines()[0]


def test_a_run_that_was_not_logged_to_wandb_stays_at_home(deephash, run):
    shutil.rmtree(run / dashboards.FOLDER)
    change_settings(run, logger=None)
    result = deephash("sync", "runs")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "nothing to upload: runs/run: it was not logged to W&B; --rebuild logs it now\nnothing to upload 1\n"
    )


def test_a_run_that_is_written_to_is_left_alone(deephash, run):
    change_record(run, status="running")
    held = runs.Run(run)
    assert deephash("sync", "runs").out.startswith("nothing to upload: runs/run: it is still running\n")
    held.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: run folder; see deephash sync --help"),
        (("nothing",), "nothing is not a folder: give run folders, or folders of runs"),
        (("empty",), "no run in empty: give run folders, or folders of runs"),
        (("runs", "--all"), "unrecognized arguments: --all; see deephash sync --help"),
        (("runs", "--timeout", "0"), "--timeout must be a number of seconds above 0, got 0"),
        (("runs", "--timeout", "nan"), "--timeout must be a number of seconds above 0, got nan"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(deephash, arguments, message):
    Path("empty").mkdir()
    result = deephash("sync", *arguments)
    assert (result.code, result.out, result.err) == (2, "", f"error: {message}\n")


# Uploading


def test_without_a_key_it_says_how_to_log_in_at_once(deephash, run):
    before, started = tree(run), time.monotonic()
    for rebuild in ([], ["--rebuild"]):
        result = deephash("sync", "runs", *rebuild)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: there is no key for W&B at https://")
        assert result.err.endswith(": run `wandb login`, or set WANDB_API_KEY\n")
    assert time.monotonic() - started < 5
    assert tree(run) == before


def test_a_run_is_uploaded_once(deephash, run, serve):
    server = serve()
    result = deephash("sync", "runs", "--project", "hashing")
    assert (result.code, result.err) == (0, ""), result
    assert result.out.startswith("uploaded: runs/run: offline-run-")
    assert result.out.endswith("\nuploaded 1\n")
    sent = server.asked("UpsertBucket")[0]
    assert (sent["name"], sent["project"]) == (runs.read_record(run)["id"], "hashing")
    assert sent["groupName"] == "ours"
    assert {"dpsh", "8 bits", "mine"} <= set(sent["tags"])
    artifacts = {variables["input"]["artifactTypeName"] for variables in server.asked("CreateArtifact")}
    assert "codes" in artifacts
    history = b"".join(body for path, body in server.requests if path.endswith("/file_stream"))
    assert b"eval/precision_at_k" in history
    asked = len(server.requests)
    again = deephash("sync", "runs")
    assert (again.code, again.out) == (0, "nothing to upload: runs/run: it is already uploaded\nnothing to upload 1\n")
    assert len(server.requests) == asked
    assert files_with(KEY, run) == []


def test_a_log_that_was_lost_is_made_and_uploaded(deephash, run, serve):
    server = serve()
    shutil.rmtree(run / dashboards.FOLDER)
    result = deephash("sync", "runs")
    assert result.code == 0, result
    assert result.out.startswith("uploaded: runs/run: logged again from the run folder, because W&B's log is missing\n")
    assert server.asked("UpsertBucket")[0]["name"] == runs.read_record(run)["id"]
    assert not server.asked("RunResumeStatus"), "it replaces the run on the server"
    assert files_with(KEY, run) == []


def test_one_run_that_fails_does_not_keep_the_others(deephash, run, serve):
    serve()
    for name in ("a", "b"):
        shutil.copytree(run, f"runs/{name}", symlinks=True)
        Path("runs", name, runs.CONFIG).write_text("- {")
        digests.renew(f"runs/{name}")
        shutil.rmtree(Path("runs", name, dashboards.FOLDER))
    Path("runs/b", runs.RECORD).write_text("{}")
    result = deephash("sync", "runs")
    assert result.code == 4
    assert "warning: failed: runs/a: runs/a/config.yaml cannot be read as YAML" in result.err
    assert "warning: failed: runs/b: runs/b/run.json is not the record of a run" in result.err
    assert result.err.endswith("error: 2 of 3 runs failed; run the command again for the rest\n")
    assert result.out.endswith("uploaded 1, failed 2\n")


def test_a_wrong_key_is_said_as_the_server_says_it(deephash, run, serve):
    serve("refuse")
    result = deephash("sync", "runs")
    assert result.code == 4
    assert "warning: failed: runs/run: " in result.err
    assert "invalid key" in result.err
    assert KEY not in result.out + result.err
    assert deephash("sync", "--dry-run", "runs").out.endswith("would upload 1\n")


@pytest.mark.parametrize("server", ["refuses", "silent"])
def test_a_server_that_is_not_there_costs_seconds(deephash, monkeypatch, run, server):
    import socket

    monkeypatch.setattr(sync, "SECONDS_TO_ANSWER", 1)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if server == "silent":
            listening.listen(50)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        started = time.monotonic()
        result = deephash("sync", "runs")
    assert time.monotonic() - started < 5
    assert result.code == 4
    assert result.err.startswith("error: W&B at http://127.0.0.1:")
    assert result.err.endswith(": nothing was uploaded\n")


def test_an_upload_that_does_not_end_is_ended(deephash, run, serve):
    serve("stuck")
    for name in ("s", "t"):
        shutil.copytree(run, f"runs/{name}", symlinks=True)
        state = Path("runs", name, dashboards.FOLDER, dashboards.STATUS)
        write_json(state, {**json.loads(state.read_text()), "folder": str(Path("runs", name).absolute())})
    started = time.monotonic()
    result = deephash("sync", "runs", "--timeout", "2")
    assert 4 < time.monotonic() - started < 9
    assert result.code == 4
    assert result.err.splitlines() == [
        "warning: failed: runs/run: the upload took longer than 2 s: raise --timeout; what was uploaded is kept",
        "warning: failed: runs/s: the upload took longer than 2 s: raise --timeout; what was uploaded is kept",
        "warning: failed: runs/t: not tried: the uploads before it timed out",
        "error: 3 of 3 runs failed; run the command again for the rest",
    ]


# Online runs, and continued runs


@pytest.fixture
def command(tmp_path):
    quick = [setting for setting in QUICK if not setting.startswith("logger=")]
    return ["dataset=image_folder", f"dataset.root={write_photos(tmp_path / 'photos')}", *quick, "bits=8"]


def test_a_run_is_logged_online_without_secrets(deephash, command, monkeypatch, serve):
    server = serve()
    monkeypatch.setenv("MY_SECRET_TOKEN", SECRET)
    before = variables()
    secret = ["augment=none", "++augment.note=${oc.env:MY_SECRET_TOKEN}", "+augment.api_key=abcdef-by-name"]
    result = deephash(
        "train", *command, *secret, "run_dir=run", "trainer.max_epochs=1", "augment._target_=torch.nn.Identity"
    )
    assert result.code == 0, result
    assert variables() == before
    assert dashboards.status(Path("run"))["status"] == "online"
    assert deephash("sync", "run").out.startswith("nothing to upload: run: it was logged online\n")
    sent = b"".join(body for _, body in server.requests)
    assert b"eval/map" in sent
    assert SECRET.encode() not in sent
    assert b"abcdef-by-name" not in sent
    assert files_with(SECRET, Path("run")) == files_with(KEY, Path("run")) == []
    assert not [file for file in Path(os.environ["HOME"]).rglob("*") if file.is_file()]


@pytest.mark.slow
def test_a_server_that_stalls_costs_what_is_allowed(deephash, command, monkeypatch, serve):
    serve("stalls")
    monkeypatch.setattr(dashboards, "SECONDS_TO_END", 2)
    monkeypatch.setattr(dashboards, "SECONDS_TO_BEGIN", 4)
    started = time.monotonic()
    result = deephash("train", *command, "run_dir=run", "trainer.max_epochs=1")
    assert result.code == 0, result
    assert time.monotonic() - started < 90  # W&B checks the key twice, for about twenty seconds each time
    assert "warning: the dashboard did not get everything: Timed out" in result.err
    assert runs.read_record(Path("run"))["status"] == "finished"
    state = dashboards.status(Path("run"))
    assert (state["status"], state["whole"]) == ("failed", False)
    said = deephash("sync", "run", "--dry-run").out
    assert "logged again from the run folder, because W&B does not have all of it" in said


def test_an_interrupted_run_is_marked_so(deephash, command, monkeypatch):
    def interrupted(*_):
        raise Stopped(143)

    monkeypatch.setattr("deephash_cli.retrieval.scoring.score", interrupted)
    assert deephash("train", *command, "run_dir=run", "trainer.max_epochs=1").code == 143
    assert runs.read_record(Path("run"))["status"] == "interrupted"
    assert summary(Path("run"))["exit_code"] == 130


def test_the_environment_wins_and_it_is_said(deephash, command, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = deephash("train", *command, "logger.mode=online", "run_dir=run", "trainer.max_epochs=1")
    assert result.code == 0
    assert "W&B is offline: WANDB_MODE=offline is set and takes precedence over logger.mode=online" in result.out
    assert dashboards.status(Path("run"))["status"] == "offline"


def test_a_run_that_is_gone_on_with_keeps_its_id(deephash, command, monkeypatch):
    assert deephash("train", *command, "run_dir=run", "trainer.max_epochs=1").code == 0
    time.sleep(1)  # W&B names its folders by the time in seconds
    assert deephash("train", "resume=run", "trainer.max_epochs=2").code == 0
    logs = list(Path("run").glob("wandb/offline-run-*/*.wandb"))
    assert [log.stem for log in logs] == [f"run-{runs.read_record(Path('run'))['id']}"] * 2
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = deephash("sync", "run", "--dry-run")
    assert "because it was interrupted and resumed" in result.out
    assert deephash("sync", "run").code == 0
    assert len([item for item in history(Path("run")) if "train/loss" in item]) == 2


def test_a_wandb_that_cannot_be_used_is_noted(deephash, command, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    assert deephash("train", *command, "run_dir=run", "trainer.max_epochs=1", "logger.mode=offline").code == 0
    state = dashboards.status(Path("run"))
    assert state["status"] == "failed"
    assert "wandb" in state["reason"]

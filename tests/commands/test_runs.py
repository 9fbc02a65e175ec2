"""``deephash runs``: one line for each run, whatever its status; filters and sorting."""

import csv
import io
import json
from pathlib import Path

import pytest
from conftest import QUICK
from rich.console import Console
from rich.text import Text
from synthetic import write_run

from deephash_cli import runs
from deephash_cli.commands import runs as listing


@pytest.fixture
def some():
    """Write runs of several kinds into ``runs``: finished, failed, interrupted."""
    times = {"started": "2026-01-03T00:00:00+00:00", "ended": "2026-01-03T00:01:30+00:00"}
    write_run("runs/a", value=0.25, record=times)
    data = {"name": "toys", "protocol": "s1"}
    changes = {"dataset": data, "augment": {"_target_": "torch.nn.Identity"}}
    write_run("runs/b", method="itq", bits=24, value=0.75, changes=changes)
    failed = {"status": "failed", "error": "no space left", "started": "2026-01-02T00:00:00+00:00"}
    write_run("runs/c", method="itq", bits=48, seed=3, record=failed)
    write_run("runs/d", changes={"optimizer": {"lr": 0.01}}, record={"status": "running"})
    for name in "cd":
        Path(f"runs/{name}/metrics.json").unlink()
    Path("runs/d/metrics.jsonl").write_text('{"step": 40, "epoch": 0.0}\n{"step": 80, "epoch": 1.0}\n')


def listed(deephash, *arguments):
    result = deephash("runs", *arguments, "--format", "json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def names(deephash, *arguments):
    return [Path(run["run"]).name for run in listed(deephash, *arguments)]


def test_the_data_set_says_what_makes_the_number_another_one(deephash):
    data = {"dataset": {"name": "toys", "protocol": "s1"}}
    policies = {"similar": "two images are similar if they have exactly the same labels, and at least one"}
    write_run("runs/a", changes=data, metrics={"policies": policies}, record={"changes": {"labelled": 50}})
    assert listed(deephash)[0]["dataset"] == "toys s1, 50 labelled images, all labels must agree"


@pytest.mark.usefixtures("some")
def test_every_run_says_what_has_become_of_it(deephash):
    found = {Path(run["run"]).name: run for run in listed(deephash)}
    assert found["a"] == {
        "status": "finished", "method": "dpsh", "dataset": None, "bits": 12, "seed": 0, "map": 0.25,
        "started": "2026-01-03T00:00:00+00:00", "minutes": 1.5, "run": "runs/a", "note": "",
        "settings": {"optimizer.lr": 0.001},
    }  # fmt: skip
    assert found["b"]["dataset"] == "toys s1"
    assert (found["c"]["status"], found["c"]["map"], found["c"]["note"]) == ("failed", None, "no space left")
    assert (found["d"]["status"], found["d"]["note"]) == ("interrupted", "epoch 2 of 3")

    run = runs.Run(Path("runs/d"))
    assert listed(deephash, "status=running")[0]["run"] == "runs/d"
    run.close()


@pytest.mark.usefixtures("some")
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (("method=itq",), "bc"),
        (("method=itq,dpsh", "status=finished"), "ab"),
        (("bits=12,48",), "acd"),
        (("optimizer.lr=1e-2",), "d"),
        (("dataset=toys",), "b"),
        (("dataset=toys s1",), "b"),
        (("dataset.protocol=s1",), "b"),
        (("status=running",), ""),
        (("runs/a", "runs/b", "seed=0"), "ab"),
        (("lr=1e-2",), "d"),
        (("max_epochs=3", "lr=0.001"), "abc"),
    ],
)
def test_only_those_with_a_value(deephash, wanted, expected):
    assert sorted(names(deephash, *wanted)) == list(expected)


@pytest.mark.usefixtures("some")
def test_in_some_order(deephash):
    assert names(deephash)[-2:] == ["c", "a"]
    assert names(deephash, "--sort", "map") == ["b", "a", "c", "d"], "the best first, those without a value last"
    assert names(deephash, "--sort", "map", "--reverse") == ["a", "b", "c", "d"]
    assert names(deephash, "--sort", "bits")[-1] == "c"


@pytest.mark.usefixtures("some")
def test_the_table_and_the_csv_have_the_same_runs(deephash):
    table = deephash("runs").out
    assert "4 of 4 runs: 2 finished, 1 failed, 1 interrupted; times are UTC" in table
    assert "no space left" in table
    assert "0.7500" in table
    lines = list(csv.DictReader(io.StringIO(deephash("runs", "--format", "csv").out)))
    assert [line["run"] for line in lines] == [run["run"] for run in listed(deephash)]
    assert [line["bits"] for line in lines] == [str(run["bits"]) for run in listed(deephash)]


@pytest.mark.usefixtures("some")
def test_a_narrow_terminal_has_where_a_run_is_on_a_line_of_its_own(monkeypatch):
    for width, expected in ((60, "\n    runs/c: no space left\n"), (200, "  runs/c: no space left\n")):
        screen = io.StringIO()
        monkeypatch.setattr(listing, "console", Console(file=screen, force_terminal=True, width=width))
        listing.list_runs([Path("runs")], {}, "started", False, "table")
        assert expected in Text.from_ansi(screen.getvalue()).plain


@pytest.mark.parametrize("sort", ["map", "minutes"])
def test_at_80_columns_no_line_is_too_long_and_no_word_is_broken(monkeypatch, sort):
    times = {"started": "2026-01-03T00:00:00+00:00", "ended": "2026-01-03T00:01:30+00:00"}
    data = {"name": "fashion_mini", "protocol": "s1_validation"}
    for epochs in (5, 30):
        changes = {"trainer": {"max_epochs": epochs}, "optimizer": {"lr": epochs / 1000}, "dataset": data}
        folder = f"runs/fashion_mini-lfh_deep-48-s1-20260103-{epochs:06}-0123abcd"
        write_run(folder, "lfh_deep", 48, 1, changes=changes, record=times)
    screen = io.StringIO()
    monkeypatch.setattr(listing, "console", Console(file=screen, force_terminal=True, width=80))
    listing.list_runs([Path("runs")], {}, sort, False, "table")
    lines = Text.from_ansi(screen.getvalue()).plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert {"trainer.max_epochs=5", "optimizer.lr=0.03", "lfh_deep", folder} <= set(" ".join(lines).split())
    assert {"status", "method", "bits", "seed", "map", sort} <= set(lines[0].split())


def test_text_is_data(deephash):
    write_run("runs/a", method="[red]=cmd()[/]", record={"status": "failed", "error": "=cmd() [blink]x[/]"})
    assert "[red]=cmd()[/]" in deephash("runs").out
    assert ",'=cmd() [blink]x[/]" in deephash("runs", "--format", "csv").out


def test_a_path_may_have_an_equals_sign(deephash):
    write_run("method=itq/a")
    write_run("runs/b", method="itq")
    assert names(deephash, "method=itq") == ["a"]
    assert sorted(names(deephash, "runs", "method=itq")) == ["a", "b"]


def test_what_cannot_be_read_is_named(deephash):
    write_run("runs/a")
    write_run("runs/b")
    Path("runs/b/run.json").write_text("{")
    result = deephash("runs")
    assert result.code == 0
    assert "1 of 1 runs" in result.out
    assert result.err.startswith("warning: left out runs/b: runs/b/run.json is not valid JSON")


@pytest.mark.usefixtures("some")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("methd=itq",), "no run has the setting methd; did you mean 'method'?"),
        (("max_epoch=3",), "no run has the setting max_epoch; did you mean"),
        (("_target_=x",), "_target_ may be augment._target_ or optimizer._target_: give the whole name"),
        (("bits=12", "bits=24"), "bits is given twice: write bits=12,24 for runs with either value"),
        (("x" * 300,), "xxx"),
        (("x" * 300 + "=1",), "no run has the setting xxx"),
        (("run/bits=12",), "run/bits=12 is not a folder: give run folders, or folders of runs"),
        (("--sort", "mpa"), "--sort must be one of status, method,"),
        (("nothing",), "nothing is not a folder: give run folders, or folders of runs"),
        (("--format", "word"), "argument --format: invalid choice: 'word'"),
        (("empty",), "no run in empty: deephash train makes one"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(deephash, arguments, message):
    Path("empty").mkdir()
    result = deephash("runs", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}")
    assert result.err.count("\n") == 1


def test_without_any_run_it_says_so(deephash, monkeypatch):
    assert deephash("runs").err == "error: there is no folder runs here: give run folders, or folders of runs\n"
    write_run("elsewhere/a")
    monkeypatch.setenv("DEEPHASH_OUTPUT_DIR", "elsewhere")
    assert "1 of 1 runs" in deephash("runs").out


def test_a_real_run(deephash):
    assert (
        deephash("train", *QUICK, "model=small_cnn", "trainer.max_epochs=1", "trainer.limit_train_batches=2").code == 0
    )
    (run,) = listed(deephash, "dataset=fashion_mini")
    assert (run["status"], run["method"], run["dataset"]) == ("finished", "dpsh", "fashion_mini s1")
    assert 0 < run["map"] < 1


def test_the_runs_of_a_folder_are_in_the_order_of_their_starts_whatever_the_clock_says(deephash):
    for number, name in enumerate(("later", "earlier"), 1):
        started = f"2026-01-0{3 - number}T00:00:00+00:00"  # the clock was set back between them
        write_run(f"runs/{name}", seed=number, record={"started": started, "number": number})
    assert names(deephash) == ["later", "earlier"]
    write_run("other/third", seed=3, record={"started": "2026-01-01T12:00:00+00:00", "number": 9})
    assert names(deephash, "runs", "other") == ["earlier", "third", "later"], "across folders the clock decides"

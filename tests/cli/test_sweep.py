"""A sweep runs every combination once, prints one table, names failures, and never repeats a finished job."""

import json
import re
import statistics
from pathlib import Path

import pytest
from conftest import write_photos

from deephash_cli import runs
from deephash_cli.cli import sweep
from deephash_cli.console import console
from deephash_cli.errors import DivergedError, Stopped, SweepError
from deephash_cli.training import datasets, fit

GRID = ("-m", "bits=8,12", "seed=0,1")


def folders() -> dict[tuple[int, int], Path]:
    """Return the run folders by bits and seed."""
    found = {}
    for folder, _ in runs.scan(Path("runs")):
        key = tuple(
            int(re.search(rf"^{name}: (\d+)$", (folder / runs.CONFIG).read_text(), re.MULTILINE)[1])
            for name in ("bits", "seed")
        )
        assert key not in found, "a job was done twice"
        found[key] = folder
    return found


def times(paths) -> dict[Path, int]:
    """Return the time at which each file was last written."""
    return {file: file.stat().st_mtime_ns for path in paths for file in sorted(path.rglob("*")) if file.is_file()}


def table(out: str) -> list[str]:
    """Return the lines of the printed table of a sweep, with its title."""
    return out[out.rindex(", run folder ") if ", run folder " in out else 0 :].splitlines()[1:]


def test_every_combination_runs_once_and_again_means_nothing_to_do(deephash, photos):
    first = deephash("train", *GRID, *photos)
    assert first.code == 0, first
    made = folders()
    assert sorted(made) == [(8, 0), (8, 1), (12, 0), (12, 1)]
    assert all(runs.read_record(folder)["status"] == "finished" for folder in made.values())

    text = "\n".join(table(first.out))
    assert len(re.findall(r"\d\.\d{4} ± \d\.\d{4}", text)) == 2 * len(sweep.COLUMNS) - 2 * (
        "precision_at_100" not in text
    )
    assert "bits=8" in text
    assert "bits=12" in text
    for bits in (8, 12):
        values = [json.loads((made[bits, seed] / runs.METRICS).read_text())["map"] for seed in (0, 1)]
        mean, deviation = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
        assert f"{mean:.4f} ± {deviation:.4f}" in text

    groups = {
        re.search("^group: (.*)$", (folder / runs.CONFIG).read_text(), re.MULTILINE)[1] for folder in made.values()
    }
    assert len(groups) == 1
    assert groups.pop().startswith("sweep-")

    before = times(made.values())
    again = deephash("train", *GRID, *photos)
    assert again.code == 0, again
    assert folders() == made
    assert times(made.values()) == before
    assert table(again.out) == table(first.out)

    order = deephash("train", *photos, "seed=1,0", "-m", "bits=12,8", "logger=csv")
    assert order.code == 0
    assert folders() == made, "neither the order of the settings nor the logger makes another run"
    assert times(made.values()) == before


def test_a_single_run_is_part_of_a_later_sweep_unless_all_is_asked_for_again(deephash, photos):
    grid = ("bits=8", *photos, "trainer.max_epochs=1")
    assert deephash("train", *grid).code == 0
    single = folders()[8, 0]
    before = times([single])
    assert deephash("train", *grid, "-m", "seed=0,1").code == 0
    assert sorted(folders()) == [(8, 0), (8, 1)]
    assert times([single]) == before
    assert deephash("train", *grid, "-m", "seed=0,1", "resume=none").code == 0
    assert len(list(runs.scan(Path("runs")))) == 4
    assert times([single]) == before


def test_one_job_that_fails_costs_no_other(deephash, photos):
    """The first learning rate is so large that training diverges."""
    command = ("-m", "optimizer.lr=1e30,0.001", "seed=0,1", "bits=8", *photos)
    result = deephash("train", *command)
    assert result.code == 6, result
    records = sorted((record for _, record in runs.scan(Path("runs"))), key=lambda record: record["status"])
    assert [record["status"] for record in records] == ["failed", "failed", "finished", "finished"]
    assert "lower optimizer.lr" in records[0]["error"]
    failed = [line for line in result.err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert all("optimizer.lr=1e" in line and "lower optimizer.lr" in line for line in failed)
    assert result.err.splitlines()[-1] == "error: 2 of 4 jobs failed"
    assert "Traceback" not in result.err
    assert "2 jobs are done; run the command again" in result.out
    assert "optimizer.lr=0.001" in "\n".join(table(result.out))


def test_a_job_without_its_data(deephash, photos, tmp_path):
    more = write_photos(tmp_path / "more", classes=("cat", "dog"))
    rest = [override for override in photos if not override.startswith("dataset.root=")]
    result = deephash("train", "-m", f"dataset.root={tmp_path / 'nowhere'},{more}", "bits=8", *rest)
    assert result.code == 6
    assert f"dataset.root={tmp_path / 'nowhere'} is not a folder" in result.err
    assert [record["status"] for _, record in runs.scan(Path("runs"))] == ["finished"]


def test_a_bug_in_one_job_keeps_its_traceback(deephash, photos, monkeypatch):
    whole = datasets.divide

    def broken(dataset, protocol, seed, *more):
        if seed == 1:
            raise ZeroDivisionError("nobody thought of this")
        return whole(dataset, protocol, seed, *more)

    monkeypatch.setattr("deephash_cli.training.datasets.divide", broken)
    result = deephash("train", "-m", "dataset.split_seed=1,2", "bits=8", *photos)
    assert result.code == 6
    assert "Traceback" in result.err
    assert "failed: " in result.err
    assert "ZeroDivisionError: nobody thought of this" in result.err
    assert [record["status"] for _, record in runs.scan(Path("runs"))] == ["finished"]


def test_an_interrupted_sweep_goes_on_where_it_stopped(deephash, photos, monkeypatch):
    whole = fit.save_codes
    calls = []

    def stop_in_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise Stopped(130)
        return whole(*arguments)

    monkeypatch.setattr("deephash_cli.training.fit.save_codes", stop_in_the_third)
    grid = ("-m", "seed=0,1,2", "bits=8", *photos)
    stopped = deephash("train", *grid)
    assert stopped.code == 130
    assert "interrupted: " in stopped.out
    assert "2 jobs are done; run the command again for the rest" in stopped.out
    assert len(table(stopped.out)) > 3
    made = folders()
    assert sorted(made) == [(8, 0), (8, 1), (8, 2)]
    assert runs.read_record(made[8, 2])["status"] == "interrupted"
    done = [made[8, 0], made[8, 1]]
    before = times(done)

    monkeypatch.setattr("deephash_cli.training.fit.save_codes", whole)
    resumed = deephash("train", *grid)
    assert resumed.code == 0, resumed
    assert folders() == made, "the third job was continued in its own folder"
    assert times(done) == before

    assert deephash("train", "seed=2", "bits=8", *photos, "runs=elsewhere").code == 0
    straight = next(Path("elsewhere").glob(f"*/{runs.METRICS}"))
    assert straight.read_bytes() == (made[8, 2] / runs.METRICS).read_bytes()
    values = [json.loads((made[8, seed] / runs.METRICS).read_text())["map"] for seed in (0, 1, 2)]
    assert f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" in resumed.out


# Without training


@pytest.fixture
def jobs(tmp_path):
    """Return a function that records jobs with the given outcomes: a metric, or an exception to raise."""

    def run(*outcomes):
        for number, outcome in enumerate(outcomes):

            def work(outcome=outcome, number=number):
                if isinstance(outcome, BaseException):
                    raise outcome
                return {"map": outcome, "map_stable": outcome, "precision_at_k": {}, "run_dir": f"runs/{number}"}

            sweep.run_job(tmp_path, number, ["bits='8'", f"seed={number}"], work)
        return tmp_path

    return run


def test_the_table_of_one_seed_has_no_deviation(jobs, capsys):
    sweep.conclude(jobs(0.5))
    out = capsys.readouterr().out
    assert "0.5000" in out
    assert "±" not in out


def test_a_column_that_nobody_has_stays_empty(jobs, capsys):
    sweep.conclude(jobs(0.5, 0.7))
    assert "0.6000 ± 0.1414" in capsys.readouterr().out


def test_at_80_columns_no_word_is_broken(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 80)
    for number, (epochs, seed) in enumerate([(5, 1), (5, 2), (30, 1), (30, 2)]):
        settings = ["method=fasthash", f"trainer.max_epochs={epochs}", "bits='48'", f"seed={seed}", f"tag={epochs}"]
        metrics = {
            "map": seed / 3, "map_stable": seed / 3, "precision_at_k": {"100": seed / 3}, "run_dir": "x",
        }  # fmt: skip
        sweep.run_job(tmp_path, number, settings, lambda metrics=metrics: metrics)
    capsys.readouterr()
    sweep.conclude(tmp_path)
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert max(map(len, lines)) <= 80
    words = set(re.sub("[│┃]", " ", " ".join(lines)).split())
    assert {"settings", "seeds", "map", "map_stable", "precision_at_100", "trainer.max_epochs=30", "tag=5"} <= words
    assert {"method=fasthash", "bits=48", "0.5000", "±", "0.2357"} <= words


def test_a_diverged_job_is_reported_and_the_sweep_fails(jobs, capsys):
    folder = jobs(0.5, DivergedError("the loss is nan [bold] in a\n\x1b"), RuntimeError("what"))
    with pytest.raises(SweepError, match="2 of 3 jobs failed"):
        sweep.conclude(folder)
    err = capsys.readouterr().err
    assert r"failed: bits=8 seed=1: the loss is nan [bold] in a\n\x1b" in err
    assert "\x1b" not in err
    assert "failed: bits=8 seed=2: RuntimeError: what" in err


def test_a_stop_is_passed_on_and_written_down(jobs, tmp_path, capsys):
    with pytest.raises(Stopped):
        jobs(0.5, Stopped(143))
    sweep.conclude(tmp_path)
    assert "interrupted: bits=8 seed=1" in capsys.readouterr().out


def test_a_new_start_forgets_the_jobs_of_those_that_ended(tmp_path):
    (tmp_path / "job-0000.json").write_text("{}")  # of an earlier version
    (tmp_path / "notes.txt").write_text("mine")
    with sweep.begun(tmp_path) as ended:
        (ended / "job-0000.json").write_text("{}")
    with sweep.begun(tmp_path) as running:
        assert not ended.exists()
        (running / "job-0000.json").write_text("{}")
        with sweep.begun(tmp_path) as beside:
            assert beside != running
            assert (running / "job-0000.json").read_text() == "{}", "the records of a running sweep stay"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "job-0000.json").exists()


def in_use(folder, times, value=0.5):
    """Return a job that another process has ``times`` times, and that then gives its result."""
    left = iter(range(times))

    def work():
        if next(left, None) is not None:
            raise runs.InUseError(folder)
        return {"map": value, "map_stable": value, "precision_at_k": {}, "run_dir": str(folder)}

    return work


def test_a_job_of_another_process_is_looked_at_again_at_the_end(tmp_path, capsys):
    records = tmp_path / "jobs-1"
    records.mkdir()
    works = [in_use(tmp_path / "run", 2), in_use(tmp_path / "other", 0, 0.7)]
    for number, work in enumerate(works):
        sweep.run_job(records, number, [f"seed={number}"], work)
    assert sweep.is_left(records)
    assert "this job is looked at again at the end" in capsys.readouterr().out
    for number, work in enumerate(works):
        sweep.run_job(records, number, [f"seed={number}"], work)
    assert not sweep.is_left(records)
    out = capsys.readouterr().out
    assert out.count("waiting for another process, which uses ") == 1
    assert "job 2" not in out, "what is done is not looked at again"
    sweep.conclude(records)
    assert "0.6000 ± 0.1414" in capsys.readouterr().out


def test_a_search_waits_for_a_job_of_another_process_at_once(tmp_path, capsys):
    sweep.run_job(tmp_path, 0, ["seed=0"], in_use(tmp_path / "run", 1), searching=True)
    assert not sweep.is_left(tmp_path)
    assert "waiting for " in capsys.readouterr().out


@pytest.mark.parametrize(("typed", "shown"), [("bits='12'", "bits=12"), ("seed=1", "seed=1"), ("x='a b'", "x=a b")])
def test_settings_are_shown_as_they_were_typed(typed, shown):
    assert sweep.plain(typed) == shown

"""Jobs of a sweep: a record of how each ended, and the table at the end. Jobs may run in other processes."""

import contextlib
import os
import secrets
import sqlite3
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from deephash_cli import runs
from deephash_cli.cli.arguments import value_of
from deephash_cli.console import errors, say, show
from deephash_cli.errors import ArtifactError, DeephashError, Stopped, SweepError, command, first_line, one_line
from deephash_cli.files import (
    alone,
    lock,
    locks_are_on,
    make_folder,
    open_plain,
    read_json,
    remove_leftovers,
    write_json,
)
from deephash_cli.hiding import hide
from deephash_cli.retrieval.scoring import is_number
from deephash_cli.runs.results import Cell
from deephash_cli.runs.settings import bounded_yaml

STUDY = "study.sqlite"  # database of a search by Optuna; conf/tune has the same name
BEST = "optimization_results.yaml"  # file that Optuna's sweeper writes
OBJECTIVE = "validation_map"
LOCK = ".lock"  # held by the process whose job records are beside it
ELSEWHERE = "elsewhere"  # status of a job that another process is running
COLUMNS = ("map", "map_stable", "precision_at_100")
_JOB_LIMIT = 2**20  # bytes of the record of a job
WITHOUT_LABELS = ("unique_code_ratio",)  # columns of runs whose data set has no labels


def is_search(sweeper: Any) -> bool:
    """Return whether a sweeper chooses settings by the results of jobs. Hydra's own sweeper runs every combination.

    Args:
        sweeper: The node ``hydra.sweeper`` of a configuration.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.utils import get_class

    return not issubclass(get_class(sweeper._target_), BasicSweeper)


@contextlib.contextmanager
def begun(folder: Path) -> Iterator[Path]:
    """Make a folder for the job records of this process, and delete the records that earlier starts left.

    Every start of a sweep has records of its own, because another process may be doing the same sweep. The run folders,
    which they share, stay. The records belong to this process while the context is open.

    Args:
        folder: Folder of the sweep.

    Yields:
        The folder for the records.

    Raises:
        ArtifactError: If the folder cannot be written to, or the study of an earlier search cannot be continued.
    """
    make_folder(folder)
    with contextlib.ExitStack() as held:
        with alone(folder / LOCK):
            _clean(folder)
            _require_study(folder / STUDY)
            records = folder / f"jobs-{secrets.token_hex(8)}"
            make_folder(records)
            held.enter_context(alone(records / LOCK))
        yield records


def _clean(folder: Path) -> None:
    """Remove the job records of all starts whose processes have ended. Without locks, nobody knows which these are."""
    for file in folder.glob("job-*.json"):  # of earlier versions
        file.unlink(missing_ok=True)
    for records in folder.glob("jobs-*") if locks_are_on() else ():
        with contextlib.suppress(OSError), (records / LOCK).open("r+b") as held:
            if lock(held):
                for file in (*records.glob("job-*.json"), records / LOCK):
                    file.unlink(missing_ok=True)
                remove_leftovers(records)
                records.rmdir()


def _require_study(study: Path) -> None:
    """Check that the study of an earlier search, if there is one, can be continued."""
    if not os.path.lexists(study):
        return
    with open_plain(study):
        pass
    try:
        with contextlib.closing(sqlite3.connect(study, timeout=5)) as database:
            database.execute("begin immediate")
    except sqlite3.Error as error:
        raise ArtifactError(
            f"{study}, the study of this search, cannot be used ({error}): if another process is using it, wait; "
            "otherwise move it away to start a new study. Finished runs are kept and not repeated"
        ) from error


def run_job(
    records: Path,
    number: int,
    overrides: Sequence[str],
    work: Callable[[], Mapping[str, Any]],
    searching: bool = False,
) -> float | None:
    """Run one job and record how it ended. An error ends the job, not the sweep.

    A job that another process is running is left for the end: called again for such a job, this function waits for the
    other process, and does what that one has left undone. A job that has ended is not run again.

    Args:
        records: Folder of the job records.
        number: Index of the job, from 0.
        overrides: Settings of the job.
        work: Function that runs the job and returns its metrics.
        searching: Whether the sweep is a search for settings; then numbers of the test queries are not shown, and a
            job of another process is waited for at once, because the next settings depend on it.

    Returns:
        The mAP of the validation queries, which a search maximises; None if there are none, or if the job failed.
    """
    file = records / f"job-{number:04d}.json"
    before = read_json(file) if file.exists() else {}
    if before.get("status", ELSEWHERE) != ELSEWHERE:
        return before.get("metrics", {}).get(OBJECTIVE)
    settings = [plain(override) for override in overrides]
    say(f"\njob {number + 1}: {' '.join(settings)}")
    record: dict[str, Any] = {"number": number, "overrides": settings, "status": "interrupted"}
    try:
        metrics = _when_free(work) if searching or before else work()
        validation = metrics.get("validation")
        columns = {OBJECTIVE: validation["map"]} if searching and validation else _columns(metrics)
        name, value = next(iter(columns.items()))
        say(f"{name} {value:.4f}, run folder {metrics['run_dir']}")
        record |= {"status": "finished", "run_dir": metrics["run_dir"], "metrics": columns}
        return columns.get(OBJECTIVE)
    except Stopped:
        raise
    except runs.InUseError as error:
        record |= {"status": ELSEWHERE}
        say(f"{error.folder} is in use by {error.owner}: this job is looked at again at the end")
    except DeephashError as error:
        record |= {"status": "failed", "error": one_line(str(error))}
        errors.print(f"error: {record['error']}", markup=False)
    except Exception as error:  # a bug in one job must not end the others; the traceback is in its run folder, too
        record |= {"status": "failed", "error": f"{type(error).__name__}: {first_line(error)}"}
        errors.print(hide(traceback.format_exc()), markup=False)
    finally:
        write_json(file, record)
    return None


def _when_free(work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Run a job as soon as no other process runs it. What the other one has finished is not done again."""
    while True:
        try:
            return work()
        except runs.InUseError as error:
            say(f"waiting for {error.owner}, which uses {error.folder}")
            runs.wait_for(error.folder)


def is_left(records: Path) -> bool:
    """Return whether jobs were left for the end, because other processes are running them."""
    return any(read_json(file)["status"] == ELSEWHERE for file in records.glob("job-*.json"))


def conclude(records: Path) -> None:
    """Print the table of the sweep: mean and standard deviation over seeds; then the failed jobs.

    Args:
        records: Folder of the job records.

    Raises:
        SweepError: If a job failed.
    """
    folder = records.parent
    jobs = [_read_job(file) for file in sorted(records.glob("job-*.json"))]
    done = [job for job in jobs if job["status"] == "finished"]
    if done:
        done.sort(key=lambda job: job["metrics"].get(OBJECTIVE, 0), reverse=True)
        table, title = _table(done)
        show(table, title)
        say(f"for a page with charts and pictures: {command('deephash', 'report', folder.parent.parent)}")
    if (best := folder / BEST).exists():
        try:
            found = yaml.safe_load(bounded_yaml(best))
            settings = " ".join(f"{name}={value}" for name, value in found["best_params"].items())
            say(f"best settings in this study so far: {settings}, validation_map {found['best_value']:.4f}")
        except (LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise ArtifactError(f"{best} is not what a search writes: it was damaged or edited by hand") from error
    unfinished = [job for job in jobs if job["status"] in ("interrupted", ELSEWHERE)]
    failed = [job for job in jobs if job["status"] == "failed"]
    for job in failed:
        errors.print(f"failed: {one_line(' '.join(job['overrides']))}: {job['error']}", markup=False)
    for job in unfinished:
        say(f"interrupted: {' '.join(job['overrides'])}")
    if failed or unfinished:
        say(f"{len(done)} jobs are done; run the command again for the rest")
    if failed:
        raise SweepError(f"{len(failed)} of {len(jobs)} jobs failed")


def _read_job(file: Path) -> dict[str, Any]:
    """Read the record of a job that `run_job` wrote.

    Raises:
        ArtifactError: If the file cannot be read, or is not the record of a job.
    """
    job = read_json(file, limit=_JOB_LIMIT)
    if not isinstance(job, dict) or not _is_job(job):
        raise ArtifactError(f"{file} is not the record of a job: it was damaged or edited by hand")
    return job


def _is_job(job: Mapping[str, Any]) -> bool:
    overrides, metrics, status = job.get("overrides"), job.get("metrics"), job.get("status")
    is_whole = {
        "finished": lambda: isinstance(metrics, dict) and bool(metrics) and all(map(is_number, metrics.values())),
        "failed": lambda: isinstance(job.get("error"), str),
        "interrupted": lambda: True,
    }.get(status if isinstance(status, str) else "", lambda: False)
    return isinstance(overrides, list) and all(isinstance(text, str) for text in overrides) and is_whole()


def plain(override: str) -> str:
    """Return an override as it is typed, without the quotes and escapes that Hydra needs."""
    value = value_of(override)
    return f"{override.partition('=')[0]}={value}" if isinstance(value, str) else override


def _columns(metrics: Mapping[str, Any]) -> dict[str, float]:
    if "map" not in metrics:
        return {name: metrics[name] for name in WITHOUT_LABELS}
    at_100 = metrics["precision_at_k"].get("100")
    return {
        "map": metrics["map"],
        "map_stable": metrics["map_stable"],
        **({} if at_100 is None else {"precision_at_100": at_100}),
    }


def _table(jobs: Sequence[Mapping[str, Any]]) -> tuple[Table, str]:
    """Return a table with a row per combination of settings other than the seed, and a title with shared settings."""
    common = set.intersection(*(set(job["overrides"]) for job in jobs))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for job in jobs:
        varied = (item for item in job["overrides"] if item not in common and not item.startswith("seed="))
        groups.setdefault(" ".join(varied) or "all", []).append(job)
    shared = " ".join(item for item in jobs[0]["overrides"] if item in common and not item.startswith("seed="))
    table = Table("settings")
    table.add_column("seeds", justify="right")
    names = [name for name in (OBJECTIVE, *COLUMNS, *WITHOUT_LABELS) if any(name in job["metrics"] for job in jobs)]
    for name in names:
        table.add_column(name, justify="right", min_width=8)  # "0.7653 ±" stays together
    for settings, members in groups.items():
        cells = [
            str(Cell.of([job["metrics"][name] for job in members if name in job["metrics"]]) or "") for name in names
        ]
        table.add_row(escape(settings), str(len(members)), *cells)
    return table, f"{shared} (mean and standard deviation over seeds)".strip()

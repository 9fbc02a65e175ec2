"""Jobs of a sweep: a record of how each ended, and the table at the end. Jobs may run in other processes."""

import contextlib
import sqlite3
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from deephash_cli.cli.arguments import value_of
from deephash_cli.console import errors, say, show
from deephash_cli.errors import ArtifactError, DeephashError, Stopped, SweepError, command, first_line, one_line
from deephash_cli.files import read_json, write_json
from deephash_cli.hiding import hide
from deephash_cli.runs.results import Cell

STUDY = "study.sqlite"  # database of a search by Optuna; conf/tune has the same name
BEST = "optimization_results.yaml"  # file that Optuna's sweeper writes
OBJECTIVE = "validation_map"
COLUMNS = ("map", "map_stable", "precision_at_100")
WITHOUT_LABELS = ("unique_code_ratio",)  # columns of runs whose data set has no labels


def is_search(sweeper: Any) -> bool:
    """Return whether a sweeper chooses settings by the results of jobs. Hydra's own sweeper runs every combination.

    Args:
        sweeper: The node ``hydra.sweeper`` of a configuration.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.utils import get_class

    return not issubclass(get_class(sweeper._target_), BasicSweeper)


def begin(folder: Path) -> None:
    """Delete the job records of an earlier start of the same sweep; the run folders stay.

    Raises:
        ArtifactError: If the study of an earlier search cannot be continued.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("job-*.json"):
        file.unlink()
    if (folder / STUDY).exists():
        try:
            with contextlib.closing(sqlite3.connect(folder / STUDY, timeout=5)) as study:
                study.execute("begin immediate")
        except sqlite3.Error as error:
            raise ArtifactError(
                f"{folder / STUDY}, the study of this search, cannot be used ({error}): if another process is using "
                "it, wait; otherwise move it away to start a new study. Finished runs are kept and not repeated"
            ) from error


def run_job(
    folder: Path,
    number: int,
    overrides: Sequence[str],
    work: Callable[[], Mapping[str, Any]],
    searching: bool = False,
) -> float | None:
    """Run one job and record how it ended. An error ends the job, not the sweep.

    Args:
        folder: Folder of the sweep.
        number: Index of the job, from 0.
        overrides: Settings of the job.
        work: Function that runs the job and returns its metrics.
        searching: Whether the sweep is a search for settings; then numbers of the test queries are not shown.

    Returns:
        The mAP of the validation queries, which a search maximises; None if there are none, or if the job failed.
    """
    settings = [plain(override) for override in overrides]
    say(f"\njob {number + 1}: {' '.join(settings)}")
    record: dict[str, Any] = {"number": number, "overrides": settings, "status": "interrupted"}
    try:
        metrics = work()
        validation = metrics.get("validation")
        columns = {OBJECTIVE: validation["map"]} if searching and validation else _columns(metrics)
        name, value = next(iter(columns.items()))
        say(f"{name} {value:.4f}, run folder {metrics['run_dir']}")
        record |= {"status": "finished", "run_dir": metrics["run_dir"], "metrics": columns}
        return columns.get(OBJECTIVE)
    except Stopped:
        raise
    except DeephashError as error:
        record |= {"status": "failed", "error": one_line(str(error))}
        errors.print(f"error: {record['error']}", markup=False)
    except Exception as error:  # a bug in one job must not end the others; the traceback is in its run folder, too
        record |= {"status": "failed", "error": f"{type(error).__name__}: {first_line(error)}"}
        errors.print(hide(traceback.format_exc()), markup=False)
    finally:
        write_json(folder / f"job-{number:04d}.json", record)
    return None


def conclude(folder: Path) -> None:
    """Print the table of the sweep: mean and standard deviation over seeds; then the failed jobs.

    Raises:
        SweepError: If a job failed.
    """
    jobs = [read_json(file) for file in sorted(folder.glob("job-*.json"))]
    done = [job for job in jobs if job["status"] == "finished"]
    if done:
        done.sort(key=lambda job: job["metrics"].get(OBJECTIVE, 0), reverse=True)
        table, title = _table(done)
        show(table, title)
        say(f"for a page with charts and pictures: {command('deephash', 'report', folder.parent.parent)}")
    if (best := folder / BEST).exists():
        found = yaml.safe_load(best.read_text())
        settings = " ".join(f"{name}={value}" for name, value in found["best_params"].items())
        say(f"best settings in this study so far: {settings}, validation_map {found['best_value']:.4f}")
    unfinished = [job for job in jobs if job["status"] == "interrupted"]
    failed = [job for job in jobs if job["status"] == "failed"]
    for job in failed:
        errors.print(f"failed: {one_line(' '.join(job['overrides']))}: {job['error']}", markup=False)
    for job in unfinished:
        say(f"interrupted: {' '.join(job['overrides'])}")
    if failed or unfinished:
        say(f"{len(done)} jobs are done; run the command again for the rest")
    if failed:
        raise SweepError(f"{len(failed)} of {len(jobs)} jobs failed")


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

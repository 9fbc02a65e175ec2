"""Find the run folder that a command continues, and check that it may be continued."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.console import warn
from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.protocol import Split, load_split, save_split
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.retrieval.codes import is_count
from deephash_cli.runs import records
from deephash_cli.runs.sealing import digests
from deephash_cli.runs.verifying import damaged_results


def earlier_run(settings: Mapping[str, Any]) -> Path | None:
    """Find the run folder that the setting ``resume`` asks for.

    Args:
        settings: Resolved configuration as plain values.

    Returns:
        The run folder; None if a new run is to be started.

    Raises:
        ConfigError: If the run in the folder was started with settings that a resumed run must keep, and they differ.
        ArtifactError: If the folder holds no run, or one of its files that are continued is damaged.
    """
    resume, run_dir = settings["resume"], settings["run_dir"]
    if resume == "none":
        return None
    if resume == "auto" and run_dir is None:
        found = runs.find(Path(settings["runs"]), runs.fingerprint(settings))
        if found:
            _require_intact(found)
        return found
    folder = Path(run_dir if resume == "auto" else resume)
    if resume == "auto" and not (folder / runs.RECORD).exists():
        return None
    runs.read_record(folder)
    _require_intact(folder)
    before = runs.read_config(folder)
    if changes := runs.forbidden_changes(before, settings):
        raise ConfigError(
            f"{folder} was started with different settings, which a resumed run must keep: {'; '.join(changes)}"
        )
    return folder


def _require_intact(folder: Path) -> None:
    """Check the files that a resumed run continues. A file that was deleted is made again."""
    continued = (runs.CONFIG, runs.SPLIT, runs.STEPS, runs.HEAD_STEPS)
    runs.require_intact(folder, *(name for name in continued if (folder / name).exists()))


@contextlib.contextmanager
def only_one(settings: Mapping[str, Any]) -> Iterator[None]:
    """Let only one process at a time find or begin the run of some settings, so that two make one run folder.

    Nothing is done if the settings name a run folder, which has a lock of its own, or ask for a new run.

    Args:
        settings: Resolved configuration as plain values.

    Raises:
        ConfigError: If the folder of runs cannot be made.
        ArtifactError: If the disk is full.
    """
    if settings["resume"] != "auto" or settings["run_dir"] is not None:
        yield
        return
    with runs.starting(Path(settings["runs"]), runs.fingerprint(settings)):
        yield


def is_done(folder: Path, epochs: int) -> bool:
    """Whether the run in ``folder`` is finished, was trained for at least ``epochs`` epochs, and has all its results.

    Damaged or missing results are made again from the last checkpoint, and the user is told so.

    Raises:
        ArtifactError: If the folder holds no run, or its metrics cannot be read.
    """
    record = runs.read_record(folder)
    if record["status"] != "finished":
        return False
    if problems := damaged_results(folder, digests(record)):
        for problem in problems:
            warn(f"{problem.what}; it is made again")
        return False
    done = records.metrics(folder).get("epochs")
    if not isinstance(done, int) or not is_count(done):
        raise ArtifactError(f"{folder / runs.METRICS} has no number of epochs: it was damaged or edited by hand")
    return done >= epochs


def keep_split(folder: Path, split: Split, dataset: RetrievalDataset) -> None:
    """Write the split into the run folder; a resumed run must have the same split as before.

    Args:
        folder: Run folder.
        split: Division of the data set that the settings give now.
        dataset: Data set that ``split`` divides.

    Raises:
        ArtifactError: If the folder already has a different split, or cannot be written to.
        DataError: If the split in the folder is damaged or names images that the data set does not have.
    """
    file = folder / runs.SPLIT
    before = load_split(file, dataset) if file.exists() else split
    if (before.sha256, before.changes) != (split.sha256, split.changes):
        raise ArtifactError(f"{file} is not the split that the settings give now: the data changed; start a new run")
    save_split(file, split, dataset)

"""``deephash sync``: upload what W&B logged offline, and log a run again from its folder if the W&B log was lost."""

import argparse
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deephash_cli import runs
from deephash_cli.console import say, warn
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, first_line, short
from deephash_cli.retrieval.scoring import is_number
from deephash_cli.runs import records, results
from deephash_cli.runs import wandb as dashboards
from deephash_cli.stopping import stopping

PROJECT = "deephash"  # project of runs that were not logged to W&B; conf/logger/wandb.yaml has the same
SECONDS_TO_ANSWER = 10
_LATE = 2  # number of consecutive uploads that may time out before the others are not tried
LOGGERS = ("deephash_cli.training.loggers.WandbRun", "deephash_cli.tracking.WandbRun")  # the second: version 0.1
# W&B itself tries a failing server again for days; here two more tries are enough.
_IMPATIENT = {f"WANDB__{part}_RETRY_MAX": "2" for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")}


class _LateError(ArtifactError):
    """An upload that did not end in time."""


@dataclass(frozen=True)
class Plan:
    """The work that is to be done for one run.

    Attributes:
        folder: The run folder.
        files: W&B logs to upload.
        rebuild: Reason to log the run again from its folder first; None if there is no need.
        nothing: Reason why there is no work to do; None if there is work.
    """

    folder: Path
    files: tuple[Path, ...] = ()
    rebuild: str | None = None
    nothing: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb to its parser."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="run folder")
    parser.add_argument("--project")
    parser.add_argument("--entity")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--rebuild", action="store_true")
    parser.add_argument("--timeout", type=float, default=600)


def run(parsed: argparse.Namespace) -> None:
    """Run ``deephash sync``."""
    if not 0 < parsed.timeout < float("inf"):
        raise ConfigError(f"--timeout must be a number of seconds above 0, got {parsed.timeout:g}")
    with stopping():
        sync(parsed.paths, parsed.project, parsed.entity, parsed.dry_run, parsed.rebuild, parsed.timeout)


def sync(
    paths: Sequence[Path],
    project: str | None,
    entity: str | None,
    dry_run: bool,
    rebuild: bool,
    seconds: float,
) -> None:
    """Upload the runs at or below some paths.

    Args:
        paths: Run folders, or folders of runs.
        project: W&B project to upload to; None for the project in each run's settings.
        entity: W&B user or team; None for the entity in each run's settings.
        dry_run: Whether to print what would be done, without doing it.
        rebuild: Whether to log each run again from its folder, even if W&B already has it.
        seconds: Time limit for the upload of one run, in seconds.

    Raises:
        ConfigError: If there is no run, or no key for W&B.
        ArtifactError: If a run was not uploaded.
    """
    folders = results.find(paths)
    if not folders:
        raise ConfigError(f"no run in {' '.join(map(str, paths))}: give run folders, or folders of runs")
    counts: dict[str, int] = dict.fromkeys(("uploaded", "rebuilt", "nothing to upload", "failed"), 0)
    plans: list[Plan] = []
    for folder in folders:
        try:
            plan = _plan(folder, rebuild)
        except (DeephashError, OSError) as error:
            _failed(counts, folder, error)
            continue
        if plan.nothing:
            counts["nothing to upload"] += 1
            say(f"nothing to upload: {folder}: {plan.nothing}")
        else:
            plans.append(plan)
    if dry_run:
        for plan in plans:
            say(f"would upload: {plan.folder}: {_content(plan)}")
    elif plans:
        _do(plans, counts, project, entity, seconds)
    total = {"would upload": len(plans)} if dry_run else {}
    total |= {what: count for what, count in counts.items() if count}
    say(", ".join(f"{what} {count}" for what, count in total.items()))
    if counts["failed"]:
        raise ArtifactError(f"{counts['failed']} of {len(folders)} runs failed; run the command again for the rest")


def _do(plans: Sequence[Plan], counts: dict[str, int], project: str | None, entity: str | None, seconds: float) -> None:
    offline = dashboards.forced_mode() in (dashboards.OFFLINE, dashboards.DISABLED)
    if not offline:
        _require_server()
    late = 0  # consecutive uploads that timed out: with a server that hangs, not every run may wait
    for plan in plans:
        try:
            if late == _LATE:
                raise ArtifactError("not tried: the uploads before it timed out")
            with closing(runs.Run(plan.folder)):
                files = _rebuilt(plan.folder, project, entity) if plan.rebuild else plan.files
                if not offline:
                    _upload(plan.folder, files, project, entity, seconds)
        except Exception as error:  # the next run may succeed
            late += isinstance(error, _LateError)
            _failed(counts, plan.folder, error)
            continue
        late = 0
        done = "uploaded" if not offline else "rebuilt" if plan.rebuild else "nothing to upload"
        counts[done] += 1
        say(f"{done}: {plan.folder}: {'WANDB_MODE keeps it offline' if offline else _content(plan)}")


def _failed(counts: dict[str, int], folder: Path, error: BaseException) -> None:
    counts["failed"] += 1
    warn(f"failed: {folder}: {first_line(error)}")


def _content(plan: Plan) -> str:
    if plan.rebuild:
        return f"logged again from the run folder, because {plan.rebuild}"
    size = sum(file.stat().st_size for log in plan.files for file in log.parent.rglob("*") if file.is_file())
    return f"{plan.files[0].parent.name}, {size / 1e6:.1f} MB besides the codes"


def _plan(folder: Path, rebuild: bool) -> Plan:
    """Decide what to do with a run, from what W&B has logged and uploaded of it."""
    if runs.status(folder, runs.read_record(folder)) == "running":
        return Plan(folder, nothing="it is still running")
    state = dashboards.status(folder)
    logs = sorted(log for log in (folder / dashboards.FOLDER).glob("offline-run-*/*.wandb") if log.is_file())
    waiting = tuple(log for log in logs if not log.with_suffix(".wandb.synced").exists())
    if rebuild:
        return Plan(folder, rebuild="--rebuild was given")
    if not logs and (not _is_logged_to_wandb(folder) or state.get("status") == dashboards.DISABLED):
        return Plan(folder, nothing="it was not logged to W&B; --rebuild logs it now")
    if state.get("status") == dashboards.ONLINE and state.get("whole"):
        return Plan(folder, nothing="it was logged online")
    if logs and not waiting:
        return Plan(folder, nothing="it is already uploaded")
    if not logs:
        return Plan(folder, rebuild="W&B does not have all of it" if state else "W&B's log is missing")
    if state and not state.get("whole"):
        return Plan(folder, rebuild="W&B's log is incomplete")
    if (before := state.get("folder")) is not None and not _is_same(before, folder):
        return Plan(folder, rebuild="the folder was moved")  # W&B's log contains absolute paths
    if len(waiting) > 1:
        return Plan(folder, rebuild="it was interrupted and resumed")
    return Plan(folder, files=waiting)


def _is_same(recorded: object, folder: Path) -> bool:
    """Return whether a recorded path, which may have been edited, names a folder, whatever the current folder is."""
    try:
        return isinstance(recorded, str) and Path(recorded).resolve() == folder.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file can have
        return False


def _logger(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the W&B settings that a run was started with; empty if it had another logger."""
    logger = settings.get("logger")
    return logger if isinstance(logger, Mapping) and logger.get("_target_") in LOGGERS else {}


def _is_logged_to_wandb(folder: Path) -> bool:
    return bool(_logger(runs.read_config(folder)))


def _rebuilt(folder: Path, project: str | None, entity: str | None) -> tuple[Path, ...]:
    """Log a run again from its folder, in W&B's offline format. The logs that exist are renamed.

    Returns:
        The files of the new W&B log.

    Raises:
        ArtifactError: If the record of the run has no id, or W&B wrote no log.
    """
    record, settings = runs.read_record(folder), runs.read_config(folder)
    if not records.is_name(record.get("id")):
        raise ArtifactError(f"{runs.RECORD} has no id: it was written by another version or edited by hand")
    logger, place = _logger(settings), folder / dashboards.FOLDER
    _require_names(settings, logger)
    for old in place.glob("offline-run-*"):
        old.rename(_unused(place / f"replaced-{old.name}"))
    session = dashboards.Session(
        folder,
        record["id"],
        settings.get("group"),
        runs.redact(settings),
        dashboards.OFFLINE,
        project or logger.get("project") or PROJECT,
        entity or logger.get("entity"),
        list(logger.get("tags") or ()),
        again=True,
    )
    # A killed run is still recorded as running, and would be taken for running, since this process holds its lock.
    exit_code = runs.EXIT_CODES.get(record["status"], runs.EXIT_CODES["interrupted"])
    try:
        session.replay()
        if (folder / runs.METRICS).exists():
            session.log_results()
    except BaseException:
        session.finish(exit_code, is_whole=False)
        raise
    session.finish(exit_code)
    if not (logs := tuple(place.glob("offline-run-*/*.wandb"))):
        raise ArtifactError(f"W&B wrote no log into {place}")
    return logs


def _require_names(settings: Mapping[str, Any], logger: Mapping[str, Any]) -> None:
    """Check the settings that W&B shows as names.

    Raises:
        ArtifactError: If one of them is missing, or is no name.
    """
    dataset = settings.get("dataset")
    needed = {
        "method": settings.get("method"),
        "dataset.name": dataset.get("name") if isinstance(dataset, Mapping) else None,
    }
    if not is_number(settings.get("bits")):
        raise ArtifactError(f"{runs.CONFIG} has no bits: it was edited by hand")
    tags = logger.get("tags") or []
    texts = {"group": settings.get("group"), **{f"logger.{name}": logger.get(name) for name in ("project", "entity")}}
    named = {name: value for name, value in texts.items() if value is not None}
    for number, tag in enumerate(tags if isinstance(tags, list) else [tags]):
        named[f"logger.tags[{number}]"] = str(tag) if is_number(tag) else tag
    for name, value in {**needed, **named}.items():
        if not records.is_name(value):
            raise ArtifactError(f"{runs.CONFIG} has {name}={short(str(value))}, no name: it was edited by hand")


def _unused(path: Path) -> Path:
    number = 0
    while path.with_name(f"{path.name}{f'.{number}' if number else ''}").exists():
        number += 1
    return path.with_name(f"{path.name}{f'.{number}' if number else ''}")


def _require_server() -> None:
    """Check, within seconds, that there is a key for W&B and that its server answers.

    Raises:
        ConfigError: If there is no key.
        ArtifactError: If the server does not answer.
    """
    url = dashboards.server()
    if not dashboards.has_key():
        raise ConfigError(f"there is no key for W&B at {url}: run `wandb login`, or set WANDB_API_KEY")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/graphql", timeout=SECONDS_TO_ANSWER):
            pass
    except (urllib.error.HTTPError, ssl.SSLError):
        pass  # an error of the server is an answer, too
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise ArtifactError(f"W&B at {url} does not answer ({error.reason}): nothing was uploaded") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"W&B at {url} does not answer ({first_line(error)}): nothing was uploaded") from error


def _upload(folder: Path, files: Sequence[Path], project: str | None, entity: str | None, seconds: float) -> None:
    """Upload W&B logs with W&B's own command.

    Raises:
        ArtifactError: If the upload failed or timed out.
    """
    command = [sys.executable, "-P", "-m", "wandb", "sync", "--no-include-synced"]
    for option, value in (("--project", project), ("--entity", entity)):
        command += [option, value] if value else []
    command += [str(file.parent.absolute()) for file in files]
    said = _finish(command, {**dashboards.environment(folder), **_IMPATIENT}, seconds)
    if said is None:
        raise _LateError(f"the upload took longer than {seconds:g} s: raise --timeout; what was uploaded is kept")
    if not all(file.with_suffix(".wandb.synced").exists() for file in files):
        lines = [line.removeprefix("wandb: ").removeprefix("ERROR ") for line in said.splitlines() if line.strip()]
        errors = [line for line in said.splitlines() if "ERROR" in line]
        reason = errors[0].removeprefix("wandb: ERROR ") if errors else lines[-1] if lines else "W&B gave no reason"
        raise ArtifactError(reason)


def _finish(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> str | None:
    """Run a program without a terminal, and kill it if it exceeds a time limit.

    Args:
        command: The program and its arguments.
        environment: Environment variables to add to those of this process.
        seconds: Time limit in seconds.

    Returns:
        The output of the program; None if it did not end in time.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
        process.wait()
        if process.stdout:
            process.stdout.close()

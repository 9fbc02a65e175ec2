"""Start a verb under Hydra: check the command, let Hydra compose it, turn known errors into one sentence."""

import argparse
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deephash_cli.choices import CONF_DIR
from deephash_cli.cli import verbs
from deephash_cli.cli.arguments import normalize, refuser
from deephash_cli.cli.checking import check
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, Stopped, SweepError, print_error
from deephash_cli.stopping import stopping


def launch(verb: str, typed: Sequence[str]) -> int:
    """Check a command, let Hydra run it, and return its exit code.

    Args:
        verb: A verb that has a configuration.
        typed: The words after the verb.
    """
    arguments = [normalize(argument, verb) for argument in typed]
    parsed = parse_options(verb, arguments)
    overrides = _take_up(list(parsed.overrides), parsed.multirun)
    if parsed.multirun and not any(override.startswith("group=") for override in overrides):
        relevant = sorted(o for o in overrides if not o.startswith(("logger", "resume=", "hydra", "runs=")))
        overrides.append(f"group=sweep-{hashlib.sha256(' '.join(relevant).encode()).hexdigest()[:8]}")
    overrides, source = take_dataset(verb, overrides, parsed.config_dir)
    config = None if parsed.hydra_help else check(verb, overrides, parsed.config_dir, parsed.multirun)
    options = [argument for argument in arguments if argument not in parsed.overrides]
    if config is None or parsed.cfg or parsed.info:
        return run_hydra(verb, [*overrides, *options], _nothing)
    with stopping():
        if parsed.multirun:
            return _sweep(Path(config.runs), config.group, [*overrides, *options])
        return run_hydra(verb, [*overrides, *options], _task(verb, *([source] if source else [])))


def take_dataset(verb: str, overrides: list[str], config_dir: str | None) -> tuple[list[str], Any]:
    """Of ``encode`` the settings of a data set, which is one of ``train``, and the other settings.

    Returns:
        The others, and the node that builds the data set, if there is one.
    """
    chosen = [text for text in overrides if verb == "encode" and text.startswith(("dataset=", "dataset."))]
    source = check("train", chosen, config_dir, multirun=False).dataset.source if chosen else None
    return [text for text in overrides if text not in chosen], source


def parse_options(verb: str, arguments: list[str]) -> argparse.Namespace:
    """Read Hydra's own options, wherever they stand, and refuse those that would go round ``check``."""
    from hydra._internal.utils import get_args_parser

    refuse = refuser(verb)
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_intermixed_args(arguments)
    for option in ("config_path", "config_name", "experimental_rerun"):
        if getattr(parsed, option) is not None:
            refuse(f"deephash has no --{option.replace('_', '-')}: your own configuration goes into --config-dir")
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise ConfigError(f"--config-dir {parsed.config_dir} is not a folder")
    if parsed.multirun and verb != "train":
        raise ConfigError(f"deephash {verb} has no sweeps; -m goes with train")
    if parsed.multirun and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("torchrun starts the processes of one run: leave out -m, or give it a launcher of Hydra")
    if parsed.multirun and (parsed.run or parsed.cfg or parsed.info):
        raise ConfigError("--cfg, --info and --run are about a single run: leave out -m")
    return parsed


def _sweep(root: Path, group: str, arguments: list[str]) -> int:
    """Run every combination, then print the table."""
    from deephash_cli import runs
    from deephash_cli.cli import sweep
    from deephash_cli.training.fit import load_dataset

    load_dataset.cache_clear()
    runs.check_writable(root)
    folder = root / ".sweeps" / group
    sweep.begin(folder)
    try:
        code = run_hydra("train", arguments, _train_job)
    except Stopped:
        with contextlib.suppress(SweepError):  # that it was stopped matters more than jobs that had failed before
            sweep.conclude(folder)
        raise
    finally:
        (folder / "multirun.yaml").unlink(missing_ok=True)  # Hydra's copy of what was typed, secrets and all
    if code == 0:
        sweep.conclude(folder)
    return code


def _take_up(overrides: list[str], multirun: bool) -> list[str]:
    """Settle ``resume``: a sweep does what is missing; a run folder brings the settings that it was started with."""
    named = [override.removeprefix("resume=") for override in overrides if override.startswith("resume=")]
    if not named:
        return [*overrides, "resume=auto"] if multirun else overrides
    if named[-1] in ("auto", "none"):
        return overrides
    if multirun:
        raise ConfigError("a sweep finds its own runs again: use resume=auto or resume=none with -m")
    from deephash_cli.runs import read_record

    name = named[-1].strip("'\"")
    folder = Path(name)
    if not name or not folder.is_dir():
        raise ConfigError(f"resume must be auto, none or a run folder, got {name!r}, which is not a folder")
    return [*_settings_of(folder, read_record(folder)["overrides"]), *overrides]


def _settings_of(folder: Path, overrides: Sequence[str]) -> list[str]:
    """What a run was started with, as far as a run folder may decide it.

    The folder may come from somebody else: it cannot configure Hydra, whose callbacks and launchers are code, nor say
    whose classes are to be trusted.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ArtifactError(f"{folder} was started with settings that cannot be read; it was edited by hand") from error
    kept = []
    for text, override in zip(overrides, parsed, strict=True):
        name = re.split(r"[./@]", override.key_or_group)[0]
        if name not in ("hydra", "resume", "run_dir", "group", "allowed_targets") and override.package is None:
            kept.append(text)
    return kept


def run_hydra(verb: str, arguments: list[str], task: Callable[[Any], Any]) -> int:
    """Run a task under Hydra, which takes its arguments from the process."""
    import hydra

    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=verb)(task)()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1
    finally:
        sys.argv = before
    return 0


def _nothing(config: Any) -> None:
    """Hydra prints what was asked for itself."""


def _task(verb: str, *more: Any) -> Callable[[Any], None]:
    """Return what Hydra calls with the configuration of a verb; ``more`` are the verb's other arguments."""

    def work(config: Any) -> None:
        _known_errors(lambda: verbs.load(verb).run(config, *more))

    return work


def _train_job(config: Any) -> float | None:
    """One job of a sweep; what it returns is for a search."""
    from hydra.core.hydra_config import HydraConfig

    from deephash_cli.cli.sweep import is_search, run_job
    from deephash_cli.runs import hide_in_override
    from deephash_cli.training.fit import train

    job = HydraConfig.get()
    typed = list(job.overrides.task)
    telling = [override for override in typed if not override.startswith(("resume=", "group=", "logger="))]
    shown = [hide_in_override(override) for override in telling]
    searching = is_search(job.sweeper)
    if searching and not config.validation.queries:
        _known_errors(_refuse_search)
    return run_job(Path(job.sweep.dir), int(job.job.num), shown, lambda: train(config, typed), searching)


def _refuse_search() -> None:
    raise ConfigError("a search needs validation queries to choose settings by: validation.queries=500")


def _known_errors(work: Callable[[], Any]) -> None:
    """Print an error that a user can cause as one sentence; anything else is a bug and keeps its traceback."""
    try:
        work()
    except DeephashError as error:
        print_error(error)
        raise SystemExit(error.exit_code) from error

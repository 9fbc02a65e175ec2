"""Start a verb under Hydra: check the command, let Hydra compose the settings, print known errors as one sentence."""

import argparse
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deephash_cli.choices import CONF_DIR
from deephash_cli.cli import verbs
from deephash_cli.cli.arguments import dataset_names, name_words, normalize, refuser, value_of
from deephash_cli.cli.checking import check, checked, first_job
from deephash_cli.cli.hydra_keys import refuse_without_sweep
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, Stopped, SweepError, print_error
from deephash_cli.failures import explained
from deephash_cli.hiding import HIDDEN
from deephash_cli.stopping import stopping


def launch(verb: str, typed: Sequence[str]) -> int:
    """Check a command, let Hydra run it, and return its exit code.

    Args:
        verb: A verb that has a configuration.
        typed: The words after the verb.
    """
    arguments = [normalize(word, verb) if word.startswith("--") else word for word in typed]  # index --check
    parsed = parse_options(verb, arguments)
    settings = [normalize(setting, verb, parsed.multirun) for setting in parsed.overrides]
    overrides = _take_up(settings, parsed.multirun)
    if parsed.multirun and not any(override.startswith("group=") for override in overrides):
        relevant = sorted(o for o in overrides if not o.startswith(("logger", "resume=", "hydra", "runs=")))
        overrides.append(f"group=sweep-{hashlib.sha256(' '.join(relevant).encode()).hexdigest()[:8]}")
    overrides, nodes = take_datasets(verb, overrides, parsed.config_dir)
    options = [argument for argument in arguments if argument not in parsed.overrides and argument != "--"]
    if parsed.hydra_help:
        return run_hydra(verb, options)
    config = checked(verb, overrides, parsed.config_dir, parsed.multirun)
    if parsed.cfg or parsed.info:
        _require_package(config, parsed.package)
        if parsed.multirun:  # Hydra prints one configuration: that of the first job
            overrides = first_job(overrides)
            options = [f"-{option[2:]}" if option.startswith("-m") else option for option in options]
            options = [option for option in options if option not in ("-", "--multirun")]
        return run_hydra(verb, [*overrides, *options])
    if not parsed.multirun:
        refuse_without_sweep(settings)
    with stopping():
        if parsed.multirun:
            return _sweep(Path(config.runs), config.group, overrides, options)
        return run_composed(verb, config, [*overrides, *options], _task(verb, *nodes))


def take_datasets(verb: str, overrides: list[str], config_dir: str | None) -> tuple[list[str], list[Any]]:
    """Split the overrides of ``encode`` and ``data`` into those for a data set, which ``train`` defines, and the rest.

    Args:
        verb: The verb; for any other verb, all overrides are the rest.
        overrides: Overrides, already passed through ``normalize``.
        config_dir: The user's own configuration folder; None if there is none.

    Returns:
        The rest, and what the verb is called with beside its configuration: for ``encode`` the node that builds the
        data set, for ``data`` the node of the data set and that of the one to compare with, each of which is None if
        it is not given. The list is empty if no data set is given.

    Raises:
        ConfigError: If the settings of a data set are wrong, or a word behind ``data`` has no meaning.
    """
    if verb not in ("encode", "data"):
        return overrides, []
    if verb == "data":
        overrides = name_words(overrides, config_dir)
    chosen = [text for text in overrides if text.startswith(("dataset=", "dataset."))]
    rest = [text for text in overrides if text not in chosen]
    if verb == "data" and chosen and not any(text.startswith("dataset=") for text in chosen):
        raise ConfigError(f"{chosen[0].partition('=')[0]} is a setting of a data set: name the data set before it")
    node = check("train", chosen, config_dir, multirun=False).dataset if chosen else None
    if verb == "encode":
        return rest, [node.source] if node is not None else []
    known = dataset_names(config_dir)
    others = [text for text in rest if text.removeprefix("against=") in known and text.startswith("against=")]
    against = check("train", [f"dataset={others[-1].removeprefix('against=')}"], config_dir, False) if others else None
    return [text for text in rest if text not in others], [node, against and against.dataset]


def parse_options(verb: str, arguments: list[str]) -> argparse.Namespace:
    """Parse Hydra's own options, anywhere on the command line, and refuse those that would bypass ``check``.

    Raises:
        ConfigError: If an option is unknown or refused, or does not fit the verb.
    """
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
        raise ConfigError(f"deephash {verb} has no sweeps: only train takes -m")
    if parsed.multirun and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("torchrun starts the processes of one run: drop -m, or run the sweep with a Hydra launcher")
    if parsed.multirun and parsed.run:
        raise ConfigError("--run is for a single run: leave out -m")
    return parsed


def _require_package(config: Any, package: str | None) -> None:
    """Refuse ``--package`` if the configuration has no such part. Hydra's own part is not in ``config``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if package is None or package.split(".")[0] in ("hydra", "_global_"):
        return
    try:
        found = OmegaConf.select(config, package)
    except (OmegaConfBaseException, ValueError):
        found = None
    if found is None:
        raise ConfigError(f"--package {package} is no part of the configuration; its parts are: {', '.join(config)}")


def _sweep(root: Path, group: str, overrides: list[str], options: list[str]) -> int:
    """Run every combination of a sweep, print its table, and return the exit code."""
    from deephash_cli import runs
    from deephash_cli.cli import sweep
    from deephash_cli.training import datasets

    datasets.forget()
    runs.check_writable(root)
    folder = root / ".sweeps" / group
    with sweep.begun(folder) as records:
        arguments = [*overrides, f"hydra.sweep.subdir={records.name}", *options]
        try:
            code = run_hydra("train", arguments, _train_job)
            if code == 0 and sweep.is_left(records):
                code = run_hydra("train", arguments, _train_job)
        except Stopped:
            with contextlib.suppress(SweepError):  # the stop decides the exit code, even if jobs failed before
                sweep.conclude(records)
            raise
        finally:
            (folder / "multirun.yaml").unlink(missing_ok=True)  # Hydra's copy of the command line, including secrets
        if code == 0:
            sweep.conclude(records)
    return code


def _take_up(overrides: list[str], multirun: bool) -> list[str]:
    """Apply ``resume``: a sweep gets ``resume=auto``; a run folder adds the settings that its run was started with."""
    named = [value_of(override) for override in overrides if override.startswith("resume=")]
    if not named:
        return [*overrides, "resume=auto"] if multirun else overrides
    if named[-1] in ("auto", "none"):
        return overrides
    if multirun:
        raise ConfigError("a sweep finds its existing runs by itself: use resume=auto or resume=none with -m")
    from deephash_cli.runs import read_config, read_record

    name = str(named[-1])
    folder = Path(name)
    if not name or not folder.is_dir():
        raise ConfigError(f"resume must be auto, none or a run folder, got {name!r}, which is not a folder")
    started_with = _settings_of(folder, read_record(folder)["overrides"])
    return [*_earlier_preprocessing(read_config(folder)), *started_with, *overrides]


def _earlier_preprocessing(settings: Mapping[str, Any]) -> list[str]:
    """Return settings that have a run of an earlier version prepare images as it did, when no crop was a setting.

    Then models had the same mean, standard deviation and size, whatever the weights were trained with.
    """
    model = settings.get("model")
    network = model.get("network") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(network, Mapping) or "crop" in network:
        return []
    kept = [f"model.network.{name}" for name in ("crop=1.0", "crop_mode=square", "interpolation=bilinear")]
    kept += [
        f"model.network.{name}=[{','.join(map(str, values))}]"
        for name in ("mean", "std")
        if isinstance(values := network.get(name), list)
        and all(isinstance(value, int | float) for value in values)  # the folder may come from somebody else
    ]
    if isinstance(size := model.get("image_size"), int):
        kept += [f"model.image_size={size}", *(["model.network.backbone.image_size=null"] * ("timm_name" in model))]
    return kept


def _settings_of(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return the settings that a run was started with, without those that a run folder must not decide.

    The folder may come from somebody else. It must not configure Hydra, whose callbacks and launchers are code, say
    which packages are trusted, or have anything downloaded. Hidden settings are left out; if they decide the result,
    they are missed later.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    overrides = [text for text in overrides if not text.endswith(f"={HIDDEN}")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ArtifactError(f"the settings in {folder} cannot be read: its record was edited by hand") from error
    kept = []
    for text, override in zip(overrides, parsed, strict=True):
        parts = re.split(r"[./@]", override.key_or_group)
        of_command = parts[0] in ("hydra", "resume", "run_dir", "group", "allowed_targets") or parts[-1] == "download"
        if not of_command and override.package is None:
            kept.append(text)
    return kept


def run_hydra(verb: str, arguments: list[str], task: Callable[[Any], Any] = lambda _: None) -> int:
    """Run a task under Hydra and return its exit code. Hydra reads ``sys.argv``, which is replaced for the call.

    Without a task Hydra still prints what ``--cfg``, ``--info``, ``--hydra-help`` and the shell's completion ask for.
    """
    import hydra

    return _exit_code(arguments, hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=verb)(task))


def run_composed(verb: str, config: Any, arguments: list[str], task: Callable[[Any], Any]) -> int:
    """Run a task under Hydra with a configuration that is composed already, and return its exit code.

    ``hydra.main`` would compose it twice more, which takes as long as an evaluation.

    Args:
        verb: The verb.
        config: Its configuration, with Hydra's own settings.
        arguments: The words that ``sys.argv`` has meanwhile: processes that Lightning starts repeat them.
        task: Called with the configuration without Hydra's settings.
    """
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path, run_and_report
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import configure_log

    class Composed(Hydra):
        def compose_config(self, *_: Any, **__: Any) -> Any:
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)
            return config

    def run() -> None:
        try:
            hydra = Composed.create_main_hydra2(verb, create_config_search_path(str(CONF_DIR)))
            run_and_report(lambda: hydra.run(config_name=verb, task_function=task, overrides=[]))
        finally:
            GlobalHydra.instance().clear()

    return _exit_code(arguments, run)


def _exit_code(arguments: list[str], run: Callable[[], Any]) -> int:
    """Run Hydra while ``sys.argv`` has these arguments, and return the exit code."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        run()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1
    finally:
        sys.argv = before
    return 0


def _task(verb: str, *more: Any) -> Callable[[Any], None]:
    """Return the function that Hydra calls with the configuration of a verb; ``more`` is passed to the verb, too."""

    def work(config: Any) -> None:
        _known_errors(lambda: verbs.load(verb).run(config, *more))

    return work


def _train_job(config: Any) -> float | None:
    """Run one job of a sweep, and return the value that a search maximises; None if the job has no such value."""
    from hydra.core.hydra_config import HydraConfig

    from deephash_cli import phases
    from deephash_cli.cli.sweep import is_search, run_job
    from deephash_cli.runs import escape, hide_in_override
    from deephash_cli.training.fit import train

    phases.restart()
    job = HydraConfig.get()
    typed = escape(list(job.overrides.task))  # reading resolved it
    telling = [override for override in typed if not override.startswith(("resume=", "group=", "logger="))]
    shown = [hide_in_override(override) for override in telling]
    searching = is_search(job.sweeper)
    if searching and not config.validation.queries:
        _known_errors(_refuse_search)
    records = Path(job.sweep.dir) / job.sweep.subdir
    return run_job(records, int(job.job.num), shown, lambda: train(config, typed), searching)


def _refuse_search() -> None:
    raise ConfigError("a search needs validation queries, by which it chooses settings: add validation.queries=500")


def _known_errors(work: Callable[[], Any]) -> None:
    """Print an error that a user can cause as one sentence; any other error is a bug and keeps its traceback."""
    try:
        with explained():
            work()
    except DeephashError as error:
        print_error(error)
        raise SystemExit(error.exit_code) from error

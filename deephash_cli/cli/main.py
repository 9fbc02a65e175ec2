"""The command line: verbs, help, exit codes, and what Hydra does not do by itself. Imports nothing heavy at the top.

Hydra composes the configuration and launches jobs. Before it gets to see the command, ``run`` strips the verb,
``quote_bits`` makes numbers choices of the group ``bits``, and ``checking.check`` refuses what cannot work.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from deephash_cli import __version__
from deephash_cli.choices import CONF_DIR, choices, group_names
from deephash_cli.cli import arguments as verbs
from deephash_cli.cli.checking import check
from deephash_cli.cli.limits import LONGEST
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, Stopped, SweepError, hint
from deephash_cli.stopping import stopping

HELP_DIR = Path(__file__).resolve().parent / "help"

VERBS = {
    "train": "train a method, write binary codes, report mAP and precision@k",
    "eval": "recompute every number of a run from its codes alone, or score anybody's codes",
    "encode": "binary codes of your own images with a run's network, in shards; resumes",
    "search": "the nearest images of an image, as a table, JSON and a picture",
    "index": "build a faiss index of codes, and measure its recall and speed against exact search",
    "export": "codes for faiss, PostgreSQL, Parquet, vector databases; the network as torch.export or ONNX",
    "serve": "a web page and an HTTP API on this machine: drop an image, see the nearest",
    "compare": "a table of runs, method by code length, on the terminal or as CSV, JSON, LaTeX, Markdown",
    "report": "one HTML file of runs: tables, charts, what queries found; opens from disk, needs no network",
    "runs": "list runs: finished, running, failed, interrupted; those of some settings, in some order",
    "sync": "upload to W&B what was logged offline; log a run anew from its folder",
    "methods": "list the methods: what each learns from, its paper, where it is written",
}

EXAMPLES = """\
  deephash train method=dpsh bits=48                        the default: Fashion-MNIST, minutes on a CPU
  deephash train -m bits=12,24,48 seed=1,2,3                a sweep; again, it does only what is missing
  deephash train dataset=image_folder dataset.root=photos   your own images, one sub-folder a class
  deephash train resume=auto                                go on with the same run after an interruption
  deephash eval run=runs/<folder>                           every number again, from the codes on disk
  deephash search query=photo.jpg                           the nearest images, as a table and a picture
  deephash serve                                            the same as a page: drop an image
  deephash encode input=photos output=codes                 codes of any images with the newest run's network
  deephash index run=runs/<folder> kind=hnsw --check        a faiss index, its recall and speed
  deephash export run=runs/<folder> to=faiss output=out     codes or network for other engines
  deephash compare runs                                     method by length: mean and deviation over seeds
  deephash report runs -o report.html                       tables, charts and images of runs in one HTML file
  deephash runs status=failed                               what has become of your runs
  deephash sync runs                                        upload to W&B what was logged without a key
  deephash methods                                          what method= can be
  deephash train --cfg job                                  the whole configuration"""

HELP = f"""\
deephash {__version__}: learn binary codes for images and measure them the same way every time

Verbs:
{{verbs}}

Examples:
{EXAMPLES}

deephash <verb> --help lists its choices and settings. deephash --version tells the versions.
Shell completion: eval "$(deephash -sc install=bash)"   (or zsh, fish)
Exit codes: 0 done, 2 usage, 3 data, 4 checkpoint or codes, 5 diverged, 6 jobs of a sweep failed, 130 Ctrl-C, 1 bug"""

# What the verbs that Hydra configures call, besides train: a function that takes the configuration.
TASKS = {
    "eval": "eval.evaluate",
    "encode": "encode.encode",
    "search": "search.search",
    "index": "index.index",
    "export": "export.export",
    "serve": "serve.serve",
}


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ± is no reason to fail
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `deephash --help | head` ends quietly
    gc.set_threshold(50_000)  # looking for garbage again and again while thousands of modules load costs half a second
    code = run(sys.argv[1:])
    gc.freeze()  # nor is there anything to find at the end, when Python would look at every object of every module
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print_help()
            return 0
        if arguments[0] == "--version":
            print_version()
            return 0
        if arguments[0] in ("-sc", "--shell-completion"):
            return complete(arguments)
        verb, rest = arguments[0], list(arguments[1:])
        if verb not in VERBS:
            raise ConfigError(f"unknown verb {verb!r}{hint(verb, VERBS)}; verbs: {', '.join(VERBS)}")
        if any(argument in ("-h", "--help") for argument in rest):
            print_verb_help(verb)
            return 0
        if "--version" in rest:
            print_version()
            return 0
        if verb == "methods":
            return _methods(rest)
        if verb in verbs.RUN:
            verbs.RUN[verb](rest)
            return 0
        return _launch(verb, [normalize(argument, verb) for argument in rest])
    except DeephashError as error:
        _print_error(error)
        return error.exit_code
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130


def quote_bits(override: str) -> str:
    """Turn ``bits=12,24`` into ``bits='12','24'``: Hydra only accepts strings as choices of a group."""
    if not override.startswith("bits="):
        return override
    lengths = override.removeprefix("bits=").split(",")
    return "bits=" + ",".join(f"'{n}'" if re.fullmatch(r"[+-]?[\d.]+", n) else n for n in lengths)


def normalize(argument: str, verb: str = "train") -> str:
    """Accept what users type: numbers of bits, and ``+experiment=`` (as many projects have it) for ``experiment=``.

    ``bits`` is a group of ``train``, and Hydra would take ``eval bits=20`` for a choice of it, which need not exist.
    ``index --check`` reads better than ``check=true``, and Hydra knows no options of ours.
    """
    name, equals, value = argument.lstrip("+").partition("=")
    if verb == "index" and argument == "--check":
        return "check=true"
    if verb == "eval":
        return f"code_bits={value}" if equals and name == "bits" else argument
    return quote_bits(argument.lstrip("+") if equals and name in group_names() else argument)


def print_help() -> None:
    """Print the verbs and examples."""
    _print(HELP.format(verbs="\n".join(f"  {verb:9}{text}" for verb, text in VERBS.items())))


def print_version() -> None:
    """Print the versions of what a result depends on, without importing any of it."""
    packages = ("torch", "pytorch-lightning", "hydra-core", "numpy")
    _print(f"deephash {__version__} ({', '.join(f'{name} {metadata.version(name)}' for name in packages)})")


def print_verb_help(verb: str) -> None:
    """Print what can be chosen and set, read from the configuration folder."""
    more = {"bits": f", or any whole number from 1 to {LONGEST}"}
    groups = "\n".join(f"  {name:<12}{', '.join(choices(name))}{more.get(name, '')}" for name in group_names())
    _print(verb_help(verb).replace("{groups}", f"Groups and their choices:\n{groups}"))


def verb_help(verb: str) -> str:
    """The help of a verb, from its file."""
    return (HELP_DIR / f"{verb}.txt").read_text(encoding="utf-8").rstrip().replace("{examples}", EXAMPLES)


def complete(arguments: Sequence[str]) -> int:
    """Answer the shell's completion: the verbs here, everything else by Hydra."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if arguments[1:] and arguments[1].startswith("query="):
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            prefix = words[1] if len(words) == 2 else ""
            _print(" ".join(verb for verb in VERBS if verb.startswith(prefix)))
            return 0
        if words[1] == "methods":
            started = "" if line.endswith(" ") else words[-1]
            _print(" ".join(name for name in choices("method") if name.startswith(started)))
            return 0
        if words[1] in verbs.RUN or words[1] not in VERBS:
            return 0
        shorter = line.replace(f" {words[1]}", "", 1)
        os.environ["COMP_LINE"] = shorter
        os.environ["COMP_POINT"] = str(len(shorter))
        return _hydra(words[1], list(arguments), _nothing)
    return _hydra("train", list(arguments), _nothing)


def _methods(arguments: list[str]) -> int:
    """Print the table of methods."""
    from deephash_cli.commands.methods import show_methods

    parsed = _parse("methods", arguments)
    if len(parsed.overrides) > 1:
        raise ConfigError(f"deephash methods takes the name of one method, got {' '.join(parsed.overrides)}")
    folder = None if parsed.config_dir is None else Path(parsed.config_dir)
    show_methods(folder, *(parsed.overrides or [None]))
    return 0


def _launch(verb: str, arguments: list[str]) -> int:
    """Check the command, then let Hydra run it."""
    parsed = _parse(verb, arguments)
    overrides = _take_up(list(parsed.overrides), parsed.multirun)
    if parsed.multirun and not any(override.startswith("group=") for override in overrides):
        relevant = sorted(o for o in overrides if not o.startswith(("logger", "resume=", "hydra", "runs=")))
        overrides.append(f"group=sweep-{hashlib.sha256(' '.join(relevant).encode()).hexdigest()[:8]}")
    overrides, source = take_dataset(verb, overrides, parsed.config_dir)
    config = None if parsed.hydra_help else check(verb, overrides, parsed.config_dir, parsed.multirun)
    options = [argument for argument in arguments if argument not in parsed.overrides]
    if config is None or parsed.cfg or parsed.info:
        return _hydra(verb, [*overrides, *options], _nothing)
    with stopping():
        if verb in TASKS:
            return _hydra(verb, [*overrides, *options], _task(verb, *([source] if source else [])))
        if not parsed.multirun:
            return _hydra(verb, [*overrides, *options], _train)
        return _sweep(Path(config.runs), config.group, [*overrides, *options])


def take_dataset(verb: str, overrides: list[str], config_dir: str | None) -> tuple[list[str], Any]:
    """Of ``encode`` the settings of a data set, which is one of ``train``, and the other settings.

    Returns:
        The others, and the node that builds the data set, if there is one.
    """
    chosen = [text for text in overrides if verb == "encode" and text.startswith(("dataset=", "dataset."))]
    source = check("train", chosen, config_dir, multirun=False).dataset.source if chosen else None
    return [text for text in overrides if text not in chosen], source


def _parse(verb: str, arguments: list[str]) -> argparse.Namespace:
    """Read Hydra's own options, wherever they stand, and refuse those that would go round ``check``."""
    from hydra._internal.utils import get_args_parser

    refuse = verbs.refuser(verb)
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
    from deephash_cli.commands.train import load_dataset

    load_dataset.cache_clear()
    runs.check_writable(root)
    folder = root / ".sweeps" / group
    sweep.begin(folder)
    try:
        code = _hydra("train", arguments, _train_job)
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


def _hydra(verb: str, arguments: list[str], task: Callable[[Any], Any]) -> int:
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
    """What Hydra is to run for a verb, with what the verb takes besides its configuration."""
    module, name = TASKS[verb].split(".")

    def work(config: Any) -> None:
        task = getattr(importlib.import_module(f"deephash_cli.commands.{module}"), name)
        _known_errors(lambda: task(config, *more))

    return work


def _train(config: Any) -> None:
    from hydra.core.hydra_config import HydraConfig

    from deephash_cli import processes
    from deephash_cli.commands.eval import show
    from deephash_cli.commands.train import follow, load_dataset, train
    from deephash_cli.console import say

    def work() -> None:
        load_dataset.cache_clear()
        try:
            metrics = train(config, list(HydraConfig.get().overrides.task))
        finally:
            processes.dismiss()
        show(metrics)
        say(f"run folder: {metrics['run_dir']}")
        say(f"every number again from the codes: deephash eval run={metrics['run_dir']}")
        say(f"as a page with charts and pictures: deephash report {metrics['run_dir']}")

    _known_errors(work if processes.is_first() else follow)


def _train_job(config: Any) -> float | None:
    """One job of a sweep; what it returns is for a search."""
    from hydra.core.hydra_config import HydraConfig

    from deephash_cli.cli.sweep import is_search, run_job
    from deephash_cli.commands.train import train
    from deephash_cli.runs import hide_in_override

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
        _print_error(error)
        raise SystemExit(error.exit_code) from error


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_error(error: DeephashError) -> None:
    sys.stderr.write(f"error: {error}\n")

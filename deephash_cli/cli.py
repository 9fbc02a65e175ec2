"""The command line: verbs, help, exit codes, and what Hydra does not do by itself. Imports nothing heavy at the top.

Hydra composes the configuration and launches jobs. Before it gets to see the command, ``run`` strips the verb,
``quote_bits`` makes numbers choices of the group ``bits``, and ``check`` refuses unknown keys, choices, types and
ranges in one sentence, before torch is imported.
"""

import argparse
import contextlib
import difflib
import hashlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from deephash_cli import __version__
from deephash_cli.errors import ArtifactError, ConfigError, DeephashError, Stopped, SweepError, first_line

_PACKAGE = Path(__file__).resolve().parent
# In a wheel the configuration is inside the package, in a checkout beside it.
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

VERBS = {
    "train": "train a method, write binary codes, report mAP and precision@k",
    "eval": "recompute every number of a run from its codes alone",
}

EXAMPLES = """\
  deephash train method=dpsh bits=48                        the default: Fashion-MNIST, minutes on a CPU
  deephash train -m bits=12,24,48 seed=1,2,3                a sweep; again, it does only what is missing
  deephash train dataset=image_folder dataset.root=photos   your own images, one sub-folder a class
  deephash train resume=auto                                go on with the same run after an interruption
  deephash eval run=runs/<folder>                           every number again, from the codes on disk
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

VERB_HELP = {
    "train": """\
deephash train [group=choice ...] [key=value ...] [-m] [Hydra's options]

{groups}

The most used settings (deephash train --cfg job prints all, with your changes):
  seed=0                        of everything random in the training
  trainer.max_epochs=30         how long
  optimizer.lr=0.001            of the new layers; backbone_lr=0.0001 of the pretrained ones
  model.frozen=true             compute the backbone's features once and train what is above it
  dataset.root=<folder>         where the data are
  dataset.protocol=s1           how they are divided: s1, s1_disjoint, s2, official, holdout
  validation.queries=0          training images held out to choose the best checkpoint
  run_dir=<folder>              the run folder (default: a new one under runs/)
  resume=auto|none|<folder>     go on with the run of the same settings, or with that one
  -m, --multirun                a sweep: every combination of comma-separated values
  --cfg job                     print the configuration and stop
  --config-dir <folder>         a folder with your own choices, such as method/mine.yaml or bits/20.yaml

Examples:
"""
    + EXAMPLES,
    "eval": """\
deephash eval run=<run folder> | codes=<codes folder> [key=value ...]

Settings:
  run=<folder>                  a run folder
  codes=<folder>                or a folder with query.npy, database.npy, their labels and ids, and manifest.json
  output=<file>                 write the metrics to a JSON file
  ks=[1,10,100]                 cut-offs of precision and recall (default: those of the run)
  map_at=[1000]                 cut-offs R of mAP@R
  radius=2                      of the Hamming ball

Examples:
  deephash eval run=runs/<folder>
  deephash eval codes=runs/<folder>/codes ks=[10,100] output=metrics.json""",
}

# Lowest and highest value of settings that have them; None: no limit.
RANGES: dict[str, tuple[float, float | None]] = {
    "bits": (1, 4096),
    "seed": (0, 2**31 - 1),
    "dataset.split_seed": (0, 2**31 - 1),
    "trainer.max_epochs": (1, None),
    "loader.batch_size": (2, None),
    "loader.eval_batch_size": (1, None),
    "loader.num_workers": (0, None),
    "model.image_size": (8, None),
    "model.network.hidden_units": (0, None),
    "model.network.dropout": (0, 1),
    "optimizer.lr": (0, None),
    "optimizer.weight_decay": (0, None),
    "backbone_lr": (0, None),
    "loss.quantization_weight": (0, None),
    "validation.queries": (0, None),
    "validation.every_n_epochs": (1, None),
    "checkpoint.every_n_epochs": (1, None),
    "metrics.radius": (0, None),
    "radius": (0, None),
}
# Lists of ranks.
RANKS = ("metrics.ks", "dataset.map_at", "ks", "map_at")
# Settings without a default that are text.
TEXTS = (
    "run_dir", "runs", "resume", "group", "dataset.root", "dataset.file", "dataset.split_file", "dataset.train",
    "dataset.query", "dataset.database", "run", "codes", "output",
)  # fmt: skip


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `deephash --help | head` ends quietly
    sys.exit(run(sys.argv[1:]))


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
            raise ConfigError(f"unknown verb {verb!r}{_hint(verb, VERBS)}; verbs: {', '.join(VERBS)}")
        if any(argument in ("-h", "--help") for argument in rest):
            print_verb_help(verb)
            return 0
        if "--version" in rest:
            print_version()
            return 0
        return _launch(verb, [normalize(argument) for argument in rest])
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


def normalize(argument: str) -> str:
    """Accept what users type: numbers of bits, and ``+experiment=`` (as many projects have it) for ``experiment=``."""
    name, equals, _ = argument.lstrip("+").partition("=")
    return quote_bits(argument.lstrip("+") if equals and name in group_names() else argument)


def print_help() -> None:
    """Print the verbs and examples."""
    _print(HELP.format(verbs="\n".join(f"  {verb:8}{text}" for verb, text in VERBS.items())))


def print_version() -> None:
    """Print the versions of what a result depends on, without importing any of it."""
    packages = ("torch", "pytorch-lightning", "hydra-core", "numpy")
    _print(f"deephash {__version__} ({', '.join(f'{name} {metadata.version(name)}' for name in packages)})")


def print_verb_help(verb: str) -> None:
    """Print what can be chosen and set, read from the configuration folder."""
    groups = "\n".join(f"  {name:<12}{', '.join(choices(name))}" for name in group_names())
    _print(VERB_HELP[verb].replace("{groups}", f"Groups and their choices:\n{groups}"))


def group_names() -> list[str]:
    """Names of the configuration groups."""
    return sorted(entry.name for entry in CONF_DIR.iterdir() if entry.is_dir())


def choices(group: str) -> list[str]:
    """Choices of a configuration group. A name that starts with an underscore is a part of others, not a choice."""
    folder = CONF_DIR / group
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")]
    return sorted(
        (name for name in names if not name.rsplit("/", 1)[-1].startswith("_")),
        key=lambda name: (int(name), "") if name.isdecimal() else (0, name),
    )


def complete(arguments: Sequence[str]) -> int:
    """Answer the shell's completion: the verbs here, everything else by Hydra."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if arguments[1:] and arguments[1].startswith("query="):
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            prefix = words[1] if len(words) == 2 else ""
            _print(" ".join(verb for verb in VERBS if verb.startswith(prefix)))
            return 0
        if words[1] not in VERBS:
            return 0
        shorter = line.replace(f" {words[1]}", "", 1)
        os.environ["COMP_LINE"] = shorter
        os.environ["COMP_POINT"] = str(len(shorter))
        return _hydra(words[1], list(arguments), _nothing)
    return _hydra("train", list(arguments), _nothing)


def check(verb: str, overrides: Sequence[str], config_dir: str | None, multirun: bool) -> Any:
    """Compose the configuration and refuse what cannot work.

    Args:
        verb: Whose configuration.
        overrides: As normalized.
        config_dir: The user's own configuration folder.
        multirun: Whether comma-separated values are a sweep; then every value is looked at.

    Returns:
        The configuration, with the first value of each sweep.

    Raises:
        ConfigError: With the nearest match and what exists.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ConfigError(
            f"could not read {error.override!r}: a setting is key=value, and a value with special characters needs "
            "quotes, such as \"'dataset.root=\\'my photos\\''\""
        ) from error
    fixed: list[str] = [] if config_dir is None else [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"]
    swept: dict[int, list[str]] = {}
    for position, override in enumerate(parsed):
        if not override.key_or_group:
            raise ConfigError(f"could not read {overrides[position]!r}: a setting is key=value")
        if _is_group(verb, override):
            _check_choice(override)
        if multirun and override.is_sweep_override():
            key = override.input_line.split("=", 1)[0] if override.input_line else override.get_key_element()
            try:
                swept[position] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            except HydraException as error:  # a glob, an interval
                raise ConfigError(f"{overrides[position]}: a sweep lists its values, such as {key}=a,b") from error
    variants = [[swept[i][0] if i in swept else text for i, text in enumerate(overrides)]]
    for position, values in swept.items():
        for value in values[1:]:
            variants.append([value if i == position else text for i, text in enumerate(variants[0])])

    configs = []
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        groups = [text for text, override in zip(overrides, parsed, strict=True) if _is_group(verb, override)]
        for variant in variants:
            chosen = [*fixed, *(text for text, original in zip(variant, overrides, strict=True) if original in groups)]
            try:
                configs.append(compose(verb, overrides=[*fixed, *variant]))
                OmegaConf.to_container(configs[-1], resolve=True, throw_on_missing=True)
                _check_values(configs[-1], compose(verb, overrides=chosen), variant)
            except (HydraException, OmegaConfBaseException, YAMLError) as error:
                raise ConfigError(_explain(verb, str(error), config_dir, chosen)) from error
            except (OSError, ValueError) as error:  # names that no file can have, files that are not text
                raise ConfigError(f"the configuration cannot be read: {first_line(error)}") from error
    return configs[0]


def _check_choice(override: Any) -> None:
    """Refuse what Hydra cannot take as the choice of a group: it is a name, or several in a sweep."""
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    group, value = override.key_or_group, override.value()
    if override.package is not None:
        raise ConfigError(f"{override.input_line}: a choice of {group} has its place, leave out @{override.package}")
    if override.is_delete():
        raise ConfigError(f"{group} cannot be left out; it has: {', '.join(choices(group))}")
    values = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    for choice in values:
        if not isinstance(choice, str | QuotedString):
            text = override.get_value_string()
            if group == "bits":
                raise ConfigError(_explain_bits(text, choices(group)))
            raise ConfigError(f"{group} must be the name of a choice, got {text}; it has: {', '.join(choices(group))}")


def _is_group(verb: str, override: Any) -> bool:
    return verb == "train" and override.key_or_group in group_names()


def _check_values(config: Any, defaults: Any, overrides: Sequence[str]) -> None:
    """Compare each setting with the type of its default and with its range."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    for name in defaults:
        if name not in config:
            raise ConfigError(f"{name} cannot be removed: every run needs it")
    for name in config:
        if name not in defaults:
            raise ConfigError(
                f"unknown key {str(name)!r}{_hint(str(name), map(str, defaults))}; --cfg job prints those that exist"
            )
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        default, value = (OmegaConf.select(source, key, throw_on_missing=False) for source in (defaults, config))
        if value is not None and key in TEXTS and not isinstance(value, str):
            raise ConfigError(f"{key} must be text, got {value!r}: a name that looks like something else needs quotes")
        if default is None:
            continue
        if value is None and (key in RANGES or key in defaults):
            raise ConfigError(f"{key} must not be empty: its default is {_short(default)}")
        if value is None:
            continue
        for kind, name in ((DictConfig, "a group of settings"), (ListConfig, "a list, such as [a,b]")):
            if isinstance(default, kind) and not isinstance(value, kind):
                raise ConfigError(f"{key} must be {name}, got {value!r}")
        for kind, name in ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "text")):
            if isinstance(default, kind):
                allowed = {int: (int,), float: (int, float), str: (str, int, float, bool), bool: (bool,)}[kind]
                if not isinstance(value, allowed) or (kind in (int, float) and isinstance(value, bool)):
                    raise ConfigError(f"{key} must be {name} (such as {default}), got {value!r}")
                break
    for key, (low, high) in RANGES.items():
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if value is None:
            continue
        limits = f"from {low} to {high}" if high is not None else f"at least {low}"
        default = OmegaConf.select(defaults, key, throw_on_missing=False)
        kind = "a number" if isinstance(default, float) else "a whole number"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= (float("inf") if high is None else high):
            raise ConfigError(f"{key} must be {kind}, {limits}, got {_short(value)}")
    for key in RANKS:
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if value is None:
            continue
        ranks = list(value) if isinstance(value, ListConfig) else [value]
        if not isinstance(value, ListConfig) or any(type(rank) is not int or rank < 1 for rank in ranks):
            raise ConfigError(f"{key} must be a list of whole numbers, at least 1, such as [1,10], got {_short(value)}")


def _short(value: Any) -> str:
    """A value as a message shows it: one line of bounded length."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _explain(verb: str, message: str, config_dir: str | None, chosen: Sequence[str]) -> str:
    """Hydra's message about a configuration that does not compose, as one sentence with what would have worked."""
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'|Could not find '([^']+)'", message):
        path = match[3] or f"{match[1]}/{match[2]}"
        group = next((name for name in group_names() if path.startswith(f"{name}/")), path.split("/")[0])
        choice = path.removeprefix(f"{group}/")
        exist = choices(group) if (CONF_DIR / group).is_dir() else []
        if config_dir and (Path(config_dir) / group).is_dir():
            exist += sorted(file.stem for file in (Path(config_dir) / group).glob("*.yaml"))
        if group == "bits":
            return _explain_bits(choice, exist)
        return f"{group} has no choice {choice!r}{_hint(choice, exist)}; it has: {', '.join(exist)}"
    if match := re.search(r"Could not (?:override|delete from config\.) '([^']+)'|Key '([^']+)' is not in", message):
        key = match[1] or match[2]
        known = _known_keys(verb, chosen)
        parent = key
        beside: list[str] = []
        while parent and not beside:
            parent = parent.rpartition(".")[0]
            beside = sorted({name for name in known if name.rpartition(".")[0] == parent and not name.endswith("_")})
        return f"unknown key {key!r}{_hint(key, known)}; there are: {', '.join(beside)}"
    if "Ambiguous value" in message:
        return message.splitlines()[0] + ": to sweep over it add -m, to use it as a list write key=[a,b]"
    if "Config group override must be a string" in message:
        return f"a choice of a group is a name: {message.splitlines()[-1]}"
    return message.strip().splitlines()[0]


def _explain_bits(choice: str, exist: Sequence[str]) -> str:
    if not re.fullmatch(r"\d+", choice) or not 1 <= int(choice) <= RANGES["bits"][1]:  # type: ignore[operator]
        return f"bits must be a whole number from 1 to {RANGES['bits'][1]}, got {choice}; there are: {', '.join(exist)}"
    return (
        f"there is no bits/{choice}.yaml; code lengths that exist: {', '.join(exist)}. For another one write the two "
        f"lines '# @package _global_' and 'bits: {choice}' to <folder>/bits/{choice}.yaml and add --config-dir <folder>"
    )


def _known_keys(verb: str, chosen: Sequence[str]) -> list[str]:
    """Keys and groups of the configuration with these choices."""
    from hydra import compose
    from omegaconf import OmegaConf

    from deephash_cli.runs import flatten

    flat = flatten(OmegaConf.to_container(compose(verb, overrides=list(chosen)), resolve=False))  # type: ignore[arg-type]
    parents = {".".join(key.split(".")[:depth]) for key in flat for depth in range(1, key.count(".") + 1)}
    return [*(group_names() if verb == "train" else []), *parents, *flat]


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _launch(verb: str, arguments: list[str]) -> int:
    """Check the command, then let Hydra run it."""
    parsed = _parse(verb, arguments)
    overrides = _take_up(list(parsed.overrides), parsed.multirun)
    if parsed.multirun and not any(override.startswith("group=") for override in overrides):
        relevant = sorted(o for o in overrides if not o.startswith(("logger", "resume=", "hydra", "runs=")))
        overrides.append(f"group=sweep-{hashlib.sha256(' '.join(relevant).encode()).hexdigest()[:8]}")
    config = None if parsed.hydra_help else check(verb, overrides, parsed.config_dir, parsed.multirun)
    options = [argument for argument in arguments if argument not in parsed.overrides]
    if config is None or parsed.cfg or parsed.info:
        return _hydra(verb, [*overrides, *options], _nothing)
    with _signals():
        if verb == "eval":
            return _hydra(verb, [*overrides, *options], _eval)
        if not parsed.multirun:
            return _hydra(verb, [*overrides, *options], _train)
        return _sweep(Path(config.runs), config.group, [*overrides, *options])


def _parse(verb: str, arguments: list[str]) -> argparse.Namespace:
    """Read Hydra's own options, wherever they stand, and refuse those that would go round ``check``."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; deephash {verb} --help lists what there is")

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
    if parsed.multirun and (parsed.run or parsed.cfg or parsed.info):
        raise ConfigError("--cfg, --info and --run are about a single run: leave out -m")
    return parsed


def _sweep(root: Path, group: str, arguments: list[str]) -> int:
    """Run every combination, then print the table."""
    from deephash_cli import runs, sweep

    runs.check_writable(root)
    folder = root / ".sweeps" / group
    sweep.begin(folder)
    try:
        code = _hydra("train", arguments, _train_job)
    except Stopped:
        with contextlib.suppress(SweepError):  # that it was stopped matters more than jobs that had failed before
            sweep.conclude(folder)
        raise
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


def _eval(config: Any) -> None:
    from deephash_cli.evaluate import evaluate

    _known_errors(lambda: evaluate(config))


def _train(config: Any) -> None:
    from hydra.core.hydra_config import HydraConfig

    from deephash_cli.console import say
    from deephash_cli.evaluate import show
    from deephash_cli.train import train

    def work() -> None:
        metrics = train(config, list(HydraConfig.get().overrides.task))
        show(metrics)
        say(f"run folder: {metrics['run_dir']}")
        say(f"every number again from the codes: deephash eval run={metrics['run_dir']}")

    _known_errors(work)


def _train_job(config: Any) -> None:
    """One job of a sweep."""
    from hydra.core.hydra_config import HydraConfig

    from deephash_cli.sweep import run_job
    from deephash_cli.train import train

    job = HydraConfig.get()
    typed = list(job.overrides.task)
    shown = [override for override in typed if not override.startswith(("resume=", "group=", "logger="))]
    run_job(Path(job.sweep.dir), int(job.job.num), shown, lambda: train(config, typed))


def _known_errors(work: Callable[[], Any]) -> None:
    """Print an error that a user can cause as one sentence; anything else is a bug and keeps its traceback."""
    try:
        work()
    except DeephashError as error:
        _print_error(error)
        raise SystemExit(error.exit_code) from error


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn Ctrl-C and a polite kill into ``Stopped``. A connection that breaks, such as W&B's, must not end the run."""
    handlers: dict[int, Any] = {
        signal.SIGINT: _stopper(130),
        signal.SIGTERM: _stopper(143),
        signal.SIGPIPE: signal.SIG_IGN,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopper(exit_code: int) -> Callable[[int, FrameType | None], None]:
    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        raise Stopped(exit_code)

    return stop


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_error(error: DeephashError) -> None:
    sys.stderr.write(f"error: {error}\n")

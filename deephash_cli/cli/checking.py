"""Refuse a command that cannot work before anything heavy is imported: unknown keys, choices, types and ranges.

Hydra suggests no close matches, accepts any type, and offers to add a misspelt key. Here each mistake is explained in
one sentence.
"""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deephash_cli.choices import CONF_DIR, choices, group_names
from deephash_cli.cli.arguments import normalize, quote, value_of
from deephash_cli.cli.hydra_keys import explain_choice, refuse_decided
from deephash_cli.cli.limits import AUTOMATIC, LISTS, LONGEST, NEEDED, OPTIONAL, RANGES, TEXTS, WORDS
from deephash_cli.cli.trainer_settings import check_trainer
from deephash_cli.cli.unused_settings import LEARNING, refuse_nested, refuse_searched, refuse_unused
from deephash_cli.cli.verbs import groups
from deephash_cli.data.changes import Changes
from deephash_cli.errors import ConfigError, command, first_line, hint, short
from deephash_cli.hiding import has_secret

_INCLUDED = "a file of yours names itself, or a file that names it, in its defaults"
# Names of folders, or parts of results.
_NAMES = ("group", "method", "dataset.name", "dataset.protocol", "model.name")
_kept: dict[tuple[str, ...], Any] = {}
_UNCLOSED = "an interpolation is written ${name}, and a closing brace is missing"


def train_settings(*typed: str) -> Any:
    """Compose the configuration of ``deephash train`` from the same words that are typed behind it.

    Args:
        *typed: Settings such as ``"method=dpsh"`` and ``"bits=48"``.

    Raises:
        ConfigError: If a word is refused on the command line as well.

    >>> train_settings("method=dpsh", "bits=20").bits
    20
    """
    return check("train", [normalize(word) for word in typed], None, multirun=False)


def check(verb: str, overrides: Sequence[str], config_dir: str | None, multirun: bool) -> Any:
    """Compose the configuration of a verb, and refuse a command that cannot work.

    Args:
        verb: The verb whose configuration is composed.
        overrides: Overrides, already passed through ``normalize``.
        config_dir: The user's own configuration folder; None if there is none.
        multirun: Whether comma-separated values are a sweep; then every value is checked.

    Returns:
        The configuration, with the first value of each sweep.

    Raises:
        ConfigError: If the command cannot work. The message names the nearest match and the existing choices or keys.
    """
    return _without_hydra(checked(verb, overrides, config_dir, multirun))


def checked(verb: str, overrides: Sequence[str], config_dir: str | None, multirun: bool) -> Any:
    """Do what ``check`` does, and return the configuration with Hydra's own settings, in the node ``hydra``."""
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep, Override
    from hydra.errors import HydraException, OverrideParseException

    from deephash_cli.cli import lengths, own_files
    from deephash_cli.training.variables import watch_variables

    lengths.register(config_dir)
    own_files.register(config_dir)
    watch_variables()
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ConfigError(f"could not read {error.override!r}: {_advice(error.override)}") from error
    fixed: list[str] = []
    if config_dir is not None:
        fixed.append(f"hydra.searchpath=[{quote(f'file://{Path(config_dir).absolute()}')}]")
    swept: dict[int, list[str]] = {}
    for position, override in enumerate(parsed):
        if not override.key_or_group:
            raise ConfigError(f"could not read {overrides[position]!r}: a setting is key=value")
        if _is_group(verb, override):
            _check_choice(override)
        elif override.key_or_group.startswith("hydra/") and isinstance(override.value(), list | dict | int | float):
            raise ConfigError(f"{override.key_or_group} must be a name, got {override.get_value_string()}")
        elif verb == "eval" and (key := override.key_or_group).startswith("metrics"):
            # eval composes this group only for its default values; metrics.ks would be a second name for ks.
            raise ConfigError(f"deephash eval has no {key}; it has ks, map_at, radius, zero_hits and similar")
        if multirun and override.is_sweep_override():
            key = override.input_line.split("=", 1)[0] if override.input_line else override.get_key_element()
            value = override.value()
            if isinstance(value, IntervalSweep) and _is_search(verb, overrides, parsed, fixed, config_dir):
                swept[position] = [f"{key}={end}" for end in (value.start, value.end)]
                continue
            try:
                swept[position] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            except HydraException as error:  # such as a glob or an interval
                raise ConfigError(
                    f"{overrides[position]}: a sweep needs values, such as {key}=a,b; tune=rates takes intervals"
                ) from error
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
                configs.append(_composed(verb, variant, chosen, fixed))
            except (HydraException, OmegaConfBaseException, YAMLError) as error:
                raise ConfigError(_explain(verb, str(error), config_dir, chosen)) from error
            except RecursionError as error:
                raise ConfigError(f"the configuration includes itself: {_INCLUDED}") from error
            except (OSError, ValueError) as error:  # names that no file can have, files that are not text
                raise ConfigError(f"the configuration cannot be read: {first_line(error)}") from error
    return configs[0]


def _composed(verb: str, variant: Sequence[str], chosen: Sequence[str], fixed: Sequence[str]) -> Any:
    """Compose the configuration of one job, and check its values.

    Args:
        verb: The verb whose configuration is composed.
        variant: Overrides of the job.
        chosen: The fixed overrides, and the overrides of the job that choose groups.
        fixed: Overrides that add the user's own configuration folder.
    """
    from hydra import compose
    from omegaconf import OmegaConf

    overrides = [*fixed, *variant]
    composed = compose(verb, overrides=overrides, return_hydra_config=True) if overrides == chosen else None
    defaults = _of_choices(verb, chosen) if composed is None else _without_hydra(composed)
    if verb == "train":
        refuse_unused(defaults, variant, _own_choices(defaults, fixed, variant))
    if composed is None:
        composed = compose(verb, overrides=overrides, return_hydra_config=True)
    refuse_decided(verb, composed.hydra)
    if verb == "train":
        refuse_searched(defaults, composed.hydra.sweeper)
    config = _without_hydra(composed)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _check_values(config, defaults, variant)
    _require_finite(config, variant)
    if verb == "train":
        refuse_nested(config)
        Changes.of(config.dataset)  # refuses values of other kinds
    return composed


def _without_hydra(composed: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.masked_copy(composed, [name for name in composed if name != "hydra"])


def _of_choices(verb: str, chosen: Sequence[str]) -> Any:
    """Compose the configuration of the groups that are chosen, without other settings, once for all jobs of a sweep.

    A folder of the user's own may change between two commands of a process, so what it adds to is not kept.
    """
    from hydra import compose

    if any(text.startswith("hydra.searchpath=") for text in chosen):
        return compose(verb, overrides=list(chosen))
    key = (str(CONF_DIR), verb, *chosen)
    if key not in _kept:
        _kept[key] = compose(verb, overrides=list(chosen))
    return _kept[key]


def _own_choices(chosen: Any, fixed: Sequence[str], overrides: Sequence[str]) -> Any:
    """Return what the method, the data set and the model choose by themselves, without a recipe or other groups.

    Args:
        chosen: The configuration of the typed groups.
        fixed: Overrides that add the user's own configuration folder.
        overrides: Typed overrides.
    """
    kept = [text for text in overrides if text.startswith(("method=", "dataset=", "model="))]
    named = {text.partition("=")[0] for text in overrides}
    if not named & {"experiment", "tune", *LEARNING}:
        return chosen
    if "method" not in named:  # a recipe chooses it
        kept.append(f"method={chosen.method}")
    return _of_choices("train", [*fixed, *kept])


def first_job(overrides: Sequence[str]) -> list[str]:
    """Return the settings of the first job of a sweep: each sweep becomes its first value.

    Args:
        overrides: Overrides, already passed through ``normalize`` and accepted by ``check``.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep

    first = []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        if override.is_sweep_override():
            value = override.value()
            start = value.start if isinstance(value, IntervalSweep) else next(iter(override.sweep_string_iterator()))
            text = f"{override.get_key_element()}={start}"
        first.append(text)
    return first


def _is_search(
    verb: str, overrides: Sequence[str], parsed: Sequence[Any], fixed: list[str], config_dir: str | None
) -> bool:
    """Return whether the sweeper that these overrides choose, directly or in a file, searches for settings."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from deephash_cli.cli.sweep import is_search

    plain = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = compose(verb, overrides=[*fixed, *plain], return_hydra_config=True)
    except HydraException as error:
        raise ConfigError(_explain(verb, str(error), config_dir, fixed)) from error
    return is_search(config.hydra.sweeper)


def _check_choice(override: Any) -> None:
    """Refuse a choice of a group that Hydra cannot use: a choice must be a name, or several names in a sweep."""
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    group, value = override.key_or_group, override.value()
    if override.package is not None:
        raise ConfigError(f"{override.input_line}: {group} cannot be moved; leave out @{override.package}")
    if override.is_delete():
        raise ConfigError(f"{group} cannot be left out; its choices are: {', '.join(choices(group))}")
    values = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    for choice in values:
        if not isinstance(choice, str | QuotedString):
            text = override.get_value_string()
            if group == "bits":
                raise ConfigError(_explain_bits(text))
            raise ConfigError(f"{group} must be one of its choices, got {text}; they are: {', '.join(choices(group))}")


def _is_group(verb: str, override: Any) -> bool:
    return override.key_or_group in groups(verb)


def _check_values(config: Any, defaults: Any, overrides: Sequence[str]) -> None:
    """Compare each setting with the type of its default and with its range."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    for name in defaults:
        if name not in config:
            raise ConfigError(f"{name} cannot be removed: every run needs it")
    for name in config:
        if name not in defaults:
            raise ConfigError(
                f"unknown key {str(name)!r}{hint(str(name), map(str, defaults))}; --cfg job prints all keys"
            )
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        default, value = (OmegaConf.select(source, key, throw_on_missing=False) for source in (defaults, config))
        if default is None:
            continue
        if value is None and key not in OPTIONAL and (key in RANGES or key in defaults or key.endswith("._target_")):
            raise ConfigError(f"{key} must not be empty: its default is {short(str(default))}")
        if value is None:
            continue
        example = command(f"{key}={'[1,10]' if key in LISTS else '[a,b]'}")
        for kind, name in ((DictConfig, "a group of settings"), (ListConfig, f"a list, such as {example}")):
            if isinstance(default, kind) and not isinstance(value, kind):
                raise ConfigError(f"{key} must be {name}, got {value!r}")
        for kind, name in ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "text")):
            if isinstance(default, kind):
                allowed = {int: (int,), float: (int, float), str: (str, int, float, bool), bool: (bool,)}[kind]
                if not isinstance(value, allowed) or (kind in (int, float) and isinstance(value, bool)):
                    raise ConfigError(f"{key} must be {name} (such as {default}), got {value!r}")
                break
    for key in NEEDED:
        if key.split(".")[0] in config and OmegaConf.select(config, key, throw_on_missing=False) is None:
            raise ConfigError(f"{key} must not be empty: every run needs it")
    if (group := OmegaConf.select(config, "group")) is not None and (not group or str(group) != Path(str(group)).name):
        raise ConfigError(f"group must be a name that a folder can have, without /, got {short(repr(group))}")
    for key in _NAMES:
        if (name := OmegaConf.select(config, key, throw_on_missing=False)) is not None and has_secret(str(name)):
            raise ConfigError(
                f"{key} is taken from an environment variable that may hold a secret, but it becomes the name of a "
                "folder or a part of the results: write the name itself"
            )
    for key in TEXTS:  # a file of the user's own may have a folder such as 2024, which YAML reads as a number
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{key} must be text, got {short(str(value))}: in a file, put the value in quotes")
    for key, (low, high) in _ranges(config).items():
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if value is None or (key in AUTOMATIC and str(value) == "auto"):
            continue
        limits = f"from {low} to {high}" if high is not None else f"at least {low}"
        default = OmegaConf.select(defaults, key, throw_on_missing=False)
        kind = "a number" if isinstance(default, float) else "a whole number"
        kind = f"auto or {kind}" if key in AUTOMATIC else kind
        number = isinstance(value, int | float if isinstance(default, float) else int) and not isinstance(value, bool)
        if not number or not low <= value <= (float("inf") if high is None else high):
            raise ConfigError(f"{key} must be {kind}, {limits}, got {short(str(value))}")
    if "trainer" in config:
        check_trainer(OmegaConf.to_container(config.trainer, resolve=True))  # type: ignore[arg-type]
    for key, words in WORDS.items():
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if value is not None and value not in words:
            raise ConfigError(f"{key} must be {' or '.join(words)}, got {short(str(value))}")
    for key, lowest in LISTS.items():
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if value is None:
            continue
        numbers = list(value) if isinstance(value, ListConfig) else [value]
        if not isinstance(value, ListConfig) or any(type(number) is not int or number < lowest for number in numbers):
            raise ConfigError(
                f"{key} must be a list of whole numbers, at least {lowest}, such as {command(f'{key}=[1,10]')}, "
                f"got {short(str(value))}"
            )


def _require_finite(config: Any, overrides: Sequence[str]) -> None:
    """Refuse a typed infinity or NaN: with one of them a weight or a margin can make codes that nobody asked for."""
    from omegaconf import OmegaConf

    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number, got {value}")


def _ranges(config: Any) -> dict[str, tuple[float, float | None]]:
    """Return the limits of numeric settings, including those of each kind of index that the configuration has."""
    kinds = [kind for kind in WORDS["kind"] if kind in config]
    if not kinds:
        return RANGES
    from deephash_cli.retrieval.indexes import kind_of

    return RANGES | {f"{kind}.{name}": limit for kind in kinds for name, limit in kind_of(kind).RANGES.items()}


def _explain(verb: str, message: str, config_dir: str | None, chosen: Sequence[str]) -> str:
    """Turn Hydra's message about a configuration that does not compose into one sentence with what would work."""
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'|Could not find '([^']+)'", message):
        path = match[3] or f"{match[1]}/{match[2]}"
        if path.startswith("hydra/"):
            return explain_choice(path.rpartition("/")[0], path.rpartition("/")[2], config_dir)
        group = next((name for name in group_names() if path.startswith(f"{name}/")), path.split("/")[0])
        choice = path.removeprefix(f"{group}/")
        exist = choices(group) if (CONF_DIR / group).is_dir() else []
        if config_dir and (Path(config_dir) / group).is_dir():
            exist += sorted(file.stem for file in (Path(config_dir) / group).glob("*.yaml"))
        if group == "bits":
            return _explain_bits(choice)
        return f"{group} has no choice {choice!r}{hint(choice, exist)}; the choices are: {', '.join(exist)}"
    if match := re.search(r"Could not (?:override|delete from config\.) '([^']+)'|Key '([^']+)' is not in", message):
        key = match[1] or match[2]
        known = _known_keys(verb, chosen)
        if key in known and (inner := re.search(r"Key '([^']+)' is not in", message)):
            key = f"{key}.{inner[1]}"
        elif key in known and (typed := re.search(r"use \+(.*)", message)):  # such as loader={workers:2}
            key = _unknown_inside(key, value_of(typed[1]), known) or key
        parent = key
        beside: list[str] = []
        while parent and not beside:
            parent = parent.rpartition(".")[0]
            beside = sorted({name for name in known if name.rpartition(".")[0] == parent and not name.endswith("_")})
        others = [name for name in known if name != key and not key.startswith(f"{name}.")]
        return f"unknown key {key!r}{hint(key, others)}; the keys are: {', '.join(beside)}"
    if "Ambiguous value" in message:
        said = message.splitlines()[0]
        key, _, values = said.partition("'")[2].removesuffix("'").partition("=")
        return f"{said}: to sweep over the values add -m; to use them as a list write {command(f'{key}=[{values}]')}"
    if (match := re.search(r"Error merging override (.*)", message)) and match[1].count("${") > match[1].count("}"):
        return f"could not read {match[1]}: {_UNCLOSED}"
    if "Config group override must be a string" in message:
        return f"the choice of a group must be a name: {message.splitlines()[-1]}"
    if match := re.search(r"Recursive interpolation detected.*?full_key: (\S+)", message, re.DOTALL):
        return f"{short(match[1])} refers to itself: an interpolation in it leads back to it"
    return message.strip().splitlines()[0]


def _unknown_inside(key: str, value: Any, known: Sequence[str]) -> str | None:
    """Return the first key inside a value such as ``{a: 1}`` that does not exist; None if all do."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        path = f"{key}.{name}"
        if path not in known:
            return path
        if (deeper := _unknown_inside(path, inner, known)) is not None:
            return deeper
    return None


def _advice(setting: str) -> str:
    """Return what to do about a setting that Hydra's grammar refuses."""
    if setting.count("${") > setting.count("}"):
        return _UNCLOSED
    advice = f"quote a value with special characters twice, such as {_quoted(setting)}"
    return advice if "=" in setting else f"a setting is key=value; {advice}"


def _quoted(setting: str) -> str:
    """Return a setting as it can be typed in a shell so that Hydra reads its value as text, such as ``'key="a (1)"'``.

    If quotes do not make the setting readable, or it cannot be printed in one line, the result is an example.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    example = shlex.quote('logger.tags=["first (1)"]')
    key, _, value = setting.partition("=")
    if not key or not value or not setting.isprintable():
        return example
    text = f"{key}={QuotedString(text=value, quote=Quote.double).with_quotes()}"
    try:
        OverridesParser.create().parse_overrides([text])
    except HydraException:
        return example
    return shlex.quote(text)


def _explain_bits(choice: str) -> str:
    return f"bits must be a whole number from 1 to {LONGEST}, got {choice or 'no value'}"


def _known_keys(verb: str, chosen: Sequence[str]) -> list[str]:
    """Return the keys and groups of the configuration that these choices compose."""
    from hydra import compose
    from omegaconf import OmegaConf

    from deephash_cli.runs import flatten

    flat = flatten(OmegaConf.to_container(compose(verb, overrides=list(chosen)), resolve=False))  # type: ignore[arg-type]
    if verb == "eval":
        flat = {key: value for key, value in flat.items() if not key.startswith("metrics.") and key != "code_bits"}
    parents = {".".join(key.split(".")[:depth]) for key in flat for depth in range(1, key.count(".") + 1)}
    return [*groups(verb), *parents, *flat]

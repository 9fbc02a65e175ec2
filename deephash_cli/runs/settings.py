"""Read, compare, redact and fingerprint the settings of a run."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from deephash_cli import __version__
from deephash_cli.errors import ArtifactError, first_line, short
from deephash_cli.files import read_bytes
from deephash_cli.hiding import HIDDEN, has_secret, is_suspicious
from deephash_cli.runs.sealing import require_intact

CONFIG = "config.yaml"
# Settings of where and how a run is computed, logged and described. They do not change what it computes.
INCIDENTAL = (
    "run_dir",
    "runs",
    "resume",
    "allowed_targets",
    "group",
    "logger",
    "gallery",
    "loader.num_workers",
    "loader.pin_memory",
    "dataset.classes_known_to",
)
# Settings that a resumed run may change: those above, those of how long and on which devices it trains, and what to do
# about unreadable images or data that are not there, because the split tells whether the images are the same.
RESUMABLE = (
    *INCIDENTAL, "trainer", "checkpoint", "metrics.ks", "metrics.radius", "metrics.zero_hits", "bad_images", "fit_rows",
    "dataset.download", "dataset.source.download",
)  # fmt: skip
# Settings that later versions added, with the value that does what earlier versions did: a run without them is equal to
# a run with these values.
_ADDED = {
    "bad_images": "stop", "fit_rows": 500_000, "trial": None, "nested": [], "features.precision": "fp32",
    "features.batch_size": None, "model.network.crop": 1.0, "model.network.crop_mode": "square",
    "model.network.interpolation": "bilinear", "model.dynamic_img_size": False,
    "model.network.backbone.dynamic_img_size": False, "model.network.output_norm": False, "augment.grey": 0.0,
    "loss.balanced": False, "metrics.similar": "one", "dataset.unseen": None, "dataset.imbalance": None,
    "dataset.labelled": None,
}  # fmt: skip
_CONFIG_LIMIT = 2**20  # bytes
_CONFIG_DEPTH = 100
_CONFIG_VALUES = 50_000  # a run has some hundred settings, and one of them may be a list with a value for each class
_SCALAR_LIMIT = 2**16  # characters of one value
_DIGITS = 300
_HUGE = 10**_DIGITS
_NUMBER = re.compile(r"[-+]?[0-9.][0-9a-fA-F_xo:.]*")  # also hexadecimal, or with a base of 60
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled loader takes a tenth of the time


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return a digest of the settings that decide a run's result and of the version of deephash."""
    content = {name: value for name, value in comparable(config).items() if not belongs(name, INCIDENTAL)}
    return hashlib.sha256(json.dumps([__version__, content], sort_keys=True).encode()).hexdigest()[:16]


def identity(config: Mapping[str, Any]) -> str:
    """Return a digest of the settings that a resumed run must keep, the same for every version of deephash.

    Two settings have the same digest if `forbidden_changes` finds no difference between them.
    """
    content = {
        name: _plain(value)
        for name, value in comparable(config).items()
        if value is not None and not belongs(name, RESUMABLE)
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return a value in which numbers that Python takes for equal, such as 1, 1.0 and true, are written alike."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return int(value) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else value


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a flat dictionary in which equal runs of this version and of earlier ones are equal."""
    return {name: value for name, value in flatten(config).items() if name not in _ADDED or value != _ADDED[name]}


def escape(value: Any) -> Any:
    """Return a copy of plain settings in which OmegaConf reads ``${`` as text and not as an interpolation."""
    return _in_texts(value, lambda slashes: f"{slashes}{slashes}\\${{")


def unescape(value: Any) -> Any:
    """Return a copy of plain settings without the backslashes that ``escape`` adds."""
    return _in_texts(value, lambda slashes: f"{slashes[: len(slashes) // 2]}${{")


def _in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Replace each ``${`` in plain settings; ``change`` gets the backslashes before it."""
    if isinstance(value, Mapping):
        return {name: _in_texts(item, change) for name, item in value.items()}
    if isinstance(value, list):
        return [_in_texts(item, change) for item in value]
    return re.sub(r"(\\*)\$\{", lambda found: change(found[1]), value) if isinstance(value, str) else value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as a flat dictionary with dotted names. ``prefix`` is put before every name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the settings in which secrets are hidden.

    A value is hidden if the name of its setting suggests a secret, or if it contains a secret of the environment. The
    name of a class is no secret.
    """
    return {name: value if name == "_target_" else _redacted(name, value) for name, value in config.items()}


def _redacted(name: str, value: Any) -> Any:
    return HIDDEN if value and is_suspicious(name) and not isinstance(value, Mapping) else _hide(value)


def _hide(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact(value)
    if isinstance(value, list):
        return [_hide(item) for item in value]
    return HIDDEN if isinstance(value, str) and has_secret(value) else value


def hide_in_override(override: str) -> str:
    """Return an override as it was typed, with its value hidden if that is a secret."""
    name, _, value = override.partition("=")
    return f"{name}={HIDDEN}" if value and (is_suspicious(name) or has_secret(value)) else override


def forbidden_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List the differences in settings that a resumed run must keep, each as ``name: old -> new``."""
    old, new = _ADDED | flatten(before), _ADDED | flatten(after)
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not belongs(name, RESUMABLE)
    ]


class _ConfigLoader(_SAFE):
    """Safe YAML loader that refuses a key that occurs twice: one of the two values would be ignored silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            ((twice, _),) = Counter(str(key.value) for key, _ in node.value).most_common(1)
            raise ConstructorError(None, None, f"the key {short(twice)!r} occurs twice", node.start_mark)
        return mapping


def read_config(folder: Path) -> dict[str, Any]:
    """Read the settings of a run as plain values. Nothing in the file is resolved, expanded or built.

    Args:
        folder: A run folder, which may come from another person.

    Raises:
        ArtifactError: If ``config.yaml`` is missing, too large, not YAML or not a mapping, is nested too deeply, has
            aliases, or does not match its digest in the run's record. Aliases can turn a few hundred bytes into more
            settings than fit into memory.
    """
    file = Path(folder) / CONFIG
    try:
        require_intact(Path(folder), CONFIG)
        content = yaml.load(bounded_yaml(file), Loader=_ConfigLoader)
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:  # PyYAML lets its constructors' errors pass
        raise ArtifactError(f"{file} cannot be read as YAML: {yaml_problem(error)}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{file} is not the configuration of a run")
    if (odd := _odd_value(content)) is not None:
        raise ArtifactError(f"{file} has {odd}, which no setting is: it was edited by hand")
    return unescape(content)


def bounded_yaml(file: Path, values: int = _CONFIG_VALUES, has_aliases: bool = False) -> bytes:
    """Read a YAML file within limits that no configuration needs to exceed, without building anything of it.

    Args:
        file: The file.
        values: Largest number of values.
        has_aliases: Whether the file may have aliases. The values of an alias count each time that it is used.

    Returns:
        The content of the file. It has the structure of YAML, but may have values that cannot be built.

    Raises:
        ArtifactError: If the file is missing, is not a plain file, is too large, is not YAML, is nested too deeply, has
            too many values, or has aliases that it must not have.
    """
    content = read_bytes(file, _CONFIG_LIMIT)
    try:
        _check_size(file, content, values, has_aliases)
    except (ValueError, yaml.YAMLError) as error:
        raise ArtifactError(f"{file} cannot be read as YAML: {yaml_problem(error)}") from error
    return content


def yaml_problem(error: Exception) -> str:
    """Return the reason for which YAML cannot be read, in a few words, with the line if it is known."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return short(first_line(error))
    line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
    return f"{short(str(error.problem))}{line}"


def _check_size(file: Path, text: bytes, values: int, has_aliases: bool) -> None:
    """Refuse YAML with too many values, counting those of an alias each time that it is used, or too deep a nesting."""
    total = 0
    begun: list[tuple[str | None, int]] = []  # for each open collection its anchor, and the total where it begins
    sizes: dict[str, int] = {}  # number of values below each anchor
    for event in yaml.parse(text, Loader=_SAFE):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, start = begun.pop()
            if anchor is not None:
                sizes[anchor] = total - start
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if len(event.value) > _SCALAR_LIMIT:
                raise ArtifactError(f"{file} has a value of {len(event.value)} characters, more than {_SCALAR_LIMIT}")
            if event.implicit[0] and len(event.value) > _DIGITS and _NUMBER.fullmatch(event.value):
                raise ArtifactError(f"{file} has a number of {len(event.value)} digits; no setting needs more than 300")
        elif isinstance(event, yaml.AliasEvent):
            if not has_aliases:
                raise ArtifactError(f"{file} has YAML aliases, which deephash does not write: it was edited by hand")
            if event.anchor not in sizes:
                raise ArtifactError(f"{file} uses the YAML anchor {short(event.anchor)!r} inside itself or before it")
            total += sizes[event.anchor]
        if total > values:
            raise ArtifactError(f"{file} has more than {values} values; no configuration of a run needs more")
        if len(begun) > _CONFIG_DEPTH:
            raise ArtifactError(f"{file} is nested deeper than {_CONFIG_DEPTH} levels; no configuration needs more")


def _odd_value(value: Any) -> str | None:
    """Return a description of the first value that OmegaConf does not write, such as a date; None if there is none."""
    if isinstance(value, dict):
        if len({type(key) for key in value}) > 1 or not all(isinstance(key, str | int) for key in value):
            return "keys of several kinds in one group"
        inside = [*value, *value.values()]
    elif isinstance(value, list):
        inside = value
    elif isinstance(value, str):
        return None if value.isascii() or _is_unicode(value) else f"half of a character in {short(ascii(value))}"
    elif value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < _HUGE):
        return None
    else:
        return "a number of hundreds of digits" if isinstance(value, int) else f"a value of type {type(value).__name__}"
    return next((odd for item in inside if (odd := _odd_value(item)) is not None), None)


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def belongs(name: str, keys: Sequence[str]) -> bool:
    """Return whether a dotted name is one of ``keys`` or lies below one of them."""
    return any(name == key or name.startswith(f"{key}.") for key in keys)

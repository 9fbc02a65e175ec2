"""Read, compare, redact and fingerprint the settings of a run."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from deephash_cli import __version__
from deephash_cli.errors import ArtifactError, first_line
from deephash_cli.hiding import HIDDEN, has_secret, is_suspicious

CONFIG = "config.yaml"
# Settings of where and how a run is computed and logged. They do not change what it computes.
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
)
# Settings that a resumed run may change: those above, those of how long and on which devices it trains, and what to do
# about unreadable images, because the split tells whether the images are the same.
RESUMABLE = (*INCIDENTAL, "trainer", "checkpoint", "metrics", "bad_images", "fit_rows")
# Settings that later versions added, with the value that does what earlier versions did: a run without them is equal to
# a run with these values.
_ADDED = {"bad_images": "stop", "fit_rows": 500_000, "trial": None}
_CONFIG_LIMIT = 2**20  # bytes
_CONFIG_DEPTH = 100
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled loader takes a tenth of the time


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return a digest of the settings that decide a run's result and of the version of deephash."""
    content = {name: value for name, value in comparable(config).items() if not belongs(name, INCIDENTAL)}
    return hashlib.sha256(json.dumps([__version__, content], sort_keys=True).encode()).hexdigest()[:16]


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
    old, new = flatten(before), flatten(after)
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
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), keys[-1])
            raise ConstructorError(None, None, f"the key {twice!r} occurs twice", node.start_mark)
        return mapping


def read_config(folder: Path) -> dict[str, Any]:
    """Read the settings of a run as plain values. Nothing in the file is resolved, expanded or built.

    Args:
        folder: A run folder, which may come from another person.

    Raises:
        ArtifactError: If ``config.yaml`` is missing, too large, not YAML or not a mapping, is nested too deeply, or
            has aliases. Aliases can turn a few hundred bytes into more settings than fit into memory.
    """
    file = Path(folder) / CONFIG
    try:
        if file.stat().st_size > _CONFIG_LIMIT:
            raise ArtifactError(f"{file} must have at most {_CONFIG_LIMIT} bytes; no configuration of a run needs more")
        text = file.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=_SAFE):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ArtifactError(f"{file} has YAML aliases, which deephash does not write: it was edited by hand")
            if depth > _CONFIG_DEPTH:
                raise ArtifactError(f"{file} is nested deeper than {_CONFIG_DEPTH} levels: it was edited by hand")
        content = yaml.load(text, Loader=_ConfigLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ArtifactError(f"{file} cannot be read as YAML: {error.problem}{line}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArtifactError(f"{file} cannot be read as a configuration: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{file} is not the configuration of a run")
    return unescape(content)


def belongs(name: str, keys: Sequence[str]) -> bool:
    """Return whether a dotted name is one of ``keys`` or lies below one of them."""
    return any(name == key or name.startswith(f"{key}.") for key in keys)

"""Prepare typed arguments for Hydra and argparse, and turn the errors of their parsers into one sentence."""

import argparse
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from deephash_cli.choices import choices, group_names
from deephash_cli.cli import verbs
from deephash_cli.cli.limits import PATHS, TEXTS, WORDS
from deephash_cli.errors import ConfigError, hint
from deephash_cli.hiding import hide
from deephash_cli.runs.settings import escape, unescape

_PLAIN = re.compile(r"\.{1,2}|(\.{0,2}/|[A-Za-z_])[A-Za-z0-9_./-]*")  # text that Hydra reads as it is ...
_WORDS = ("true", "false", "inf", "nan")  # ... except for these


def parse(verb: str, typed: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of a verb that takes paths and options.

    Args:
        verb: The verb, whose module says which arguments it has.
        typed: The words after the verb.

    Returns:
        The arguments, and the whole command line as ``command``, without secrets.

    Raises:
        ConfigError: If the arguments do not fit the verb.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuser(verb)  # type: ignore[method-assign]
    verbs.load(verb).add_arguments(parser)
    parsed = parser.parse_intermixed_args(list(typed))
    parsed.command = hide(shlex.join(["deephash", verb, *typed]))
    return parsed


def refuser(verb: str) -> Callable[[str], NoReturn]:
    """Return the error handler for the parser of a verb: it raises a ``ConfigError`` with the parser's message."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; see deephash {verb} --help")

    return refuse


def quote_bits(override: str) -> str:
    """Turn ``bits=12,24`` into ``bits='12','24'``: Hydra only accepts strings as choices of a group."""
    if not override.startswith("bits="):
        return override
    lengths = override.removeprefix("bits=").split(",")
    return "bits=" + ",".join(f"'{n}'" if re.fullmatch(r"[+-]?[\d.]+", n) else n for n in lengths)


def normalize(argument: str, verb: str = "train", multirun: bool = False) -> str:
    """Translate what users type into what Hydra reads as they mean it.

    Numbers are accepted for ``bits``, ``+experiment=`` (as in many projects) for ``experiment=``, and any text for a
    setting that is a path or a name; see ``quote_text``. Only ``train`` has the group ``bits``. For ``eval``, Hydra
    would read ``bits=20`` as a choice of that group, so it becomes ``code_bits=20``. ``index --check`` becomes
    ``check=true``, because Hydra does not know this option.

    Args:
        argument: A word of the command line, as the shell passes it on.
        verb: The verb that it belongs to.
        multirun: Whether commas separate the values of a sweep.

    Raises:
        ConfigError: If the word has bytes that are not UTF-8.
    """
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        shown = argument.encode(errors="surrogateescape").decode(errors="replace")
        raise ConfigError(f"{shown} is not UTF-8 text: rename the file or folder, or make a link to it") from error
    if found := re.search("[\x85\u2028\u2029]", argument):
        raise ConfigError(
            f"{argument} has the line break U+{ord(found[0]):04X} in it, which YAML cannot keep: rename the file"
        )
    name, equals, value = argument.lstrip("+").partition("=")
    if verb == "index" and argument == "--check":
        return "check=true"
    if verb == "eval" and name == "bits" and equals:
        return f"code_bits={value}"
    if name in TEXTS and value:
        quoted = quote_sweep(name, value) if multirun else quote_text(name, value)
        return argument.removesuffix(value) + quoted
    return quote_bits(argument.lstrip("+") if equals and name in group_names() else argument)


def name_words(words: Sequence[str], config_dir: str | None) -> list[str]:
    """Turn the words behind ``deephash data`` that are no settings into settings.

    The first word is the action. The second one is the name of a data set, or the path of what to look at.

    Args:
        words: The words behind the verb, already passed through ``normalize``.
        config_dir: The user's own configuration folder; None if there is none.

    Raises:
        ConfigError: If there is no such action, data set or path, or there are more than two such words.
    """
    plain = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if not plain:
        return settings
    action, *given = plain
    if action not in WORDS["action"]:
        actions = " and ".join(WORDS["action"])
        raise ConfigError(f"unknown action {action!r}{hint(action, WORDS['action'])}; deephash data has {actions}")
    if len(given) > 1:
        more = "; to compare it with another one, write against=<data set or path>" * (action == "audit")
        raise ConfigError(f"{action} takes one data set or path, got {' and '.join(given)}{more}")
    for word in given:
        known = dataset_names(config_dir)
        if word not in known and not _exists(word):
            raise ConfigError(
                f"{word!r} is neither a data set nor a file or folder{hint(word, known)}; the data sets are: "
                f"{', '.join(known)}"
            )
        settings.insert(0, f"dataset={word}" if word in known else f"input={quote_text('input', word)}")
    return [f"action={action}", *settings]


def dataset_names(config_dir: str | None) -> list[str]:
    """Return the names of the data sets: those of deephash, and those in the user's own configuration folder."""
    own = [] if config_dir is None else sorted(file.stem for file in (Path(config_dir) / "dataset").glob("*.yaml"))
    return [*choices("dataset"), *own]


def quote_text(key: str, value: str) -> str:
    """Quote the value of a path or a name for Hydra, so that quotes for the shell are enough.

    Hydra's grammar has a meaning for brackets, commas, numbers, other alphabets and more, and none of it is meant in
    the name of a file. These rules hold, in this order:

    1. ``null`` is None; ``./null`` is a file of this name.
    2. The name of a file or folder that exists is taken as it is, and so is a new one below a folder called ``${x}``.
    3. Quotes or backslashes that Hydra understands keep their meaning, because earlier releases needed them.
    4. ``~`` at the start of a path is the home folder.
    5. All other text is taken as it is, except that ``${...}`` is an interpolation.

    Args:
        key: The setting, one of ``limits.TEXTS``.
        value: Its value as typed, not empty.

    Returns:
        The value in Hydra's grammar. A plain name needs no quotes and gets none.
    """
    if value.lower() == "null":
        return value
    if key in PATHS and value == "???":  # OmegaConf takes this text for a value that is missing
        return "'./???'"
    if key in PATHS and _exists(value):
        name = str(Path(value).absolute()) if value[0] == "~" else value  # the readers of data expand a leading ~
        return quote(escape(name))
    if re.match("[\"']", value) or "\\" in value:
        meant = _read(f"{key}={value}")
        if meant is not None and isinstance(meant.value(), str):
            return value
    if key in PATHS and value[0] == "~":
        home = os.path.expanduser(value)  # noqa: PTH111  # Path raises an error for an unknown user
        value = str(Path(value).absolute()) if home == value else home
    return quote(value)


def quote_sweep(key: str, value: str) -> str:
    """Quote each value of a path or a name in a sweep: a comma separates values, unless the whole names a file.

    ``choice(a,b)`` and Hydra's other functions keep their meaning. ``runs`` and ``group`` belong to the whole sweep.
    """
    if key in ("runs", "group") or "," not in value or (key in PATHS and _exists(value)):
        return quote_text(key, value)
    meant = _read(f"{key}={value}")
    if meant is not None and meant.is_sweep_override() and re.match(r"[a-z]+\(", value):
        return value
    parts = re.findall(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*(?=,|$)|((?<=,)[^,]*|^[^,]*)""", value)
    texts = [quoted or (plain if _exists(plain) else plain.strip()) for quoted, plain in parts]
    return ",".join(quote_text(key, text) if text else "''" for text in texts)


def value_of(override: str) -> Any:
    """Return the value that Hydra reads from an override; the text behind ``=`` if Hydra cannot read it."""
    meant = _read(override)
    return override.partition("=")[2] if meant is None else unescape(meant.value())


def _exists(path: str) -> bool:
    """Return whether a path exists, or is a new one below a folder that exists and is called ``${...}`` or ``a, b``."""
    ways = [parent for parent in Path(path).parents if "${" in parent.name or "," in parent.name]
    return any(os.path.lexists(name) for name in (path, *ways))


def _read(override: str) -> Any:
    """Parse an override by Hydra's grammar; None if it does not fit."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def quote(text: str) -> str:
    """Return text as Hydra's grammar needs it, with quotes only if they are necessary."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return QuotedString(text, Quote.single).with_quotes()

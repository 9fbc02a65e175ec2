"""Prepare typed arguments for Hydra and argparse, and turn the errors of their parsers into one sentence."""

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from typing import NoReturn

from deephash_cli.choices import group_names
from deephash_cli.cli import verbs
from deephash_cli.errors import ConfigError


def parse(verb: str, typed: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of a verb that takes paths and options.

    Args:
        verb: The verb, whose module says which arguments it has.
        typed: The words after the verb.

    Returns:
        The arguments, and the whole command line as ``command``.

    Raises:
        ConfigError: If the arguments do not fit the verb.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuser(verb)  # type: ignore[method-assign]
    verbs.load(verb).add_arguments(parser)
    parsed = parser.parse_intermixed_args(list(typed))
    parsed.command = shlex.join(["deephash", verb, *typed])
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


def normalize(argument: str, verb: str = "train") -> str:
    """Accept what users type: numbers for ``bits``, and ``+experiment=`` (as in many projects) for ``experiment=``.

    Only ``train`` has the group ``bits``. For ``eval``, Hydra would read ``bits=20`` as a choice of that group, so it
    becomes ``code_bits=20``. ``index --check`` becomes ``check=true``, because Hydra does not know this option.
    """
    name, equals, value = argument.lstrip("+").partition("=")
    if verb == "index" and argument == "--check":
        return "check=true"
    if verb == "eval":
        return f"code_bits={value}" if equals and name == "bits" else argument
    return quote_bits(argument.lstrip("+") if equals and name in group_names() else argument)

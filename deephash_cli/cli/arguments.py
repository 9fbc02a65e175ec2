"""Turn what was typed into what Hydra and argparse understand, and their complaints into one sentence."""

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
        ConfigError: If the verb does not have such arguments.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuser(verb)  # type: ignore[method-assign]
    verbs.load(verb).add_arguments(parser)
    parsed = parser.parse_intermixed_args(list(typed))
    parsed.command = shlex.join(["deephash", verb, *typed])
    return parsed


def refuser(verb: str) -> Callable[[str], NoReturn]:
    """Return what a parser of a verb calls with its complaint: it raises a ``ConfigError``."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; deephash {verb} --help lists what there is")

    return refuse


def quote_bits(override: str) -> str:
    """Turn ``bits=12,24`` into ``bits='12','24'``: Hydra only accepts strings as choices of a group."""
    if not override.startswith("bits="):
        return override
    lengths = override.removeprefix("bits=").split(",")
    return "bits=" + ",".join(f"'{n}'" if re.fullmatch(r"[+-]?[\d.]+", n) else n for n in lengths)


def normalize(argument: str, verb: str = "train") -> str:
    """Accept what users type: numbers for ``bits``, and ``+experiment=`` (as in many projects) for ``experiment=``.

    ``bits`` is a group of ``train`` only, and Hydra would take ``eval bits=20`` for one of its choices.
    ``index --check`` stands for ``check=true``, since Hydra knows no options of ours.
    """
    name, equals, value = argument.lstrip("+").partition("=")
    if verb == "index" and argument == "--check":
        return "check=true"
    if verb == "eval":
        return f"code_bits={value}" if equals and name == "bits" else argument
    return quote_bits(argument.lstrip("+") if equals and name in group_names() else argument)

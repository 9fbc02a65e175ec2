"""``deephash export``: write codes, or the network that makes them, to files that other engines can load.

Each target is a module of ``codes/`` or ``network/``, with the name that is typed after ``to=``. Its function ``write``
writes into an empty folder, reads the result back, and returns how it was checked. There is no other list of targets.
"""

import importlib
import re
from collections.abc import Callable

from omegaconf import DictConfig

from deephash_cli import runs
from deephash_cli.choices import modules
from deephash_cli.commands.export.source import Source
from deephash_cli.console import say
from deephash_cli.errors import ConfigError
from deephash_cli.files import atomic_folder
from deephash_cli.retrieval.codes_folder import open_side
from deephash_cli.runs.outputs import seal_exported, settle_folder

CODES, NETWORKS = modules("commands/export/codes"), modules("commands/export/network")
_TABLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")  # needs no quoting in any engine; PostgreSQL truncates longer names


def run(config: DictConfig) -> None:
    """Run ``deephash export``.

    Raises:
        ConfigError: If a setting is missing or cannot be used, or if the output must not be replaced.
        ArtifactError: If the manifest of the codes has a value that JSON cannot represent.
    """
    if config.to is None:
        raise ConfigError(f"deephash export needs to=<target>, one of {', '.join([*CODES, *NETWORKS])}")
    if config.output is None:
        raise ConfigError("deephash export needs output=<folder>, the folder to make")
    table = str(config.table)  # YAML reads 5 as a number
    if not _TABLE.fullmatch(table):
        raise ConfigError(
            "table must be at most 63 lower-case letters, digits and underscores, not starting with a digit, "
            f"got {table!r}"
        )
    bit_order, byte_type = config.bit_order, config.byte_type
    if (bit_order, byte_type) != ("little", "uint8") and not _takes_any_packing(config.to):
        able = ", ".join(target for target in CODES if _takes_any_packing(target))
        raise ConfigError(
            f"to={config.to} writes codes in the one form that it wants: leave out bit_order= and byte_type=, which "
            f"are for {able}"
        )
    output = settle_folder("export", config.output, {"run=": config.run, "codes=": config.codes}, config.overwrite)
    if config.to in NETWORKS:
        if (config.run is None) == (config.codes is None):
            got = "neither" if config.run is None else "both"
            raise ConfigError(
                f"to={config.to} exports the network of a run: it needs run=<run folder>, or codes=<folder of codes> "
                f"that it made, got {got}"
            )
        run_folder = runs.given_or_latest(config.run, config.codes)
        with atomic_folder(output, replace=config.overwrite) as folder:
            checked = _writer("network", config.to)(run_folder, folder, list(config.allowed_targets), config.pixels)
            size = seal_exported(folder)
        say(f"{config.output}: network, {size}; checked: {checked}")
        return
    codes = runs.codes_folder("export", config.run, config.codes)
    database = open_side(codes, config.side)
    with atomic_folder(output, replace=config.overwrite) as folder:
        checked = _writer("codes", config.to)(Source(database, config.side, table, bit_order, byte_type), folder)
        size = seal_exported(folder)
    say(f"{config.output}: {database.n} codes of {database.bits} bits for {config.to}, {size}; checked: {checked}")


def _writer(folder: str, target: str) -> Callable[..., str]:
    return importlib.import_module(f"{__name__}.{folder}.{target}").write


def _takes_any_packing(target: str) -> bool:
    """Return whether a target can write bytes in every order and type, which its module says."""
    return target in CODES and hasattr(importlib.import_module(f"{__name__}.codes.{target}"), "ANY_PACKING")

"""Find the verbs, their help and their modules.

A verb is a module of ``commands/`` with a text in ``help/``. If Hydra composes it, it has a file in ``conf/``.
Only ``load`` imports a verb, because help and completion have to be quick.
"""

import importlib
from pathlib import Path
from types import ModuleType

from deephash_cli.choices import CONF_DIR, group_names, modules

_HELP = Path(__file__).resolve().parent / "help"
# The order in which a newcomer needs the verbs; a verb that is not listed comes after these.
_ORDER = (
    "train", "eval", "encode", "search", "index", "export", "features", "data", "serve", "compare", "report", "runs",
    "verify", "sync", "methods",
)  # fmt: skip


def names() -> list[str]:
    """Return all verbs in the order in which the help lists them."""
    found = modules("commands")
    return [*(verb for verb in _ORDER if verb in found), *(verb for verb in found if verb not in _ORDER)]


def is_composed(verb: str) -> bool:
    """Return whether Hydra composes the settings of a verb; any other verb takes paths and options."""
    return (CONF_DIR / f"{verb}.yaml").is_file()


def groups(verb: str) -> list[str]:
    """Return the groups of the configuration that may be chosen for a verb, sorted."""
    return group_names() if verb == "train" else {"features": ["dataset", "model"], "data": ["dataset"]}.get(verb, [])


def help_text(verb: str) -> str:
    """Return the help text of a verb, with the placeholders ``{groups}`` and ``{examples}`` not filled in."""
    return (_HELP / f"{verb}.txt").read_text(encoding="utf-8").rstrip()


def summary(verb: str) -> str:
    """Return one line that says what a verb does: the line below the usage in its help."""
    return help_text(verb).split("\n\n")[1]


def load(verb: str) -> ModuleType:
    """Import the module of a verb.

    It has ``run(config)`` if Hydra composes the verb; otherwise ``add_arguments(parser)`` and ``run(parsed)``.
    """
    return importlib.import_module(f"deephash_cli.commands.{verb}")

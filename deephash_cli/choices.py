"""Find the configuration folder, its groups and their choices.

This module imports nothing heavy, because help and completion use it.
"""

import pkgutil
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# In a wheel the configuration is inside the package, in a checkout beside it.
CONF_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def group_names() -> list[str]:
    """Return the names of the configuration groups, sorted."""
    return sorted(entry.name for entry in CONF_DIR.iterdir() if entry.is_dir())


def choices(group: str) -> list[str]:
    """Return the choices of a configuration group, sorted, with numbers in numerical order.

    A file whose name starts with an underscore is a part of other choices, not a choice.
    """
    folder = CONF_DIR / group
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")]
    return sorted(
        (name for name in names if not name.rsplit("/", 1)[-1].startswith("_")),
        key=lambda name: (int(name), "") if name.isdecimal() else (0, name),
    )


def modules(folder: str) -> list[str]:
    """Return the names of the modules in a folder of this package, sorted, without importing them.

    A module whose name starts with an underscore is a helper of the others and is left out.
    """
    found = (module.name for module in pkgutil.iter_modules([str(PACKAGE / folder)]))
    return sorted(name for name in found if not name.startswith("_"))

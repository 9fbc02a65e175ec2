"""Read what a method says about itself from its source, which is not imported: no torch."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

UNKNOWN = "-"
_FITTED = "deephash_cli.methods.base.ShallowHasher"  # base class of the methods that are fitted on features
_LEARNED = "deephash_cli.methods.base.HashingModule"  # base class of those that learn by gradient


def source_of(module: str) -> Path | None:
    """Return the file of a module, which is not imported; None if there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


class Facts(NamedTuple):
    """What the source of a method says about it.

    Attributes:
        supervision: What it learns from, its class attribute ``supervision``.
        inputs: What it is trained on: ``features`` for every class that inherits from ``ShallowHasher``, over however
            many files, otherwise ``images``.
        views: Number of views of each image that it compares, its class attribute ``views``.
        multi_label: Whether its paper covers several labels, its class attribute ``multi_label``.
        transductive: Whether it trains on the whole database, its class attribute ``transductive``.
    """

    supervision: str = UNKNOWN
    inputs: str = UNKNOWN
    views: int = 1
    multi_label: bool = True
    transductive: bool = False


_ATTRIBUTES = set(Facts._fields) - {"inputs"}


def facts_of(module: str, class_name: str) -> Facts:
    """Return what a class says about itself or inherits, read from the sources without importing them.

    A class without ``supervision`` is no method: nothing is known about it.
    """
    found: dict[str, Any] = {}
    inputs = "images"
    for name, node in _ancestry(module, class_name, frozenset()):
        if name == _FITTED:
            inputs = "features"
        for statement in node.body:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
            value = getattr(statement, "value", None)
            if isinstance(target, ast.Name) and target.id in _ATTRIBUTES and isinstance(value, ast.Constant):
                found.setdefault(target.id, value.value)
    return Facts(**{"inputs": inputs, **found}) if "supervision" in found else Facts()


def is_learned(target: str) -> bool:
    """Return whether the source of a class says that it is a method that learns by gradient.

    Args:
        target: Full name of the class.
    """
    return is_kind_of(target, _LEARNED)


def is_defined(target: str) -> bool:
    """Return whether the source of a module defines a class, read from the source without importing it.

    Args:
        target: Full name of the class.
    """
    module, _, class_name = target.rpartition(".")
    return any(name == target for name, _ in _ancestry(module, class_name, frozenset()))


def is_kind_of(target: str, other: str) -> bool:
    """Return whether a class is another class or inherits from it, read from the sources without importing them.

    Args:
        target: Full name of the class, such as ``package.module.Class``.
        other: Full name of the other class.
    """
    module, _, class_name = target.rpartition(".")
    return target == other or any(name == other for name, _ in _ancestry(module, class_name, frozenset()))


def _ancestry(module: str, class_name: str, seen: frozenset[str]) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield a class and the classes that it inherits from, nearest first: full name and definition of each."""
    source = source_of(module)
    if source is None or f"{module}.{class_name}" in seen:
        return
    tree = ast.parse(source.read_bytes())
    places = _imported(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            yield f"{module}.{class_name}", node
            for base in map(ast.unparse, node.bases):
                head, _, rest = base.partition(".")
                full = f"{places[head]}.{rest}".rstrip(".") if head in places else f"{module}.{base}"
                origin, _, name = full.rpartition(".")
                yield from _ancestry(origin, name, seen | {f"{module}.{class_name}"})


def _imported(tree: ast.Module) -> dict[str, str]:
    """Return what each imported name of a module stands for, as a dotted name."""
    places: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            places |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            places |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return places

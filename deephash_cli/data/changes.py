"""Settings that reduce the training part of a division: unseen classes, a long tail, few labels.

A division that was changed records how, in a form that JSON can hold:
``{"unseen": {"classes": ["bird", "cat"]}, "imbalance": 100, "labelled": 500}``, with the entries that there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deephash_cli.errors import ConfigError, short

_NAMES = 5  # class names that are shown


@dataclass(frozen=True)
class Changes:
    """Wanted changes of the training part, applied in this order.

    Attributes:
        unseen: Share of the classes, between 0 and 1, or names of classes, whose images are not trained on; None for no
            such class.
        imbalance: Number of training images of the largest class divided by that of the smallest; None to keep all.
        labelled: Number of training images to keep; None to keep all.
    """

    unseen: float | tuple[str, ...] | None = None
    imbalance: int | None = None
    labelled: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Changes":
        """Read the changes from the settings of a data set; a missing setting is None.

        Raises:
            ConfigError: If ``unseen`` is neither a share nor a list.
        """
        unseen = settings.get("unseen")
        if isinstance(unseen, Sequence) and not isinstance(unseen, str) and len(unseen):
            unseen = tuple(map(str, unseen))
        elif unseen is not None and not (isinstance(unseen, float) and 0 < unseen < 1):
            raise ConfigError(
                "dataset.unseen must be a share of the classes between 0 and 1, such as 0.25, or a list of names of "
                f"classes, such as [cat,dog], got {short(str(unseen))}"
            )
        return cls(unseen, settings.get("imbalance"), settings.get("labelled"))

    @property
    def typed(self) -> list[str]:
        """The settings that want a change, by name."""
        return [f"dataset.{name}" for name in ("unseen", "imbalance", "labelled") if getattr(self, name) is not None]


def unseen_classes(changes: Any) -> list[str]:
    """Return the names of the unseen classes in a record of changes; an empty list if there are none."""
    part = changes.get("unseen") if isinstance(changes, Mapping) else None
    names = part.get("classes") if isinstance(part, Mapping) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def is_record(changes: Any) -> bool:
    """Return whether a value from a file has the form of a record of changes."""
    if not isinstance(changes, Mapping) or not changes.keys() <= {"unseen", "imbalance", "labelled"}:
        return False
    numbers = [value for name, value in changes.items() if name != "unseen"]
    is_right = all(type(number) is int and 0 < number < 2**63 for number in numbers)
    return is_right and ("unseen" not in changes or bool(unseen_classes(changes)))


def in_words(changes: Any, with_names: bool = True) -> list[str]:
    """Describe a record of changes for titles of tables, in a few words each. Anything that is no change is left out.

    Args:
        changes: Record of changes, possibly from a file that was edited.
        with_names: Whether the first names of unseen classes are given, too.

    >>> in_words({"unseen": {"classes": ["bird", "cat"]}, "imbalance": 100, "labelled": 500})
    ['2 unseen classes: bird, cat', 'long tail of factor 100', '500 labelled images']
    """
    words = []
    if names := unseen_classes(changes):
        some = ", ".join(map(short, names[:_NAMES])) + (", ..." if len(names) > _NAMES else "")
        count = f"{len(names)} unseen {'class' if len(names) == 1 else 'classes'}"
        words.append(f"{count}: {some}" if with_names else count)
    for name, text in (("imbalance", "long tail of factor {}"), ("labelled", "{} labelled images")):
        number = changes.get(name) if isinstance(changes, Mapping) else None
        if type(number) is int and 0 < number < 2**63:
            words.append(text.format(short(str(number))))
    return words

"""Say in one line how a user's own data were understood."""

from collections.abc import Sequence

from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.protocol import Split
from deephash_cli.errors import short

_NAMES = 5  # class names that are shown


def summary(dataset: RetrievalDataset, split: Split, split_file: str | None) -> str:
    """Describe a data set, how its files were read, and its division.

    Args:
        dataset: Data set from files of the user.
        split: Division that is used.
        split_file: File that the division comes from; None if the protocol divides.
    """
    holds = "vectors" if dataset.name == "vectors" else "images"
    parts = [
        f"{_count(len(dataset), holds)}, {_classes(dataset.class_names)}",
        *(remark for remark in dataset.reading or () if remark),
        f"{_count(len(split.query), 'queries')}, {len(split.train)} for training, database of {len(split.database)}",
        _origin(dataset, split, split_file),
    ]
    unlabelled = int((~dataset.labels.any(axis=1)).sum()) if dataset.class_names else 0
    if unlabelled:
        parts.insert(1, f"{unlabelled} without a label")
    return f"{dataset.name}: {'; '.join(parts)}"


def _count(number: int, things: str) -> str:
    one = {"queries": "query"}.get(things, things.removesuffix("s"))
    return f"{number} {one if number == 1 else things}"


def _classes(names: Sequence[str]) -> str:
    if not names:
        return "no labels"
    some = ", ".join(short(name) for name in names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'}: {some}"


def _origin(dataset: RetrievalDataset, split: Split, split_file: str | None) -> str:
    """Say where the division comes from, and whether that leaves one unused."""
    own = {"csv": "the column split", "image_list": "the lists"}.get(dataset.name, "the data set's own division")
    if split_file is not None:
        return f"divided by {split_file}" + (f", {own} not used" if dataset.official is not None else "")
    if split.name == "official":
        return f"divided by {own}"
    drawn = f"drawn by dataset.protocol={split.name}"
    return drawn + (f", so {own} is not used" if dataset.has_own_division else "")

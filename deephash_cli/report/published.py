"""Published numbers, beside which our own are shown where data set and protocol are the same."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

NOTE = (
    "Published numbers come from other networks, other features and other random splits of the same protocol, and "
    "mostly do not say what became of ties: they are for orientation, not for comparison digit by digit. Secondary "
    "ones were not read in the work that measured them, but where another shows them."
)


@dataclass(frozen=True)
class Published:
    """What one source reports of one method.

    Attributes:
        method: Its name here.
        dataset: The data set.
        protocol: Its name here.
        computed_with: The network or the features.
        source: Where the numbers were read.
        secondary: Whether that is a text that quotes another.
        map: mAP over the whole database, in 0..1, by code length.
    """

    method: str
    dataset: str
    protocol: str
    computed_with: str
    source: str
    secondary: bool
    map: dict[int, float]


@cache
def published() -> tuple[Published, ...]:
    """All that are known, in the order of the file."""
    text = (Path(__file__).parent / "published.yaml").read_text(encoding="utf-8")
    return tuple(
        Published(
            entry["method"],
            entry["dataset"],
            entry["protocol"],
            entry["with"],
            entry["source"],
            entry.get("secondary", False),
            entry["map"],
        )
        for entry in yaml.safe_load(text)
    )


def beside(method: str, dataset: str, protocol: str, lengths: list[int]) -> list[Published]:
    """Those of a method on a data set and protocol that have one of some code lengths."""
    return [
        entry
        for entry in published()
        if (entry.method, entry.dataset, entry.protocol) == (method, dataset, protocol)
        and not entry.map.keys().isdisjoint(lengths)
    ]

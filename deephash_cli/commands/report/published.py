"""Published results, which are shown next to our own if data set and protocol are the same."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

NOTE = (
    "Published numbers come from other networks, other features and other random splits of the same protocol, and "
    "most sources do not say how ties were handled. They are for orientation, not for comparison digit by digit. "
    "Secondary numbers were not read in the work that measured them, but in another that quotes them."
)


@dataclass(frozen=True)
class Published:
    """Results that one source reports for one method.

    Attributes:
        method: Name of the method in this project.
        dataset: Name of the data set in this project.
        protocol: Name of the protocol in this project.
        computed_with: Network or features with which the results were computed.
        source: Text in which the numbers were read.
        secondary: Whether that text quotes another, which measured them.
        map: mAP over the whole database, in 0..1, by code length in bits.
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
    """Return all published results, in the order of ``published.yaml``."""
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
    """Return the published results for this method, data set and protocol at any of these code lengths."""
    return [
        entry
        for entry in published()
        if (entry.method, entry.dataset, entry.protocol) == (method, dataset, protocol)
        and not entry.map.keys().isdisjoint(lengths)
    ]

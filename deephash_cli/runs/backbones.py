"""What the tables of runs say about backbones: their size, the data and labels that they have seen, their licence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deephash_cli.errors import one_line
from deephash_cli.retrieval.codes import is_count
from deephash_cli.runs import records

MARK = "†"
LEGEND = f"{MARK} pretrained with labels of the classes searched"
UNKNOWN = "not known"


@dataclass(frozen=True)
class Backbone:
    """The backbone of a run, for tables.

    Attributes:
        name: Short name.
        parameters: Number of weights.
        pretraining: Data that the weights were trained on; None if it is not known, or if the weights were random.
        licence: Licence of the weights; None if it is not known, or if the weights were random.
        is_random: Whether the weights were random before the run.
        on_classes: Whether the weights have seen labels of the classes that are searched; None if that is not known.
    """

    name: str
    parameters: int
    pretraining: str | None
    licence: str | None
    is_random: bool
    on_classes: bool | None

    @property
    def size(self) -> str:
        """The number of weights, in millions."""
        return f"{self.parameters / 1e6:.1f} M"

    @property
    def data(self) -> str:
        """The data that the weights were trained on, for tables."""
        return "none" if self.is_random else one_line(self.pretraining or UNKNOWN)

    @property
    def terms(self) -> str:
        """The licence of the weights, for tables."""
        return "none" if self.is_random else one_line(self.licence or UNKNOWN)

    def __str__(self) -> str:
        """Return a line for below a table."""
        weights = "random weights" if self.is_random else f"pretraining {self.data}, licence {self.terms}"
        return f"backbone {one_line(self.name)}: {self.size} parameters, {weights}"


def backbone_of(metrics: Mapping[str, Any]) -> Backbone | None:
    """Return the backbone of a run by its metrics; None without one, or if they are old or were edited."""
    record, on_classes = metrics.get("backbone"), metrics.get("pretrained_on_classes")
    if not isinstance(record, Mapping):
        return None
    name, parameters, weights = (record.get(key) for key in ("name", "parameters", "weights"))
    texts = [record.get(key) for key in ("pretraining", "licence")]
    if not (records.is_name(name) and is_count(parameters) and parameters and records.is_name(weights)):
        return None  # vectors are hashed without a backbone, which has no parameters
    pretraining, licence = (text if records.is_name(text) else None for text in texts)
    known = on_classes if isinstance(on_classes, bool) else None
    return Backbone(str(name), parameters, pretraining, licence, weights == "none", known)  # type: ignore[arg-type]

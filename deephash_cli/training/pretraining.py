"""Say before a training, and record after it, what the weights of its backbone have seen and may be used for."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from deephash_cli.errors import ConfigError, short
from deephash_cli.models import HashingNetwork, NoBackbone

# Licences that allow every use, also a commercial one, in the spelling of SPDX.
_FREE = re.compile(
    r"apache-2\.0|mit|mit-0|bsd(-\d-clause.*)?|isc|zlib|unlicense|0bsd|mpl-2\.0|cc0-1\.0|cc-by(-sa)?-\d\.\d|cdla-permissive-.*"
)


def known_to(config: DictConfig) -> list[str] | None:
    """Return the labelled data sets that have the classes of a run's data set; None if that is not known.

    Args:
        config: Composed configuration of ``deephash train``.

    Raises:
        ConfigError: If the setting is not a list of names.
    """
    node = OmegaConf.select(config, "dataset.classes_known_to")  # a file of the user's own may not have it
    names: Any = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(
            f"dataset.classes_known_to must be a list of names, such as [imagenet], got {short(str(names))}"
        )
    return names


def record_of(network: HashingNetwork) -> Mapping[str, Any] | None:
    """Return the record of a network's backbone; None if there is none, or it does not say where it comes from."""
    origin: Any = getattr(network.backbone, "origin", None)
    return None if origin is None or isinstance(network.backbone, NoBackbone) else origin.record()


def on_classes(record: Mapping[str, Any] | None, known: Sequence[str] | None) -> dict[str, bool]:
    """Return the entry ``pretrained_on_classes`` of the provenance of codes.

    Args:
        record: Record of the backbone; None if there is none.
        known: Labelled data sets that have the classes of the run's data set; None if that is not known.

    Returns:
        The entry: whether the weights have seen labels of the classes that are searched. Empty if that is not known.
    """
    if record is None or known is None:
        return {}
    return {"pretrained_on_classes": not set(known).isdisjoint(record["labelled"])}


def cautions(record: Mapping[str, Any] | None, known: Sequence[str] | None, dataset: str) -> list[str]:
    """Return a sentence for each reason to be careful with results of a backbone.

    Args:
        record: Record of the backbone; None if there is none.
        known: Labelled data sets that have the classes of the run's data set; None if that is not known.
        dataset: Name of the run's data set.
    """
    found = []
    if record is None or record["weights"] == "none":
        return found
    if on_classes(record, known).get("pretrained_on_classes"):
        labels = " and ".join(name for name in record["labelled"] if name in (known or ()))
        found.append(
            f"{record['name']} was pretrained with labels of {labels}, which has the classes of {dataset}: results say "
            "less about classes that nobody has labelled, and tables mark them with †"
        )
    licence = record["licence"]
    if licence is None and not record["weights"].startswith("file"):  # of a file the user knows where it comes from
        found.append(f"the licence of the weights of {record['name']} is not known: look it up before you use them")
    if licence is not None and not _FREE.fullmatch(licence.strip().lower()):
        found.append(
            f"the weights of {record['name']} have the licence {licence}, which does not allow every use: read it "
            "before you use the weights or their codes in a product"
        )
    return found

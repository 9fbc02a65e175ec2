"""``deephash data``: say what is in a division of a data set (``audit``); make, convert and check one (``split``)."""

from omegaconf import DictConfig

from deephash_cli.commands.data import audit, split
from deephash_cli.errors import ConfigError

_ACTIONS = {"audit": audit.run, "split": split.run}
# Settings of one action alone, with the value that leaves them out.
_OF_ONE = {"against": "audit", "near_duplicates": "audit", "classes": "audit", "lists": "split", "sha256": "split"}


def run(config: DictConfig, dataset: DictConfig | None = None, against: DictConfig | None = None) -> None:
    """Run ``deephash data``.

    Args:
        config: The configuration of the verb.
        dataset: The node ``dataset`` of ``deephash train`` with the data set to look at; None if none is given.
        against: The same node of the data set to compare with; None if none is given.

    Raises:
        ConfigError: If the action is missing, or a setting does not belong to it.
        DataError: If the data are missing or damaged, an audit finds a fault, or a digest differs.
        ArtifactError: If codes are damaged, or a file cannot be written.
    """
    if config.action is None:
        raise ConfigError("deephash data needs its second word: deephash data audit, or deephash data split")
    for name, action in _OF_ONE.items():
        if config[name] not in (None, False) and action != config.action:
            raise ConfigError(f"{name}= belongs to the action {action}, not to {config.action}: leave it out")
    _ACTIONS[config.action](config, dataset, against)

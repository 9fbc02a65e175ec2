"""Which run folder a command goes on with, and whether it may."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deephash_cli import runs
from deephash_cli.data.dataset import RetrievalDataset
from deephash_cli.data.protocol import Split, load_split, save_split
from deephash_cli.errors import ArtifactError, ConfigError, first_line
from deephash_cli.files import read_json

_CONFIG_LIMIT = 2**20


def earlier_run(settings: Mapping[str, Any]) -> Path | None:
    """The run folder that ``resume`` asks for, if there is one.

    Raises:
        ConfigError: If the run in it has other settings than a resumed run may have.
        ArtifactError: If it holds no run.
    """
    resume, run_dir = settings["resume"], settings["run_dir"]
    if resume == "none":
        return None
    if resume == "auto" and run_dir is None:
        return runs.find(Path(settings["runs"]), runs.fingerprint(settings))
    folder = Path(run_dir if resume == "auto" else resume)
    if resume == "auto" and not (folder / runs.RECORD).exists():
        return None
    runs.read_record(folder)
    before = read_config(folder / runs.CONFIG)
    if changes := runs.forbidden_changes(before, settings):
        raise ConfigError(
            f"{folder} was started with other settings, which a resumed run must keep: {'; '.join(changes)}"
        )
    return folder


def read_config(file: Path) -> dict[str, Any]:
    """The settings of a run, as plain values: nothing in the file is resolved or built.

    Raises:
        ArtifactError: If there are none, or they are something else than settings.
    """
    try:
        if file.stat().st_size > _CONFIG_LIMIT:
            raise ArtifactError(f"{file} has more than the {_CONFIG_LIMIT} bytes that a configuration may have")
        text = file.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ArtifactError(f"{file} has YAML aliases, which deephash does not write: it was edited by hand")
        content = OmegaConf.to_container(OmegaConf.create(text))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ArtifactError(f"{file} cannot be read as a configuration: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{file} is not the configuration of a run")
    return cast(dict[str, Any], content)


def is_done(folder: Path, epochs: int) -> bool:
    """Whether the run in ``folder`` has ended and trained for as many epochs as are asked for now."""
    finished = runs.read_record(folder)["status"] == "finished"
    return finished and read_json(folder / runs.METRICS)["epochs"] >= epochs


def keep_split(folder: Path, split: Split, dataset: RetrievalDataset) -> None:
    """Write the split into the run folder; a resumed run must have the one that is there.

    Raises:
        ArtifactError: If it has another.
    """
    file = folder / runs.SPLIT
    if file.exists() and load_split(file, dataset).sha256 != split.sha256:
        raise ArtifactError(f"{file} is not the split that the settings give now: the data changed, start a new run")
    save_split(file, split, dataset)

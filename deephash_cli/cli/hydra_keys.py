"""Hydra's own settings: those that deephash decides itself, and the packages that hold Hydra's plugins."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deephash_cli.choices import CONF_DIR
from deephash_cli.errors import ConfigError, hint

# Packages of the launchers, sweepers and loggers of Hydra that are not part of Hydra itself.
PLUGINS = {
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/ray_aws": "hydra-ray-launcher",
    "hydra/launcher/rq": "hydra-rq-launcher",
    "hydra/launcher/submitit_local": "hydra-submitit-launcher",
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
    "hydra/sweeper/optuna": "'deephash[optuna]'",
    "hydra/hydra_logging/colorlog": "hydra-colorlog",
    "hydra/job_logging/colorlog": "hydra-colorlog",
}
_SWEEPS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper")  # settings that only a sweep uses


def refuse_decided(verb: str, composed: Any) -> None:
    """Refuse a configuration that changes what deephash decides for Hydra: folders, their names, and sweeping.

    Such a setting would have no effect, or leave an empty folder behind.

    Args:
        verb: The verb whose configuration was composed.
        composed: The node ``hydra`` of the configuration.

    Raises:
        ConfigError: If a setting differs from the one in deephash's own configuration.
    """
    found = _flat(composed)
    for key, value in {**_decided("train" if verb == "train" else "_verb"), "mode": None}.items():
        if found.get(key) == value:
            continue
        if verb != "train":
            remedy = f"deephash {verb} makes no folder of Hydra's, so leave it out"
        elif key == "mode":
            remedy = "-m runs a sweep"
        elif key.startswith("sweep."):
            remedy = "a sweep makes its run folders in runs=<folder>"
        else:
            remedy = "the run folder is run_dir=<folder>, and runs=<folder> is the folder of all runs"
        raise ConfigError(f"hydra.{key} cannot be set: {remedy}")


@functools.cache
def _decided(file: str) -> dict[str, Any]:
    """Return the settings of Hydra in a file of deephash's own, which is read once for all jobs of a sweep."""
    from omegaconf import OmegaConf

    return _flat(OmegaConf.load(CONF_DIR / f"{file}.yaml").hydra)


def _flat(node: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from deephash_cli.runs import flatten

    return flatten(OmegaConf.to_container(node, resolve=False))  # type: ignore[arg-type]


def refuse_without_sweep(settings: Sequence[str]) -> None:
    """Refuse settings that have an effect in a sweep only.

    Args:
        settings: Settings as typed for a single run.

    Raises:
        ConfigError: If one of them chooses or configures a launcher or a sweeper.
    """
    for setting in settings:
        name, _, value = setting.lstrip("+").partition("=")
        if name in _SWEEPS or name.startswith(_SWEEPS[2:]) or (name == "tune" and value not in ("", "null")):
            raise ConfigError(f"{setting} has an effect in a sweep only: add -m")


def explain_choice(group: str, choice: str, config_dir: str | None) -> str:
    """Return the sentence about a choice that one of Hydra's own groups does not have.

    Args:
        group: The group, such as ``hydra/launcher``.
        choice: The choice that was not found.
        config_dir: The user's own configuration folder, which may have choices; None if there is none.
    """
    if package := PLUGINS.get(f"{group}/{choice}"):
        what = "a search with tune= or " if choice == "optuna" else ""
        return f"{what}{group}={choice} needs a package of its own: pip install {package}"
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    loader = GlobalHydra.instance().config_loader()
    known = set(loader.get_group_options(group, results_filter=ObjectType.CONFIG))
    if config_dir:
        known |= {file.stem for file in (Path(config_dir) / group).glob("*.yaml")}
    known |= {plugin.removeprefix(f"{group}/") for plugin in PLUGINS if plugin.startswith(f"{group}/")}
    if not known:
        return f"{group} is not a group of Hydra's"
    return f"{group} has no choice {choice!r}{hint(choice, known)}; the choices are: {', '.join(sorted(known))}"

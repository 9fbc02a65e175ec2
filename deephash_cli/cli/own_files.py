"""Limits for the files of the user's own configuration folder, checked before Hydra reads each of them."""

import os
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.runs.settings import bounded_yaml, yaml_problem

_VALUES = 2000  # Hydra takes a second for them; a list may have a value for each class


class OwnFiles(ConfigSource):
    """Source that has no configuration, but checks those of the user's own folder.

    Hydra asks its sources in turn whether they have a file, and this one before the user's own folder. So the files
    that Hydra reads are checked, and no other files of the folder.
    """

    folder: Path | None = None  # the user's configuration folder

    @staticmethod
    def scheme() -> str:
        """Return the scheme of this source's address on the search path."""
        return "own-files"

    def is_config(self, config_path: str) -> bool:
        """Check a file of the user's own, and return False: Hydra reads it from the folder itself.

        Raises:
            ConfigError: If there is such a file and it is not YAML, or exceeds the limits of a configuration.
        """
        if self.folder is None:
            return False
        file = self.folder / self._normalize_file_name(config_path)
        if os.path.isfile(file):  # noqa: PTH113  Path.is_file raises an error if a name is too long
            _check(file)
        return False

    def load_config(self, config_path: str) -> ConfigResult:
        """Never called, as there is no configuration here."""
        raise NotImplementedError(config_path)

    def available(self) -> bool:
        """Return True: this source needs no file or folder."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return whether a path is the root, which every source has."""
        return not config_path.strip("/")

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return an empty list."""
        return []


def _check(file: Path) -> None:
    """Refuse a file that is not a configuration, with its name; Hydra does not name it."""
    try:
        bounded_yaml(file, _VALUES, has_aliases=True)
        OmegaConf.load(file)
    except ArtifactError as error:
        raise ConfigError(str(error)) from error
    except (OSError, ValueError, LookupError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} cannot be read as a configuration: {yaml_problem(error)}") from error


class OwnFilesPath(SearchPathPlugin):
    """Plugin that adds the check to Hydra's search path for every command."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the check."""
        search_path.append("deephash", f"{OwnFiles.scheme()}://all")


def register(config_dir: str | None) -> None:
    """Register the check with Hydra. It may be called more than once.

    Args:
        config_dir: The user's own configuration folder; None if there is none.
    """
    OwnFiles.folder = None if config_dir is None else Path(config_dir).absolute()
    for plugin in (OwnFiles, OwnFilesPath):
        Plugins.instance().register(plugin)

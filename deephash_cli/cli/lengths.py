"""Code lengths that need no file: Hydra accepts every whole number from 1 to 4096 as a choice of the group ``bits``."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from deephash_cli.cli.limits import LONGEST

_GROUP = "bits"


class LengthSource(ConfigSource):
    """Source of the choices of ``bits`` for Hydra; each is made when Hydra asks for it.

    Hydra searches this source before the user's own configuration folder. A length may have a file there, which may set
    more than the length; this source leaves such a length to its file.
    """

    own: Path | None = None  # the folder bits/ of the user's configuration

    @staticmethod
    def scheme() -> str:
        """Return the scheme of this source's address on the search path."""
        return "lengths"

    def load_config(self, config_path: str) -> ConfigResult:
        """Make the configuration of one length."""
        node = OmegaConf.create({_GROUP: _length(config_path)})
        return ConfigResult(
            config=node, provider=self.provider, path=f"{self.scheme()}://", header={"package": "_global_"}
        )

    def available(self) -> bool:
        """Return True: this source needs no file or folder."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return whether a path is the group ``bits``, or the root above it."""
        return config_path.rstrip("/") in ("", _GROUP)

    def is_config(self, config_path: str) -> bool:
        """Return whether a path is a length of the group ``bits`` that has no file of the user's own."""
        length = _length(config_path)
        return length is not None and not (self.own and (self.own / f"{length}.yaml").exists())

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return an empty list: thousands of numbers would hide the lengths that have a file."""
        return []


class LengthPath(SearchPathPlugin):
    """Plugin that adds the source of lengths to Hydra's search path for every command."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source of lengths."""
        search_path.append("deephash", f"{LengthSource.scheme()}://all")


def register(config_dir: str | None) -> None:
    """Register the source of lengths with Hydra. It may be called more than once.

    Args:
        config_dir: The user's own configuration folder, whose files take precedence; None if there is none.
    """
    LengthSource.own = None if config_dir is None else Path(config_dir).absolute() / _GROUP
    for plugin in (LengthSource, LengthPath):
        Plugins.instance().register(plugin)


def _length(config_path: str) -> int | None:
    """Return the length that a path such as ``bits/20`` names, or None."""
    group, _, name = config_path.removesuffix(".yaml").rpartition("/")
    if group != _GROUP or not name.isdecimal() or not name.isascii() or name != str(int(name)):
        return None
    return int(name) if 1 <= int(name) <= LONGEST else None

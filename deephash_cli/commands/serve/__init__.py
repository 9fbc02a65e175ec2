"""``deephash serve``: a web page that shows the nearest images to an uploaded one, and the same over HTTP."""

import errno
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from deephash_cli import runs
from deephash_cli.console import say, warn
from deephash_cli.errors import ArtifactError, ConfigError
from deephash_cli.retrieval import rescoring

HOST = "127.0.0.1"  # this machine only: whoever can reach the server can use its processor and see the database
_PACKAGES = {"fastapi": "FastAPI", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def run(config: DictConfig) -> None:
    """Run ``deephash serve`` until it is stopped."""
    is_rescored = rescoring.settle(config.rescore, config.shortlist, config.k) is not None
    folder = runs.given_or_latest(config.run, config.codes)
    for module, name in _PACKAGES.items():
        if find_spec(module) is None:
            raise ConfigError(f"deephash serve needs {name}: pip install 'deephash[serve]'")
    with listen(config.port) as listening:
        # Imported here because it takes seconds; an occupied port is reported before that.
        from deephash_cli.commands.serve.app import create_app
        from deephash_cli.commands.serve.connections import Limits
        from deephash_cli.commands.serve.server import make_server
        from deephash_cli.inference.searcher import open_searcher

        say(f"loading {folder} ...")
        codes = None if config.codes is None else Path(config.codes)
        settings = cast(dict[str, Any], OmegaConf.to_container(config))
        trusted = list(config.allowed_targets)
        searcher = open_searcher(
            folder, codes, config.index, settings, trusted, shortlist=config.shortlist, is_rescored=is_rescored
        )
        if searcher.encoder.takes != "images":
            raise ConfigError(f"{folder} hashes vectors, but the page takes images: give a run that hashes images")
        if searcher.n == 0:
            raise ArtifactError(f"there is nothing to search: {codes or folder} has no codes of images")
        # Opens the data set of the pictures now: for some data sets that takes seconds, too long for a request.
        first = searcher.database.ids[0]
        if searcher.picture(first) is None:
            warn(f"{searcher.pictures.why_not(first)}: the page shows only the names of such images")
        limits = Limits(config.max_bytes)
        server = make_server(create_app(searcher, config.k, limits), limits)
        say(f"{searcher.title}, {searcher.n} images")
        say(f"open http://{HOST}:{listening.getsockname()[1]} (on this machine only; stop it with Ctrl-C)")
        # When a signal stops the server, it raises the signal again, which `stopping` turns into an exit code.
        server.run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """Open a socket that accepts connections from this machine only.

    Args:
        port: Port number; 0 for any free one.

    Raises:
        ConfigError: If the port is in use or reserved for administrators.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else the port stays blocked for a minute
    try:
        listening.bind((HOST, port))
        listening.listen()  # until this call another process could still take the port
    except OSError as error:
        listening.close()
        reason = {errno.EADDRINUSE: "another program is using it", errno.EACCES: "it is reserved for administrators"}
        raise ConfigError(
            f"cannot listen on port {port}: {reason.get(error.errno or 0, error.strerror)}; "
            "choose another such as port=8765, or port=0 for any free one"
        ) from error
    return listening

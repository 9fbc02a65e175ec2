"""``deephash serve``: drop an image into a page and see the nearest ones; for programs, the same over HTTP."""

import errno
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from deephash_cli import runs
from deephash_cli.console import say, warn
from deephash_cli.errors import ArtifactError, ConfigError

HOST = "127.0.0.1"  # and no other: whoever can reach the server can use this machine, and see the database
_PACKAGES = {"fastapi": "FastAPI", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def serve(config: DictConfig) -> None:
    """The verb. It ends when it is stopped."""
    run = runs.given_or_latest(config.run)
    for module, name in _PACKAGES.items():
        if find_spec(module) is None:
            raise ConfigError(f"deephash serve needs {name}: pip install 'deephash[serve]'")
    with listen(config.port) as listening:
        # Not before: they take seconds, and a port that is taken is found out at once.
        import uvicorn

        from deephash_cli.search import open_searcher
        from deephash_cli.serve.app import create_app

        say(f"loading {run} ...")
        codes = None if config.codes is None else Path(config.codes)
        settings = cast(dict[str, Any], OmegaConf.to_container(config))
        searcher = open_searcher(run, codes, config.index, settings, list(config.allowed_targets))
        if searcher.encoder.takes != "images":
            raise ConfigError(f"{run} hashes vectors, and a page takes images: give a run that hashes images")
        if searcher.n == 0:
            raise ArtifactError(f"there is nothing to search in: {codes or run} has codes of no image")
        # Loads what pictures are in, which takes seconds with some data sets: not while somebody waits.
        if searcher.picture(searcher.database.ids[0]) is None:
            warn("the images of the database are not at hand: the page will show their names only")
        app = create_app(searcher, config.k, config.max_bytes)
        server = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", ws="none", proxy_headers=False,
            server_header=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        say(f"{searcher.title}, {searcher.n} images")
        say(f"open http://{HOST}:{listening.getsockname()[1]} (on this machine only; Ctrl-C ends it)")
        # Ends with the signal that stopped it, which then is for `stopping` to turn into an exit code.
        uvicorn.Server(server).run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """A socket that waits for connections from this machine.

    Args:
        port: 0 for any that is free.

    Raises:
        ConfigError: If the port is taken or needs an administrator.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or the port stays taken for a minute after an end
    try:
        listening.bind((HOST, port))
        listening.listen()  # until then another process could still take the port
    except OSError as error:
        listening.close()
        reason = {errno.EADDRINUSE: "another program uses it", errno.EACCES: "it is for administrators only"}
        raise ConfigError(
            f"cannot listen on port {port}: {reason.get(error.errno or 0, error.strerror)}; "
            "choose another such as port=8765, or port=0 for any that is free"
        ) from error
    return listening

"""The server that runs the application, with limits on what clients can take up."""

import functools
import logging
import socket

import uvicorn
from fastapi import FastAPI

from deephash_cli.commands.serve.connections import Connection, Limits


def make_server(app: FastAPI, limits: Limits) -> "Server":
    """Return a server for an application of ``create_app``, which is run with a socket that is open already."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", ws="none", proxy_headers=False,
        server_header=False, timeout_graceful_shutdown=1,
        http=functools.partial(Connection, limits),  # type: ignore[arg-type]
    )  # fmt: skip
    return Server(config)


class Server(uvicorn.Server):
    """A server that stops within two seconds, whatever its clients do."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: requests that wait for their turn are not done any more, and those that are cancelled are no errors."""
        self.config.app.state.is_stopping = True  # type: ignore[union-attr]
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)

"""Connections of the server: none waits for its client without an end, and none reads without an end."""

import asyncio
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_DROPPED = 2  # bytes of a refused request that are read and dropped, as a multiple of the largest size


@dataclass(frozen=True)
class Limits:
    """What a client can take up.

    Attributes:
        max_bytes: Largest size of a request, in bytes.
        header_seconds: Longest time until the head of a request has arrived.
        body_seconds: Longest time until the rest of a request has arrived.
        answer_seconds: Longest time during which the client takes nothing of an answer.
        linger_seconds: Time for the client to read an answer that came before the request was whole.
        connections: Largest number of open connections.
    """

    max_bytes: int
    header_seconds: float = 10
    body_seconds: float = 60
    answer_seconds: float = 30
    linger_seconds: float = 5
    connections: int = 256


class Connection(H11Protocol):
    """A connection of uvicorn with limits, of which uvicorn has none.

    The time of a body is limited in ``Guard``, which can still answer.

    Args:
        limits: What a client can take up.
        **arguments: Arguments of uvicorn's class.
    """

    def __init__(self, limits: Limits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._end: asyncio.TimerHandle | None = None
        self._unread = 0  # bytes of a request that was already answered
        self.is_lingering = False
        self.since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection. If there are too many, the one that has waited longest for a request is closed."""
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        self.since = self.loop.time()
        self._end_after(self._limits.header_seconds)
        if len(self.connections) > self._limits.connections:
            others: list[Connection] = [other for other in self.connections if isinstance(other, Connection)]
            waiting = [other for other in others if other.is_waiting and other is not self]
            min(waiting, key=lambda other: other.since, default=self).transport.abort()

    @property
    def is_waiting(self) -> bool:
        """Whether the head of a request is awaited, of which a part may have arrived."""
        return self.conn.their_state is h11.IDLE

    @property
    def is_unfinished(self) -> bool:
        """Whether the client is still sending the body of a request."""
        return self.conn.their_state is h11.SEND_BODY

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.is_lingering:
            self._unread += len(data)
            if self._unread > _DROPPED * self._limits.max_bytes:
                self.flow.pause_reading()
            return
        super().data_received(data)
        if self.is_lingering or self.transport.is_closing():
            return
        if not self.is_waiting:
            self._cancel()
        elif self._end is None:
            self.since = self.loop.time()
            self._end_after(self._limits.header_seconds)

    def on_response_complete(self) -> None:
        """Go on to the next request, or end the connection if the client is still sending this one."""
        if self.is_unfinished and not self.is_lingering:
            self.linger()
        super().on_response_complete()

    def linger(self) -> None:
        """End the connection as soon as the client has had the time to read the answer.

        If a socket is closed while bytes of the client are unread, the client may lose the answer. A body of known
        length is read and dropped, up to a limit. One of unknown length may have no end and is not read.
        """
        self.is_lingering = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if not any(name == b"content-length" for name, _ in self.headers):
            self.flow.pause_reading()
        self._end_after(self._limits.linger_seconds)

    def pause_writing(self) -> None:
        """Stop writing, because the client does not read."""
        super().pause_writing()
        self._end_after(self._limits.answer_seconds)

    def resume_writing(self) -> None:
        """Write again."""
        super().resume_writing()
        if not self.is_lingering:
            self._cancel()

    def shutdown(self) -> None:
        """End the connection when the server stops; an answer that is being made is still sent."""
        if self.is_lingering or self.is_unfinished:
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection that has ended."""
        self._cancel()
        super().connection_lost(exc)

    def _end_after(self, seconds: float) -> None:
        self._cancel()
        self._end = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


class _Transport:
    """The transport of a connection; it is closed only when the client has had the time to read the answer."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._connection.is_lingering or self._transport.is_closing()

    def close(self) -> None:
        if self._connection.is_unfinished and not self._transport.is_closing():
            if not self._connection.is_lingering:
                self._connection.linger()
        else:
            self._transport.close()

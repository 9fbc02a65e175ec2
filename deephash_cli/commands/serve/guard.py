"""Check every request first: any web page in a browser on this machine can send requests to the server."""

import asyncio
import re

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Another web site can make its host name resolve to our address (DNS rebinding), but cannot change the host name that
# the browser sends. Any port is accepted: through a tunnel (ssh -L 9000:localhost:8000) the browser uses another one.
_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",  # keeps pages of other sites from showing our images
    "Cache-Control": "no-store",  # later, the same address may serve other images
}

_REQUESTS_HELD = 8  # requests of the largest size that may wait at the same time


class Guard:
    """Middleware that refuses requests from other web sites, and uploads that are too large or too slow.

    Args:
        app: Application that answers all other requests.
        max_bytes: Largest size of a request, in bytes.
        body_seconds: Longest time until the body of a request has arrived.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, body_seconds: float):
        self._app = app
        self._max_bytes = max_bytes
        self._body_seconds = body_seconds
        self._held = 0  # bytes of all requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is refused, and pass all others on to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        received, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._body_seconds

        async def receive_limited() -> Message:
            nonlocal received, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, self._too_slow()) from error
            size = len(message.get("body", b""))
            received += size
            self._held += size
            is_whole = not message.get("more_body", False)
            if received > self._max_bytes:
                raise HTTPException(413, self._too_large())
            if self._held > _REQUESTS_HELD * self._max_bytes:
                raise HTTPException(503, "too many large uploads are waiting: try again later")
            return message

        headers = Headers(scope=scope)
        if not _HOST.fullmatch(headers.get("host", "")):
            refused = (400, "this server answers only to localhost and 127.0.0.1: open it under one of these names")
        elif scope["method"] not in ("GET", "HEAD") and _is_foreign(headers):
            refused = (403, "this request comes from another web site; use the server's own page, or send no Origin")
        elif int(headers.get("content-length", 0)) > self._max_bytes:
            refused = (413, self._too_large())
        else:
            try:
                await self._app(scope, receive_limited, send_safely)
            finally:
                self._held -= received
            return
        await JSONResponse({"error": refused[1]}, refused[0])(scope, receive, send_safely)

    def _too_slow(self) -> str:
        return (
            f"a request must arrive within {self._body_seconds:g} seconds, and this one has not: send a smaller image, "
            "or use a faster connection"
        )

    def _too_large(self) -> str:
        return (
            f"an upload may have {self._max_bytes:,} bytes, this one has more; "
            "send a smaller image, or start the server with a larger max_bytes="
        )


def _is_foreign(headers: Headers) -> bool:
    """Whether the headers say that a page of another origin sent the request. Only browsers send these headers."""
    origin = headers.get("origin", f"http://{headers['host']}")
    return origin.lower() != f"http://{headers['host']}".lower() or headers.get("sec-fetch-site", "none") not in (
        "same-origin",
        "none",
    )

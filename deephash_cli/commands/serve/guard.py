"""Check every request first: any web page in a browser on this machine can send requests to the server."""

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


class Guard:
    """Middleware that refuses requests from other web sites and uploads that are too large, before any work is done.

    Args:
        app: Application that answers all other requests.
        max_bytes: Largest size of a request, in bytes.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is refused, and pass all others on to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        headers = Headers(scope=scope)
        if not _HOST.fullmatch(headers.get("host", "")):
            refused = (400, "this server answers only to localhost and 127.0.0.1: open it under one of these names")
        elif scope["method"] not in ("GET", "HEAD") and _is_foreign(headers):
            refused = (403, "this request comes from another web site; use the server's own page, or send no Origin")
        elif int(headers.get("content-length", 0)) > self._max_bytes:
            refused = (413, self._too_large())
        else:
            await self._app(scope, receive_counted, send_safely)
            return
        await JSONResponse({"error": refused[1]}, refused[0])(scope, receive, send_safely)

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

"""What stands before every answer: a server on this machine is still open to every web page that its browser shows."""

import re

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A page elsewhere can give its own name our address (DNS rebinding), but not change the name that the browser sends.
# Any port: behind a tunnel (ssh -L 9000:localhost:8000) the browser has another one.
_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",  # nor can a page elsewhere show our images
    "Cache-Control": "no-store",  # tomorrow the same address may be a server of other images
}


class Guard:
    """Refuses requests that other web sites make, and uploads that are too large, before anything is done for them.

    Args:
        app: What answers the others.
        max_bytes: The most that a request may bring.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application do it."""
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
            refused = (400, "this server answers to localhost and 127.0.0.1 only: open it under one of these")
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
    """Whether a browser says that a page of another origin asks. Programs that are no browsers say nothing."""
    origin = headers.get("origin", f"http://{headers['host']}")
    return origin.lower() != f"http://{headers['host']}".lower() or headers.get("sec-fetch-site", "none") not in (
        "same-origin",
        "none",
    )

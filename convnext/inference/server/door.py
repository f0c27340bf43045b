"""What every request passes, whatever it asks for: which hosts are meant, strict headers, counts, a stop."""

import time
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convnext.inference.server.metrics import Metrics

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "media-src blob: 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self)",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_WHILE_STOPPING = ("/health", "/metrics")  # which are answered still


def refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says in one line what is wrong."""
    if status == 503:
        headers = {"Retry-After": "1"} | (headers or {})
    return JSONResponse({"detail": detail}, status, headers)


class Door:
    """An ASGI application around the one that answers.

    Args:
        app: that answers.
        metrics: where requests are counted.
        allowed_hosts: names in the Host header, in small letters; none allows all. A page of somebody else's whose name
            leads to this machine (DNS rebinding) is refused by them.

    Attributes:
        stopping: whether new requests are refused.
        active: requests that have no whole answer yet.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, allowed_hosts: frozenset[str] = frozenset()) -> None:
        self.stopping, self.active = False, 0
        self._app, self._metrics, self._allowed_hosts = app, metrics, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if self.stopping:
                    headers["Connection"] = "close"
            await send(message)

        self.active += 1
        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_on)
        finally:
            self.active -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - began)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        if self._allowed_hosts:
            host = Headers(scope=scope).get("host", "")
            try:
                name = urlsplit(f"//{host}").hostname or ""
            except ValueError:
                name = ""
            if name not in self._allowed_hosts:
                return refusal(421, f"this server is not called {host!r}: --allowed-hosts says which names it has")
        if self.stopping and scope["path"] not in _WHILE_STOPPING:
            return refusal(503, "the server is stopping")
        return None

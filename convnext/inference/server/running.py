"""A server that runs until a signal stops it, after what it has begun is answered."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from convnext.errors import SettingsError, reason
from convnext.inference.server.door import Door
from convnext.inference.server.limits import Limits

_POLL = 0.05  # seconds between looks at what is still under way

_FULL_BODY = json.dumps({"detail": "too many connections: try again later"}).encode()
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_FULL_BODY), _FULL_BODY)
)


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, which takes no connections yet.

    Raises:
        SettingsError: no such host here, or the port is in use or not allowed.
    """
    if not host:  # which would be every address
        raise SettingsError("host: name an address, such as 127.0.0.1")
    if not 0 <= port < 2**16:  # which would be taken modulo that
        raise SettingsError(f"port: must be between 0 and {2**16 - 1}, got {port}")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = addresses[0]
        bound = socket.socket(family, kind, protocol)  # asyncio sends at once (TCP_NODELAY) where that says TCP
        if os.name == "posix":  # elsewhere two servers could share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"cannot listen on {host} port {port} ({reason(error)}): choose another --host or --port, 0 for a free one"
        ) from None
    return bound


def address(bound: socket.socket) -> str:
    """The URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Connection(H11Protocol):
    """A connection, which is refused where there are too many, and ended where nothing comes of it.

    uvicorn's own bound counts requests, and an idle connection costs a file, too.
    """

    def __init__(self, limits: Limits, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        # For the request, its answer, and for taking that.
        self._seconds = 2 * limits.max_upload_seconds + limits.max_seconds
        self._most = limits.max_connections
        self._ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.write(_FULL)
            transport.close()
        self._give_time()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._give_time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._ending is not None:
            self._ending.cancel()

    def _give_time(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = self.loop.call_later(self._seconds, self.transport.abort)


class _Server(uvicorn.Server):
    """uvicorn's, which while it stops still says so, and answers what it has begun."""

    def __init__(self, config: uvicorn.Config, door: Door, grace: float, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._door, self._grace, self._when_started = door, grace, started
        self.dropped = 0  # requests

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._door.stopping = True
        ends = asyncio.get_running_loop().time() + self._grace
        while self._door.active and not self.force_exit and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(_POLL)
        self.dropped = self._door.active
        await super().shutdown(sockets)


def run(door: Door, bound: socket.socket, limits: Limits, grace: float, started: Callable[[], None]) -> int:
    """Serve until SIGTERM or SIGINT, and then until what was begun is answered, or a second signal comes.

    Args:
        door: the application.
        bound: of `bind`.
        limits: of connections.
        grace: seconds after the signal at which requests are dropped.
        started: called when the first request would be answered.

    Returns:
        0; or 128 + n where the signal n had requests dropped.
    """
    received = list[int]()

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    config = uvicorn.Config(
        door,
        http=partial(_Connection, limits),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config, door, grace, started)
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([bound])  # which, at its end, gives the signal to the handlers from before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if server.dropped and received else 0

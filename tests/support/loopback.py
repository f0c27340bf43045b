"""A file server on this machine's loopback address, with the faults that networks have."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "small.pth"


class Server(ThreadingHTTPServer):
    """Files on the loopback, with faults on demand.

    Attributes:
        body: the one file there is, at any path.
        files: or files by path; others are not found.
        tag: its ETag; empty for none.
        cuts: how many of the next responses break off halfway.
        status: answered to every request where it is not 200.
        ranges: whether parts are served.
        if_range: whether a part of another version is refused.
        stalled: set by the test to let a response past its first half; set at first.
        requests: the Range header of every request so far, None where it had none.
    """

    daemon_threads = True

    def __init__(self, body: bytes = b"", files: dict[str, bytes] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.body, self.tag, self.cuts, self.status = body, '"one"', 0, 200
        self.ranges = self.if_range = True
        self.requests: list[str | None] = []
        self.stalled = threading.Event()
        self.stalled.set()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    @property
    def url(self) -> str:
        return f"{self.base}convnext/{NAME}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.requests.append(wanted)
        whole = server.body if server.files is None else server.files.get(self.path.removeprefix("/"))
        if server.status != 200 or whole is None:
            self.send_error(404 if whole is None else server.status)
            return
        start = 0
        if wanted and server.ranges and (not server.if_range or self.headers["If-Range"] == server.tag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = whole[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        if server.tag:
            self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        server.stalled.wait(20)
        if server.cuts:
            server.cuts -= 1
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, format: str, *args: Any) -> None: ...

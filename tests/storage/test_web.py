"""Images on the web, and what may go wrong with one."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from convnext.storage.downloads import DownloadError
from convnext.storage.web import fetch
from tests.support.loopback import Server

BODY = bytes(range(256)) * 1000


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(BODY)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.stalled.set()
    server.shutdown()


class Redirects(BaseHTTPRequestHandler):
    """Sends whoever asks for it to `target`."""

    target = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.target)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def redirecting() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/x.jpg"
    server.shutdown()


def test_the_contents_come_whole(server: Server) -> None:
    assert fetch(server.url, len(BODY), 30) == BODY
    assert fetch(f"{server.base}größe und mehr.jpg", len(BODY), 30) == BODY
    assert server.requests == [None, None]


def test_a_redirect_is_followed_to_the_web_alone(server: Server, redirecting: str) -> None:
    Redirects.target = server.url
    assert fetch(redirecting, len(BODY), 30) == BODY
    for Redirects.target in ("ftp://127.0.0.1/x.jpg", "file:///etc/hostname"):
        with pytest.raises(DownloadError, match=r"cannot fetch http.*(ftp|file)://"):
            fetch(redirecting, 100, 30)


def test_what_is_too_large_is_not_read(server: Server) -> None:
    server.stalled.clear()  # it would wait for the second half
    with pytest.raises(DownloadError, match=r"it has more than 0\.0625 MiB"):
        fetch(server.url, 2**16, 30)
    server.stalled.set()


def test_a_server_that_does_not_say_how_much_it_sends() -> None:
    class Endless(Redirects):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            while True:
                try:
                    self.wfile.write(BODY)
                except OSError:
                    return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(DownloadError, match="it has more than 1 MiB"):
        fetch(f"http://127.0.0.1:{server.server_address[1]}/", 2**20, 30)
    server.shutdown()


def test_time_is_bounded_whatever_the_server_does(server: Server) -> None:
    server.stalled.clear()
    with pytest.raises(DownloadError, match=r"it was not here after 0\.2 s"):
        fetch(server.url, len(BODY), 0.2)


def test_faults_are_said_in_a_line(server: Server) -> None:
    server.cuts = 1
    with pytest.raises(DownloadError, match="broke after 128,000 of 256,000 bytes"):
        fetch(server.url, len(BODY), 30)
    server.status = 503
    with pytest.raises(DownloadError, match=f"cannot fetch {server.url}: the server answers 503 Service Unavailable"):
        fetch(server.url, len(BODY), 30)
    for url, message in (
        ("http://127.0.0.1:1/x.jpg", "Connection refused; check the address and the network"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://host:port/x.jpg", "nonnumeric port"),
        ("ftp://127.0.0.1/x.jpg", "http:// and https:// alone are read"),
    ):
        with pytest.raises(DownloadError, match=message) as caught:
            fetch(url, 100, 30)
        assert "\n" not in str(caught.value)

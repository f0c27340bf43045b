"""Files from the web: resumed where they broke off, checked, and visible only once they are whole.

While ``name`` is on its way, its folder holds ``.name.part``, the bytes so far, ``.name.version``, the server's word
for the version they belong to, and ``.name.part.lock``, on which other processes wait. A process that is killed, or
interrupted with Ctrl-C, leaves the first two, and the next one goes on from them; one that gives up removes both,
unless it is to keep what came so far.
"""

import errno
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from email.message import Message
from functools import cache
from http.client import HTTPException, HTTPMessage, HTTPResponse
from io import FileIO
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from convnext.errors import UserError, reason
from convnext.storage.files import digest, sync
from convnext.storage.locks import alone, remove_idle

_BLOCK = 1 << 20  # bytes
SCHEMES = ("http", "https")
HEADERS = {"User-Agent": "convnext", "Accept-Encoding": "identity"}
_PASSING = (408, 416, 429)  # the statuses below 500 after which a second request may succeed
CHECKSUMS = {"sha256": "SHA-256", "md5": "MD5"}
Report = Callable[[int, int | None], None]


class DownloadError(UserError):
    """A file that cannot be fetched."""


_is_offline = ContextVar("offline", default=False)


@contextmanager
def offline() -> Iterator[None]:
    """Within it nothing is fetched: what is missing is an error."""
    token = _is_offline.set(True)
    try:
        yield
    finally:
        _is_offline.reset(token)


def is_offline() -> bool:
    """Whether nothing is to be fetched."""
    return _is_offline.get()


def check_reachable(url: str, seconds: float = 5.0) -> None:
    """Raise a DownloadError unless the server answers within so many seconds, whatever it answers. A thread of its own
    asks, since the look-up of a name cannot be cut short, and each of its addresses may take as long."""
    problems: list[str] = []

    def ask() -> None:
        try:
            open_url(Request(url, method="HEAD"), timeout=seconds).close()
            problems.append("")
        except HTTPError as error:
            error.close()
            problems.append("")
        except (HTTPException, OSError) as error:
            problems.append(reason(error.reason if isinstance(error, URLError) else error))

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if problem := problems[0] if problems else f"no answer in {seconds:g} s":
        raise DownloadError(f"cannot reach {urlsplit(url).hostname}: {problem}")


def refuse_offline(what: str) -> None:
    """Raise, within `offline`, a DownloadError that says that ``what`` would have been fetched."""
    if _is_offline.get():
        raise DownloadError(f"{what} is not there yet, and --dry-run fetches nothing: leave it out, or fetch it first")


class _WebRedirects(HTTPRedirectHandler):
    """Follows a redirect to http and https alone."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise URLError(f"it redirects to {newurl}, and http:// and https:// alone are followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@cache
def _opener() -> OpenerDirector:
    return build_opener(_WebRedirects())


def open_url(request: Request, timeout: float) -> HTTPResponse:
    """The server's answer; redirects are followed to http and https alone.

    Raises:
        OSError: no answer, or one that is no success (`HTTPError`); also as HTTPException.
    """
    response: HTTPResponse = _opener().open(request, timeout=timeout)
    return response


class _BrokenError(DownloadError):
    """A connection that kept breaking."""


def cache_folder() -> Path:
    """The folder of downloads: ``$CONVNEXT_CACHE``, or ``convnext`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("CONVNEXT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "convnext"


def download(
    url: str,
    folder: Path,
    sha256: str | None = None,
    progress: bool = True,
    retries: int = 4,
    pause: float = 1.0,
    timeout: float = 30.0,
    *,
    md5: str | None = None,
    keep_partial: bool = False,
) -> Path:
    """Fetch a file once; a second process that asks for it waits for the first.

    Args:
        url: where it is, over HTTP or HTTPS.
        folder: where it goes, under the last name of the URL's path; a file of that name is taken as it is.
        sha256: the checksum in hexadecimal, or its first digits; None where none is known.
        progress: whether to show a bar, on a terminal, on standard error.
        retries: further attempts after one that brought nothing new.
        pause: seconds before the first of them; each next pause is twice as long.
        timeout: seconds without a byte after which a connection counts as broken.
        md5: the MD5 checksum, where that is what was published.
        keep_partial: whether a connection that keeps breaking leaves what came so far to the next call.

    Returns:
        The file's path.

    Raises:
        DownloadError: no such file, no connection, a connection that keeps breaking, another checksum, or no room on
            the disk; nothing is left in the folder, but what ``keep_partial`` asks for.
    """
    checksums = {name: value for name, value in (("sha256", sha256), ("md5", md5)) if value is not None}
    address = urlsplit(url)
    name = PurePosixPath(address.path).name
    if address.scheme not in SCHEMES or not name:
        raise DownloadError(f"cannot download {url!r}: give a URL that starts with https:// and ends in a file's name")
    target = folder / name

    if target.is_file():
        return target
    refuse_offline(url)
    partial = folder / f".{name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(_lock_of(partial)):
            if not target.is_file():  # another process may have finished it while we waited
                with FileIO(partial, "a") as file, progress_bar(name, progress) as report:
                    transfer = _Transfer(url, file, partial, report, timeout)
                    transfer.finish(target, checksums, retries, pause, keep_partial)
    except OSError as error:
        raise _disk_error(url, folder, error) from error
    return target


def remove_partial(partial: Path) -> bool:
    """Remove ``.name.part``, what came so far of a file; False where a process goes on with it just now."""
    return remove_idle(partial, _lock_of(partial))


def _lock_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.lock")


def _disk_error(url: str, folder: Path, error: OSError) -> DownloadError:
    advice = f"free space, or {_choose(folder)} on another disk"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        advice = f"{_choose(folder)} that can be written"
    return DownloadError(f"cannot download {url}: cannot write to {folder}: {error.strerror or error}; {advice}")


def _choose(folder: Path) -> str:
    return "set CONVNEXT_CACHE to a folder" if folder.is_relative_to(cache_folder()) else "choose a folder"


class _Transfer:
    """One file on its way, in a partial file, open for appending, that no other process writes.

    Its `report` is called with the bytes so far and in all; after `timeout` seconds without a byte it is broken.
    """

    def __init__(self, url: str, file: FileIO, path: Path, report: Report, timeout: float) -> None:
        self.url, self.file, self.path, self.report, self.timeout = url, file, path, report, timeout
        self.version = path.with_suffix(".version")

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def finish(self, target: Path, checksums: dict[str, str], retries: int, pause: float, keep_partial: bool) -> None:
        """Fetch what is missing, check the whole, and rename it to ``target``."""
        try:
            self._fetch(retries, pause)
            for kind, expected in checksums.items():
                if not (actual := digest(self.path, kind)).startswith(expected.lower()):
                    raise DownloadError(
                        f"{self.url} has the {CHECKSUMS[kind]} {actual[: max(len(expected), 8)]}, not {expected}: the "
                        f"file was damaged or replaced, and is removed; try again, and do not use it if this repeats"
                    )
            os.fsync(self.file.fileno())
            self.version.unlink(missing_ok=True)
            self.path.replace(target)
            sync(target.parent)
        except (UserError, OSError) as error:
            if not (keep_partial and isinstance(error, _BrokenError) and self.size):
                self.version.unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)
            raise

    def _fetch(self, retries: int, pause: float) -> None:
        furthest, failures = self.size, 0
        while (problem := self._attempt()) is not None:
            if self.size > furthest:
                furthest, failures = self.size, 0
            failures += 1
            if failures > retries:
                raise _BrokenError(
                    f"cannot download {self.url}: {problem}, {failures} times in a row; check the network and try again"
                )
            time.sleep(pause * 2 ** (failures - 1))

    def _attempt(self) -> str | None:
        """One connection; None when the file is whole, or else what went wrong and may pass."""
        try:
            expected = self._receive()
        except HTTPError as error:
            error.close()
            if error.code == 416:
                self.file.truncate(0)  # what is here is longer than the file
            if error.code < 500 and error.code not in _PASSING:
                raise DownloadError(
                    f"cannot download {self.url}: the server answers {error.code} {error.reason}; check the URL"
                ) from None
            return f"the server answers {error.code} {error.reason}"
        except (HTTPException, OSError) as error:
            cause = error.reason if isinstance(error, URLError) else error
            if isinstance(cause, socket.gaierror | ssl.SSLCertVerificationError) and not self.size:
                # Waiting mends neither; with some bytes here the network was there a moment ago.
                raise DownloadError(
                    f"cannot download {self.url}: cannot reach {urlsplit(self.url).hostname}: {reason(cause)}; check "
                    f"the network, or put the file into the folder by hand"
                ) from None
            return f"cannot reach the server, or lost it: {reason(cause)}"
        if expected is not None and self.size != expected:
            return f"the connection broke after {self.size} of {expected} bytes"
        return None

    def _receive(self) -> int | None:
        """Append what one response brings; returns the whole file's size, or None where the server does not say."""
        size = self.size
        known = self.version.read_text("latin-1") if size and self.version.is_file() else ""
        # The server sends the rest if the version is still the same, and else the whole of the new one.
        headers = HEADERS | ({"Range": f"bytes={size}-", "If-Range": known} if known else {})
        with open_url(Request(self.url, headers=headers), timeout=self.timeout) as response:
            if response.status == 206:
                span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
                # The version is compared again: there are servers that heed Range and not If-Range.
                same = known and _version_of(response.headers) in ("", known)
                if not same or span is None or int(span[1]) != size:
                    self.file.truncate(0)
                    raise HTTPException("the server sent another range than the one asked for")
                total: int | None = int(span[2])
            else:
                # Emptied before the version changes: a kill between the two must not join two versions.
                with self._writing():
                    self.file.truncate(0)
                    self.version.write_text(_version_of(response.headers), "latin-1")
                size = 0
                length = response.headers.get("Content-Length", "")
                total = int(length) if length.isdecimal() else None
            self._check_room(0 if total is None else total - size)
            self.report(size, total)
            while block := response.read(_BLOCK):
                rest = memoryview(block)
                with self._writing():
                    while rest:
                        rest = rest[self.file.write(rest) :]
                size += len(block)
                self.report(size, total)
        return total

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise DownloadError(
                f"cannot download {self.url}: {needed / 1e6:.0f} MB are missing and {self.path.parent} has room for "
                f"{free / 1e6:.0f} MB; free space, or {_choose(self.path.parent)} on another disk"
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell the disk's errors from a broken connection, which is an OSError too."""
        try:
            yield
        except OSError as error:
            raise _disk_error(self.url, self.path.parent, error) from error


def _version_of(headers: Message) -> str:
    """What If-Range takes: a strong ETag, or the date; empty where the server tells neither."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


@contextmanager
def progress_bar(name: str, shown: bool) -> Iterator[Report]:
    """A bar beside ``name``, on standard error where that is a terminal, unless not ``shown``; yields what is to be
    called with the bytes so far, and in all where that is known."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

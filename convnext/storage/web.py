"""Small files from the web, in memory."""

import time
from http.client import HTTPException
from string import punctuation
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request

from convnext.errors import reason
from convnext.storage.downloads import HEADERS, SCHEMES, DownloadError, open_url

_BLOCK = 1 << 16  # bytes


def fetch(url: str, most: int, seconds: float) -> bytes:
    """The contents of a file on the web, by one attempt.

    Args:
        url: its address; http or https, and redirected to these alone.
        most: bytes that it may have.
        seconds: after which it must be here, whatever the server does meanwhile.

    Raises:
        DownloadError: not of these schemes, no connection, refused, too large, or too slow.
    """
    outcome: list[bytes | str] = []
    until = time.monotonic() + seconds
    # A thread of its own, since neither the look-up of a name nor a server that dribbles its headers can be cut short.
    thread = Thread(target=lambda: outcome.append(_contents(url, most, until)), daemon=True)
    thread.start()
    thread.join(seconds)
    contents = outcome[0] if outcome else "late"
    if isinstance(contents, str):
        problems = {
            "late": f"it was not here after {seconds:g} s",
            "large": f"it has more than {most / 2**20:.3g} MiB",
            "scheme": "of URLs those with http:// and https:// alone are read",
        }
        raise DownloadError(f"cannot fetch {url}: {problems.get(contents, contents)}")
    return contents


def _contents(url: str, most: int, until: float) -> bytes | str:
    """The contents, or why there are none."""
    try:
        if urlsplit(url).scheme.lower() not in SCHEMES:
            return "scheme"
        contents = bytearray()
        # Spaces and characters beyond ASCII are escaped, as browsers do.
        request = Request(quote(url, safe=punctuation), headers=HEADERS)
        with open_url(request, max(until - time.monotonic(), 0.1)) as response:
            while (whole := len(contents) + (response.length or 0)) <= most and time.monotonic() < until:
                if block := response.read1(_BLOCK):
                    contents += block
                elif len(contents) < whole:
                    return f"the connection broke after {len(contents):,} of {whole:,} bytes"
                else:
                    return bytes(contents)
        return "large" if whole > most else "late"
    except HTTPError as error:
        error.close()
        return f"the server answers {error.code} {error.reason}"
    except (HTTPException, OSError, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        late = isinstance(cause, TimeoutError)
        return "late" if late else f"no answer: {reason(cause)}; check the address and the network"

"""The images in a request's body, read within limits, and never onto a disk."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from convnext.errors import did_you_mean
from convnext.inference.server.engine import BusyError, Upload
from convnext.inference.server.limits import MEGABYTE, Limits
from convnext.output import counted

_NAME = 200  # characters of a file's name that are given back
_FORM = "multipart/form-data"


class _Parser(MultiPartParser):
    """Starlette's, which holds files in memory alone, and knows whether the last boundary has come."""

    spool_max_size = 2**62
    ended = False

    def on_end(self) -> None:
        super().on_end()
        self.ended = True


class Bodies:
    """Reads bodies, and counts what they hold in memory together."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._held = limits, 0

    @asynccontextmanager
    async def images(self, request: Request, field: str, most: int) -> AsyncIterator[list[Upload]]:
        """The images of a request, at least one, in the order sent; their memory counts until the block ends.

        Args:
            request: whose body is a form with files, or an image by itself.
            field: of a form.
            most: images.

        Raises:
            HTTPException: 408, 413, 415 or 422, in words.
            BusyError: the bodies of all requests hold too much.
        """
        own = 0

        async def chunks() -> AsyncGenerator[bytes, None]:
            nonlocal own
            async for chunk in request.stream():
                own += len(chunk)
                self._held += len(chunk)
                self._check(own)
                yield chunk

        length = request.headers.get("content-length", "")
        self._check(int(length) if length.isdigit() else 0)
        try:
            yield await self._uploads(request, chunks(), field, most)
        finally:
            self._held -= own

    def _check(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise HTTPException(413, f"a request has at most {self._limits.max_mb:g} MB: send fewer or smaller images")
        if self._held > self._limits.max_memory_mb * MEGABYTE:
            raise BusyError("other requests fill the memory: try again later")

    async def _uploads(
        self, request: Request, chunks: AsyncGenerator[bytes, None], field: str, most: int
    ) -> list[Upload]:
        given = request.headers.get("content-type", "")
        kind = parse_options_header(given)[0].decode("latin-1")
        if kind != _FORM and kind != "application/octet-stream" and not kind.startswith("image/"):
            raise HTTPException(
                415,
                f"Content-Type {given or 'none'}: send an image as image/… or application/octet-stream, or "
                f"{_FORM} with files in the field {field}",
            )
        try:
            with anyio.fail_after(self._limits.max_upload_seconds):
                if kind == _FORM:
                    return await _files(request.headers, chunks, field, most)
                raw = b"".join([chunk async for chunk in chunks])
        except TimeoutError:
            seconds = f"{self._limits.max_upload_seconds:g} s"
            raise HTTPException(408, f"the request did not arrive within {seconds}", {"Connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(400, "the client ended the connection within a request") from None
        if not raw:
            raise HTTPException(422, "the body is empty: send an image")
        return [Upload(None, raw)]


async def _files(headers: Headers, chunks: AsyncGenerator[bytes, None], field: str, most: int) -> list[Upload]:
    """The files of a form, which has nothing else."""
    try:
        parser = _Parser(headers, chunks, max_files=most, max_fields=most)
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError) as error:
        text = str(getattr(error, "message", error))
        if text.startswith("Too many files"):
            raise HTTPException(413, f"a request has at most {counted(most, 'image')}: send fewer at a time") from None
        raise HTTPException(422, f"{_FORM} that cannot be read: {text}") from None
    if not parser.ended:
        raise HTTPException(422, f"{_FORM} that ends too early: its last boundary is missing")
    uploads = []
    for name, value in form.multi_items():
        if name != field:
            raise HTTPException(422, f"no field is called {name[:_NAME]!r}: {did_you_mean(name[:_NAME], [field])}")
        if not isinstance(value, UploadFile):
            raise HTTPException(422, f"the field {field} is no file: give it a file name")
        uploads.append(Upload((value.filename or "")[:_NAME] or None, await value.read()))
        await value.close()
    if not uploads:
        raise HTTPException(422, f"no image: send one in the field {field}")
    return uploads

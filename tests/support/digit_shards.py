"""The digits as PNG files, in shards, and these on the loopback with the faults that networks have."""

import io
import re
import socket
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from convnext.config import DataSettings
from convnext.data.datasets.load import load_splits
from convnext.data.splits import Splits
from convnext.errors import UserError

TRAIN = 12  # shards of 20 images
DIGITS = (load_digits().images * (255 / 16)).round().astype(np.uint8)
LABELS: list[int] = load_digits().target.tolist()
PATTERN = "digits-{train-{000000..000011},test-{000000..000001}}.tar"


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(DIGITS[index]).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def sample(index: int, **members: Any) -> dict[str, Any]:
    return {"__key__": f"{index:06d}", "png": png(index), **(members or {"cls": LABELS[index]})}


def write_digits(folder: Path) -> Path:
    """The first 280 digits as `PATTERN`: 12 shards for training, 2 for the test."""
    for number in range(TRAIN + 2):
        name = f"digits-train-{number:06d}.tar" if number < TRAIN else f"digits-test-{number - TRAIN:06d}.tar"
        write(folder / name, [sample(index) for index in range(number * 20, number * 20 + 20)])
    return folder


def splits_of(pattern: str, **settings: Any) -> Splits:
    return load_splits(DataSettings(**{"name": f"wds:{pattern}", "image_size": 8, "val_fraction": 0.0} | settings))


def refused(message: str, pattern: str, **settings: Any) -> None:
    with pytest.raises(UserError, match=message) as error:
        splits_of(pattern, **settings)
    assert "\n" not in str(error.value)


def check(splits: Splits) -> None:
    """Every image is the original, with its label."""
    for part, start in {"train": 0, "test": TRAIN * 20}.items():
        source = splits.split(part)
        assert source is not None
        for index in range(len(source)):
            assert source.raw(index) == png(start + index)
            assert source.targets[index] == LABELS[start + index]


class Server(ThreadingHTTPServer):
    """A folder's files on the loopback, with faults on demand.

    Attributes:
        files: contents by name.
        cuts: how many of the next whole responses for a file break off halfway.
        statuses: answered for a file's body where it is not 200.
        ranges: whether parts are served.
        fetched: names of the files whose bodies were asked for, in order.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.cuts: Counter[str] = Counter()
        self.statuses: dict[str, int] = {}
        self.ranges = True
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, name = self.server, self.path.rpartition("/")[2]
        if name not in server.files:
            self.send_error(404)
            return
        body = server.files[name]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "") if server.ranges else None
        looks = self.headers["Range"] == "bytes=0-0"
        if not looks:
            server.fetched.append(name)
            if name in server.statuses:
                self.send_error(server.statuses[name])
                return
        start, end = (int(wanted[1]), int(wanted[2] or len(body) - 1)) if wanted else (0, len(body) - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        part = body[start : end + 1]
        if not looks and server.cuts[name]:
            server.cuts[name] -= 1
            self.wfile.write(part[: len(part) // 2])
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if not (looks and not wanted):  # who only looks hangs up before the body
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None: ...

"""Servers under test: in this process, and in one of their own whose model waits for a word."""

import io
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx
import numpy as np
from PIL import Image

from convnext.cli import main
from convnext.inference.backends import Images
from convnext.inference.predictor import Prediction, Predictor
from convnext.inference.server.app import make_app
from convnext.inference.server.engine import Engine
from convnext.inference.server.limits import Limits

BASE = "http://127.0.0.1"


def encoded(seed: int = 0, kind: str = "png", width: int = 40, height: int = 30) -> bytes:
    """A file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def form(*files: bytes | tuple[str, bytes], field: str = "images") -> list[tuple[str, Any]]:
    """Files for httpx, by name where they have one."""
    named = (file if isinstance(file, tuple) else (f"{index}.png", file) for index, file in enumerate(files))
    return [(field, one) for one in named]


class Gate:
    """Has the model wait before it computes.

    Attributes:
        reached: set when it waits.
        opened: set by the test to let it go on.
        sizes: of the batches that it was asked for.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.reached, self.opened, self.sizes = threading.Event(), threading.Event(), list[int]()
        compute = predictor.predict

        def predict(prepared: Sequence[Images], *args: Any) -> list[list[Prediction]]:
            self.sizes.append(len(prepared))
            self.reached.set()
            assert self.opened.wait(60)
            return compute(prepared, *args)

        predictor.predict = predict  # type: ignore[method-assign, assignment]


@asynccontextmanager
async def asked(
    predictor: Predictor, hosts: frozenset[str] = frozenset(), **limits: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server in this process."""
    with closing(Engine(predictor, Limits(**limits))) as engine:
        transport = httpx.ASGITransport(make_app(engine, "digits", hosts), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            yield client


def metric(text: str, name: str) -> float:
    """A number of /metrics by its name, with labels where it has some; 0 where it is not there."""
    match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(match[1]) if match else 0.0


class Served:
    """``convnext serve`` in a process of its own, until the block ends.

    Args:
        words: of the command.
        held: whether its model waits for `release`.

    Attributes:
        url: where it listens.
        address: the same, for a socket.
        process: the process.
    """

    def __init__(self, *words: object, held: bool = False) -> None:
        program = ["-m", "tests.support.serving"] if held else ["-m", "convnext"]
        command = [sys.executable, *program, "serve", *map(str, words), "--port", "0"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.lines = list[str]()
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(r" at (http://(\S+):(\d+)) ", line):
                self.url, self.address = match[1], (match[2], int(match[3]))
                break
        else:
            raise AssertionError(f"it does not serve: {''.join(self.lines)}")

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def release(self) -> None:
        """Let the model compute."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Its exit status, and what it wrote since it serves."""
        _, text = self.process.communicate(timeout=60)
        return self.process.returncode, text


def _held(args: Sequence[str]) -> int:
    opened, compute = threading.Event(), Predictor.predict

    def predict(predictor: Predictor, *given: Any) -> list[list[Prediction]]:
        opened.wait()
        return compute(predictor, *given)

    def read() -> None:
        sys.stdin.readline()
        opened.set()

    Predictor.predict = predict  # type: ignore[method-assign, assignment]
    threading.Thread(target=read, daemon=True).start()
    return main(args)


if __name__ == "__main__":
    sys.exit(_held(sys.argv[1:]))

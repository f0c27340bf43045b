"""``convnext serve`` under load on this machine's loopback: whether it holds, how fast it is, what batches gain.

First many clients at once send images, and among them what is malformed, huge, truncated, a bomb or slow. Every answer
to an image is compared with the predictor's, and every other one must be the refusal that it deserves. Then images
alone, with batches and with ``--max-batch 1`` in turns. The clients share the machine with the server.

    python benchmarks/serving.py runs/cifar10 --images DIR --machine epyc-2-cores

It writes ``results/serving/<model>-<machine>/run.json``.
"""

import argparse
import asyncio
import functools
import io
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from command import positive, run_command
from PIL import Image
from record import uncommitted, write_run
from run_json import ROOT

from convnext.errors import UserError
from convnext.inference.predictor import Prediction, Predictor

UPLOAD_SECONDS = 3  # after which a slow sender is given up, so that many of them come into the time
LIMIT = 8  # megabytes of a request
GOOD = 0.8  # fraction of the requests
REFUSALS = {"malformed": {400, 422}, "huge": {413}, "truncated": {422}, "bomb": {422}, "slow": {408}}
TOLERANCE = 1e-3  # of probabilities, between batches of other sizes
MEGABYTE = 2**20


@dataclass
class Tally:
    """What the clients saw: seconds of each good answer, how many of them came before the time was over, statuses by
    kind of request, and what was wrong."""

    seconds: list[float] = field(default_factory=list)
    answered: int = 0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def milliseconds(self, percentile: int) -> float:
        """Of that percentile of the good answers.

        Raises:
            UserError: there are too few.
        """
        if len(self.seconds) < 2:
            raise UserError(f"{len(self.seconds)} images were answered, which is too few: give --seconds more")
        return round(1000 * statistics.quantiles(self.seconds, n=100)[percentile - 1], 1)

    def rate(self, seconds: float) -> float:
        """Images a second, of those that were answered before so many seconds were over.

        Raises:
            UserError: none was.
        """
        if not self.answered:
            raise UserError(f"no image was answered within {seconds:g} s: give --seconds more")
        return round(self.answered / seconds, 1)


@dataclass(frozen=True)
class Case:
    """An image, and what the predictor says of it."""

    content: bytes
    expected: list[Prediction]


def request(content: bytes, length: int | None = None, path: str = "/predict") -> bytes:
    """A whole request, or the beginning of one that says it has ``length`` bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: "
    return f"{head}{len(content) if length is None else length}\r\n\r\n".encode() + content


@functools.cache
def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in some kilobytes."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    return file.getvalue()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and body of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
    return int(head.split()[1]), await reader.readexactly(int(length[1]) if length else 0)


class Client:
    """One of many, which asks one thing after another until the time is over."""

    def __init__(self, port: int, cases: Sequence[Case], seed: int, tally: Tally, mixed: bool) -> None:
        self.port, self.cases, self.tally = port, cases, tally
        self.random, self.good = random.Random(seed), GOOD if mixed else 1.0

    async def run(self, ends: float) -> None:
        """Ask until ``ends``."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while time.monotonic() < ends:
            if self.random.random() < self.good:
                if reader.at_eof():  # idle for longer than the server keeps a connection
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    await self.ask(reader, writer, ends)
                except (OSError, asyncio.IncompleteReadError) as error:
                    self.tally.faults.append(f"good: {error!r}")
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            else:
                await self.provoke(self.random.choice(list(REFUSALS)))
        writer.close()

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: float) -> None:
        """Send an image, and compare the answer, which counts for the rate where it comes until ``ends``."""
        case = self.random.choice(self.cases)
        began = time.monotonic()
        writer.write(request(case.content))
        status, body = await answer(reader)
        self.tally.statuses["good", status] += 1
        if status == 503:
            return
        came = time.monotonic()
        self.tally.seconds.append(came - began)
        self.tally.answered += came <= ends
        got = json.loads(body)["results"][0]["predictions"] if status == 200 else []
        same = len(got) == len(case.expected) and all(
            abs(one["probability"] - wanted.probability) < TOLERANCE
            for one, wanted in zip(got, case.expected, strict=True)
        )
        if not same or got[0]["class"] != case.expected[0].class_name:
            self.tally.faults.append(f"good: {status} {body[:200]!r}")

    async def provoke(self, kind: str) -> None:
        """Send what has to be refused, in a connection of its own."""
        content = self.random.choice(self.cases).content
        sent = {
            "malformed": self.random.choice([b"GET nothing\r\n\r\n", request(b"--x\r\n\r\n")]),
            "huge": request(bytes(MEGABYTE), 2 * LIMIT * MEGABYTE),
            "truncated": request(content[: len(content) // 3]),
            "bomb": request(bomb()),
            "slow": request(content[:100], len(content)),
        }[kind]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            status, _ = await answer(reader)
            self.tally.statuses[kind, status] += 1
            if status not in REFUSALS[kind] | {503}:
                self.tally.faults.append(f"{kind}: {status}")
        except (OSError, asyncio.IncompleteReadError) as error:
            self.tally.faults.append(f"{kind}: {error!r}")
        finally:
            writer.close()


@contextmanager
def serving(run: str, *options: str) -> Iterator[tuple[psutil.Process, int]]:
    """A server's process and port; it must start, and end with status 0.

    Raises:
        UserError: it does not.
    """
    command = [sys.executable, "-m", "convnext", "serve", run, "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines: list[str] = []
        for line in process.stderr:
            if match := re.search(r" at http://127\.0\.0\.1:(\d+)", line):
                break
            lines.append(line.strip())
        else:
            raise UserError(f"the server did not start: {' '.join(lines)}")
        yield psutil.Process(process.pid), int(match[1])
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            raise UserError(f"the server ended with {process.returncode}: {process.stderr.read()}")
    finally:
        process.kill()


async def load(port: int, cases: Sequence[Case], clients: int, seconds: float, mixed: bool, seed: int = 0) -> Tally:
    """All clients at once."""
    tally = Tally()
    ends = time.monotonic() + seconds
    many = (Client(port, cases, seed + number, tally, mixed) for number in range(clients))
    await asyncio.gather(*(client.run(ends) for client in many))
    return tally


async def batch_size(port: int) -> float:
    """Mean images of a batch so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    text = (await answer(reader))[1].decode()
    writer.close()
    images, count = (
        float(re.findall(rf"^convnext_batch_size_{key} (\S+)$", text, re.M)[0]) for key in ("sum", "count")
    )
    return images / count


def holds(options: argparse.Namespace, cases: Sequence[Case]) -> dict[str, float]:
    """Numbers of the mixed load, which raises SystemExit where something was answered wrongly."""
    bomb()  # takes seconds to make
    limits = ("--max-upload-seconds", str(UPLOAD_SECONDS), "--max-mb", str(LIMIT))
    with serving(options.run, *limits) as (process, port):
        asyncio.run(load(port, cases, options.clients, options.seconds / 6, mixed=True, seed=10_000))
        before = process.memory_info().rss
        tally = asyncio.run(load(port, cases, options.clients, options.seconds, mixed=True))
        after, batch = process.memory_info().rss, asyncio.run(batch_size(port))
    for (kind, status), count in sorted(tally.statuses.items()):
        print(f"  {kind:<10} {status} {count:6,}")
    if tally.faults:
        raise SystemExit("\n".join([f"{len(tally.faults)} wrong answers or lost connections", *tally.faults[:10]]))
    refused = {kind: sum(n for (name, _), n in tally.statuses.items() if name == kind) for kind in REFUSALS}
    return {
        "mixed_requests": tally.statuses.total(),
        **{f"mixed_{kind}": count for kind, count in refused.items()},
        "mixed_wrong": len(tally.faults),
        "mixed_busy": sum(count for (_, status), count in tally.statuses.items() if status == 503),
        "mixed_images_per_second": tally.rate(options.seconds),
        **{f"mixed_p{percentile}_ms": tally.milliseconds(percentile) for percentile in (50, 95, 99)},
        "mixed_mean_batch": round(batch, 1),
        "memory_before_mb": round(before / MEGABYTE),
        "memory_after_mb": round(after / MEGABYTE),
    }


def gains(options: argparse.Namespace, cases: Sequence[Case]) -> dict[str, float]:
    """Numbers of images alone, with batches and without, which take turns."""
    numbers: dict[str, float] = {}
    with serving(options.run) as (_, batched), serving(options.run, "--max-batch", "1") as (_, single):
        ports = {"batched": batched, "single": single}
        for clients in (1, options.clients):
            tallies = {name: Tally() for name in ports}
            for round_ in range(options.rounds + 1):
                for name, port in ports.items():
                    tally = asyncio.run(load(port, cases, clients, options.seconds / 5, mixed=False, seed=round_))
                    if tally.faults:
                        raise SystemExit(f"{name}: {tally.faults[:10]}")
                    if round_:  # the first warms up
                        tallies[name].seconds += tally.seconds
                        tallies[name].answered += tally.answered
            for name, tally in tallies.items():
                rate = tally.rate(options.rounds * options.seconds / 5)
                numbers[f"{name}_{clients}_clients_images_per_second"] = rate
                numbers |= {f"{name}_{clients}_clients_p{p}_ms": tally.milliseconds(p) for p in (50, 95, 99)}
            rates = [numbers[f"{name}_{clients}_clients_images_per_second"] for name in ports]
            numbers[f"gain_{clients}_clients"] = round(rates[0] / rates[1], 2)
    return numbers


def main() -> int:
    """Measure, and write ``run.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files, of which 32 are taken")
    parser.add_argument("--machine", required=True, help="what to call it in the folder's name: epyc-2-cores")
    parser.add_argument("--clients", type=positive, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=positive, default=2)
    options = parser.parse_args()
    if options.seconds <= 0:
        parser.error(f"--seconds: must be above 0, got {options.seconds:g}")
    if problem := uncommitted():
        parser.error(problem)
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:32]
    if not files:
        parser.error(f"--images: {options.images} has no file named *.jpg or *.jpeg")
    predictor = Predictor.load(options.run, device="cpu")
    cases = [Case(path.read_bytes(), predictor(path)) for path in files]
    sizes = sum(len(case.content) for case in cases) / len(cases) / 1024
    started = time.monotonic()
    numbers = holds(options, cases) | gains(options, cases)
    name = Path(options.run).name
    write_run(
        ROOT / "results" / "serving" / f"{name}-{options.machine}",
        numbers,
        data=f"{len(cases)} JPEG files, {sizes:.0f} KB in the mean; {name}, {predictor.info.image_size} px",
        seconds=time.monotonic() - started,
        libraries=("torch", "fastapi", "uvicorn"),
        note=f"{options.clients} clients for {options.seconds:g} s, on the server's own cores",
        uses_gpu=False,
    )
    print("now python benchmarks/tables.py")
    return 0


if __name__ == "__main__":
    run_command(main)

"""Images to predictions, in batches of several requests: decoded in some threads, computed in one."""

import asyncio
import io
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import anyio

from convnext.data.images import Picture
from convnext.inference.backends import Images
from convnext.inference.explanations import Explanation, Method, explain
from convnext.inference.predictor import Prediction, Predictor
from convnext.inference.preparation import prepare
from convnext.inference.server.limits import Limits
from convnext.inference.server.metrics import Metrics

Result = TypeVar("Result")

_PICTURE = 1024  # pixels of an explanation's longer side


class BusyError(Exception):
    """What a server cannot do now, and may later."""


class Upload(NamedTuple):
    """An encoded image that a client sent, and what the client calls it."""

    name: str | None
    raw: bytes


class _Waiting(NamedTuple):
    """An image for the next batch."""

    pixels: Images
    top_k: int
    future: "Future[list[Prediction]]"


class Engine:
    """A predictor that serves many requests at a time. Of one event loop; `close` it.

    Args:
        predictor: which nobody else uses.
        limits: of batches, of the queue, and of time.

    Attributes:
        metrics: where batches and the queue are counted.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits, self.metrics = predictor, limits, Metrics()
        threads = os.cpu_count() or 1
        self._decoding = ThreadPoolExecutor(threads, "decode")
        self._computing = ThreadPoolExecutor(1, "compute")  # hooks and runtimes are not made for several threads
        # An image of the model's size is small; a file that resizes by itself takes all the pixels that there are.
        self._room = asyncio.Semaphore(threads if predictor.backend.preprocessing else limits.max_queue)
        self._taken = 0  # images, in the event loop
        self._changed = threading.Condition()
        self._waiting = deque[_Waiting]()
        self._decoded_now = 0  # images that are being decoded
        self._stops = set[threading.Event]()  # of the explanations under way

    def close(self) -> None:
        """End the threads, after what they do now: a batch, or of an explanation one pass of the model."""
        for stop in list(self._stops):
            stop.set()
        for pool in (self._decoding, self._computing):
            pool.shutdown(cancel_futures=True)

    async def predict(self, uploads: Sequence[Upload], top_k: int) -> list[list[Prediction]]:
        """The ``top_k`` most probable classes of each image, best first.

        Raises:
            UnreadableImageError: one of them cannot be read; the message has its name.
            BusyError: the queue is full, or the time is over.
        """
        with self._taking(len(uploads)):
            tasks = [asyncio.ensure_future(self._predict(upload, top_k)) for upload in uploads]
            try:
                results = await self._in_time(asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
        self.metrics.images.inc(len(uploads))
        return results

    async def explain(
        self, upload: Upload, class_name: str | None, method: Method, stage: int
    ) -> tuple[Explanation, bytes]:
        """Where the model looked for a class, and that as a PNG; see `convnext.inference.predictor.Predictor.explain`.

        Raises:
            SettingsError: no such class, method or stage.
            UnreadableImageError: the image cannot be read.
            BusyError: the queue is full, or the time is over; the thread that computes is soon free then.
        """
        stop = threading.Event()

        def draw(explanation: Explanation) -> bytes:
            png = io.BytesIO()
            explanation.overlay(_PICTURE).save(png, "png")
            return png.getvalue()

        async def work() -> tuple[Explanation, bytes]:
            picture = await self._run(self._decoding, lambda: self._picture(upload))
            explanation = await self._run(
                self._computing, lambda: explain(self.predictor.backend, picture, class_name, method, stage, stop)
            )
            return explanation, await self._run(self._decoding, lambda: draw(explanation))

        with self._taking(self.limits.max_batch):
            self._stops.add(stop)
            try:
                return await self._in_time(work())
            finally:  # where the time is over, or the client or the server gone, nobody waits for the rest
                stop.set()
                self._stops.discard(stop)

    @contextmanager
    def _taking(self, count: int) -> Iterator[None]:
        """Count so many images as taken; BusyError where they are too many."""
        if self._taken + count > self.limits.max_queue:
            raise BusyError(f"{self._taken} images are waiting already: try again later")
        self._taken += count
        self.metrics.queue.set(self._taken)
        try:
            yield
        finally:
            self._taken -= count
            self.metrics.queue.set(self._taken)

    async def _in_time(self, work: Awaitable[Result]) -> Result:
        try:
            with anyio.fail_after(self.limits.max_seconds):
                return await work
        except TimeoutError:
            raise BusyError(f"no answer within {self.limits.max_seconds:g} s: try again later") from None

    async def _run(self, pool: ThreadPoolExecutor, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, function)

    def _picture(self, upload: Upload) -> Picture:
        return self.predictor.picture(upload.raw, upload.name or "image")

    async def _predict(self, upload: Upload, top_k: int) -> list[Prediction]:
        def pixels() -> Images:
            return prepare(self._picture(upload), self.predictor.backend)

        async with self._room:
            with self._changed:
                self._decoded_now += 1
            waiting = None
            try:
                waiting = _Waiting(await self._run(self._decoding, pixels), top_k, Future())
            finally:
                with self._changed:
                    self._decoded_now -= 1
                    if waiting is not None:
                        self._waiting.append(waiting)
                    self._changed.notify()
            self._computing.submit(self._compute)
            return await asyncio.wrap_future(waiting.future)

    def _compute(self) -> None:
        """Answer a batch of those that wait. Called for each of them, it has nothing to do after an earlier one."""
        with self._changed:
            if self._waiting:
                self._changed.wait_for(self._is_complete, self.limits.max_wait_ms / 1000)
            count = min(len(self._waiting), self.limits.max_batch)
            batch = [self._waiting.popleft() for _ in range(count)]
        # Those whose requests were given up are left out.
        batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            results = self.predictor.predict([one.pixels for one in batch], max(one.top_k for one in batch))
        except Exception as error:
            for one in batch:
                one.future.set_exception(error)
            return
        self.metrics.batches.observe(len(batch))
        for one, classes in zip(batch, results, strict=True):
            one.future.set_result(classes[: one.top_k])

    def _is_complete(self) -> bool:
        """Whether there is no use in waiting for more images."""
        return not self._decoded_now or len(self._waiting) >= self.limits.max_batch

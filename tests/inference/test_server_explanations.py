"""Explanations that nobody waits for any more leave the server's one computing thread to others."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import convnext
from convnext.inference import explanations
from convnext.inference.backends import Images
from convnext.inference.explanations import StoppedError, explain
from convnext.inference.export.export import export
from convnext.inference.server import engine as engines
from convnext.inference.server.engine import Engine, Upload
from convnext.inference.server.limits import Limits
from tests.support.serving import encoded

HELD = 3  # the pass of the model that waits for the test


class Passes:
    """A backend that keeps the sizes of its images, and in its pass `HELD` waits until it is opened."""

    def __init__(self, backend: Any, opened: bool = False) -> None:
        self.name, self.info, self.preprocessing = backend.name, backend.info, backend.preprocessing
        self.shapes, self.reached, self.opened = list[tuple[int, ...]](), threading.Event(), threading.Event()
        self._backend = backend
        if opened:
            self.opened.set()

    def __call__(self, images: Images) -> Any:
        self.shapes.append(images.shape)
        if len(self.shapes) == HELD:
            self.reached.set()
            assert self.opened.wait(60)
        return self._backend(images)


@pytest.fixture(scope="module")
def resizing(digits_run: convnext.Run, tmp_path_factory: pytest.TempPathFactory) -> convnext.Predictor:
    """An exported file that takes images of any size, one at a time."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return convnext.Predictor.load(export(digits_run.path, output=path, include_preprocessing=True).path)


@pytest.fixture
def held(resizing: convnext.Predictor, monkeypatch: pytest.MonkeyPatch) -> tuple[convnext.Predictor, Passes]:
    passes = Passes(resizing.backend)
    monkeypatch.setattr(resizing, "backend", passes)
    return resizing, passes


def test_occlusion_takes_photographs_reduced(resizing: convnext.Predictor, digits_images: Path) -> None:
    digit = Image.open(next((digits_images / "test" / "3").iterdir())).convert("L")
    size, passes = resizing.info.image_size, Passes(resizing.backend, opened=True)
    edge = round(size / resizing.info.center_crop)
    large = digit.resize((80 * edge, 60 * edge), Image.Resampling.BICUBIC)
    heat = explain(passes, resizing.picture(large), "3", "occlusion")
    assert passes.shapes[0] == (1, 60 * edge, 80 * edge, 1)  # whose probability is the prediction's
    assert set(passes.shapes[1:]) == {(1, edge, 80 * edge // 60, 1)}
    assert (heat.heat.shape, heat.box) == ((edge, 80 * edge // 60), (0, 0, 80 * edge, 60 * edge))
    assert heat.probability == pytest.approx(dict(resizing(large, 10))["3"])


@pytest.mark.parametrize("method", ["occlusion", "integrated-gradients"])
def test_a_stop_ends_it_between_two_passes(method: explanations.Method, digits_run: convnext.Run) -> None:
    predictor, stop, count = convnext.Predictor.load(digits_run.path, device="cpu"), threading.Event(), 0

    def second_stops(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 2:
            stop.set()

    predictor.model.register_forward_hook(second_stops)
    with pytest.raises(StoppedError):
        explain(predictor.backend, predictor.picture(encoded()), "3", method, stop=stop)
    assert count == 2


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_request_that_is_given_up_frees_the_thread(held: tuple[convnext.Predictor, Passes]) -> None:
    predictor, passes = held
    engine = Engine(predictor, Limits())
    task = asyncio.ensure_future(engine.explain(Upload(None, encoded()), "3", "occlusion", -1))
    assert await asyncio.to_thread(passes.reached.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    passes.opened.set()
    (best,) = await engine.predict([Upload(None, encoded())], 1)
    engine.close()
    assert len(best) == 1
    assert len(passes.shapes) == HELD + 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_that_is_closed_waits_for_one_pass(
    held: tuple[convnext.Predictor, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, passes = held
    stops = list[threading.Event]()

    def noted(*args: Any) -> explanations.Explanation:
        stops.append(args[-1])
        return explain(*args)

    monkeypatch.setattr(engines, "explain", noted)
    engine = Engine(predictor, Limits())
    task = asyncio.ensure_future(engine.explain(Upload(None, encoded()), "3", "occlusion", -1))
    assert await asyncio.to_thread(passes.reached.wait, 60)
    closing = asyncio.ensure_future(asyncio.to_thread(engine.close))
    assert await asyncio.to_thread(stops[0].wait, 60)
    passes.opened.set()
    await closing
    with pytest.raises(StoppedError):
        await task
    assert len(passes.shapes) == HELD

"""The server answers as the predictor does, in batches, and says no within its limits."""

import asyncio
import io
import re
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import onnxruntime
import pytest
from PIL import Image

import convnext
from convnext.errors import SettingsError
from convnext.inference.export.export import export
from convnext.inference.server.limits import Limits
from tests.support.serving import Gate, asked, encoded, form, metric

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def predictor(digits_run: convnext.Run) -> convnext.Predictor:
    return convnext.Predictor.load(digits_run.path)


def bomb(side: int) -> bytes:
    """A PNG of some bytes that says it has side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def detail(response: httpx.Response, status: int) -> str:
    """The one line of a refusal."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["detail"]
    text: str = response.json()["detail"]
    assert "\n" not in text
    assert (response.headers.get("retry-after") == "1") == (status == 503)
    return text


async def until_taken(client: httpx.AsyncClient, images: int) -> None:
    """Wait until so many images were taken, and are on their way to the model."""
    while metric((await client.get("/metrics")).text, "convnext_queue_images") != images:
        await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_answers_are_those_of_the_predictor(predictor: convnext.Predictor) -> None:
    files = [encoded(seed, kind) for seed, kind in enumerate(("png", "jpeg", "webp", "bmp", "tiff"))]
    expected = [predictor(file, top_k=3) for file in files]
    async with asked(predictor) as client:
        many = await client.post("/predict?top_k=3", files=form(*files))
        alone = [await client.post("/predict?top_k=3", content=file, headers=PNG) for file in files]
        assert (
            len((await client.post("/predict", content=files[0], headers=PNG)).json()["results"][0]["predictions"]) == 5
        )
    assert [result["name"] for result in many.json()["results"]] == [f"{index}.png" for index in range(5)]
    assert alone[0].json()["results"][0]["name"] is None
    for results in (many.json()["results"], [response.json()["results"][0] for response in alone]):
        for result, classes in zip(results, expected, strict=True):
            assert [one["class"] for one in result["predictions"]] == [one.class_name for one in classes]
            assert [one["probability"] for one in result["predictions"]] == pytest.approx(
                [one.probability for one in classes], rel=1e-4
            )


async def test_requests_that_come_together_are_one_batch(predictor: convnext.Predictor) -> None:
    gate = Gate(predictor)
    async with asked(predictor, max_batch=4, max_wait_ms=60_000) as client:
        requests = [asyncio.ensure_future(client.post("/predict", content=encoded(0), headers=PNG))]
        await asyncio.to_thread(gate.reached.wait)
        more = (client.post(f"/predict?top_k={seed}", files=form(encoded(seed))) for seed in range(1, 7))
        requests += map(asyncio.ensure_future, more)
        await until_taken(client, 7)
        gate.opened.set()
        responses = await asyncio.gather(*requests)
        text = (await client.get("/metrics")).text
    assert gate.sizes == [1, 4, 2]
    assert metric(text, "convnext_batch_size_sum") == metric(text, "convnext_images_total") == 7
    assert metric(text, 'convnext_requests_total{route="/predict",status="200"}') == 7
    for seed, response in enumerate(responses):
        (result,) = response.json()["results"]
        assert len(result["predictions"]) == (seed or 5)
        assert result["predictions"][0]["class"] == predictor(encoded(seed))[0].class_name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the body is empty"),
        (b"no image", "image: unreadable image"),
        (encoded(kind="jpeg")[:300], "image: unreadable image"),
        (encoded()[:-200], "image: unreadable image"),
        (bomb(30_000), "30,000 x 30,000 pixels are more than the 100,000,000"),
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "bomb"],
)
async def test_what_is_no_image(content: bytes, words: str, predictor: convnext.Predictor) -> None:
    async with asked(predictor) as client:
        assert words in detail(await client.post("/predict", content=content, headers=PNG), 422)
        assert words in detail(await client.post("/explain", content=content, headers=PNG), 422)
        if content:  # one of several, which is named, and of whose request nothing is answered
            files = form(encoded(), ("bad\n.png", content), encoded())
            text = detail(await client.post("/predict", files=files), 422)
            assert text.startswith("bad")
            assert words.removeprefix("image: ") in text


@pytest.mark.parametrize(
    ("query", "keywords", "status", "words"),
    [
        (
            "",
            {"content": b"a=b", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
            415,
            "send an image",
        ),
        ("", {"content": b"x"}, 415, "Content-Type none: send an image as"),
        ("", {"json": {"path": "/etc/passwd", "url": "http://127.0.0.1/"}}, 415, "Content-Type application/json: send"),
        ("", {"files": form(encoded(), field="image")}, 422, "no field is called 'image': did you mean images?"),
        ("", {"data": {"images": "text"}, "files": form(encoded())}, 422, "the field images is no file"),
        ("", {"files": form(*[encoded()] * 4)}, 413, "at most 3 images"),
        ("", {"files": form(b"x" * 3000)}, 413, "at most 0.002 MB"),
        ("", {"content": b"x" * 3000, "headers": PNG}, 413, "at most 0.002 MB"),
        ("?topk=3", {"content": encoded(), "headers": PNG}, 422, "no parameter is called 'topk': did you mean top_k?"),
        ("?top_k=0", {"content": encoded(), "headers": PNG}, 422, "top_k: Input should be greater"),
        ("?top_k=x", {"content": encoded(), "headers": PNG}, 422, "top_k: Input should be a valid integer"),
    ],
)
async def test_what_is_refused(
    query: str, keywords: Any, status: int, words: str, predictor: convnext.Predictor
) -> None:
    small = encoded(width=8, height=8)
    assert len(small) < 400
    keywords = {**keywords}
    if keywords.get("files") and status != 413:
        keywords["files"] = [(name, (file[0], small)) for name, file in keywords["files"]]
    async with asked(predictor, max_images=3, max_mb=0.002 if "MB" in words else 1) as client:
        assert words in detail(await client.post(f"/predict{query}", **keywords), status)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "ends too early"),
        (b"--x\r\nContent-Disposition: form-data; name=images; filename=a\r\n\r\nabc", "ends too early"),
        (b"--y\r\n\r\n", "cannot be read"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n", "cannot be read"),
        (b"--x--\r\n", "no image"),
    ],
)
async def test_a_form_that_is_none(body: bytes, words: str, predictor: convnext.Predictor) -> None:
    async with asked(predictor) as client:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert words in detail(await client.post("/predict", content=body, headers=kind), 422)
        kind = {"Content-Type": "multipart/form-data"}
        assert "cannot be read" in detail(await client.post("/predict", content=body, headers=kind), 422)


async def test_a_body_of_unknown_length_is_counted_as_it_comes(predictor: convnext.Predictor) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 2**16
            yield bytes(2**16)

    async with asked(predictor, max_mb=1) as client:
        for kind in ("image/png", "multipart/form-data; boundary=x"):
            content = endless() if kind == "image/png" else form_start(endless())
            response = await client.post("/predict", content=content, headers={"Content-Type": kind})
            assert "at most 1 MB" in detail(response, 413)
    assert sent <= 2 * (2**20 + 2**17)


async def form_start(rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    async for chunk in rest:
        yield chunk


async def test_a_slow_sender_is_given_up(predictor: convnext.Predictor) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield encoded()[:50]
        await asyncio.Event().wait()

    async with asked(predictor, max_upload_seconds=0.05) as client:
        response = await client.post("/predict", content=slow(), headers=PNG)
        assert "did not arrive within 0.05 s" in detail(response, 408)
        assert response.headers["connection"] == "close"
        assert (await client.post("/predict", content=encoded(), headers=PNG)).status_code == 200


async def test_bodies_that_fill_the_memory(predictor: convnext.Predictor) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield encoded()[:1500]
        arrived.set()
        await go_on.wait()
        yield encoded()[1500:]

    size = len(encoded()) / 2**20
    async with asked(predictor, max_memory_mb=size, max_mb=size) as client:
        first = asyncio.ensure_future(client.post("/predict", content=half(), headers=PNG))
        await arrived.wait()
        assert "fill the memory" in detail(await client.post("/predict", content=encoded(), headers=PNG), 503)
        go_on.set()
        assert (await first).status_code == 200
        assert (await client.post("/predict", content=encoded(), headers=PNG)).status_code == 200


async def test_a_full_queue(predictor: convnext.Predictor) -> None:
    gate = Gate(predictor)
    async with asked(predictor, max_queue=3, max_batch=2, max_images=3) as client:
        first = asyncio.ensure_future(client.post("/predict", files=form(*[encoded()] * 2)))
        await asyncio.to_thread(gate.reached.wait)
        assert "2 images are waiting" in detail(await client.post("/predict", files=form(*[encoded()] * 2)), 503)
        assert "2 images are waiting" in detail(await client.post("/explain", content=encoded(), headers=PNG), 503)
        assert (await client.get("/health")).json() == {"status": "ok"}
        gate.opened.set()
        assert (await first).status_code == 200
        assert (await client.post("/predict", files=form(*[encoded()] * 3))).status_code == 200


async def test_what_takes_too_long_is_given_up_and_not_computed(predictor: convnext.Predictor) -> None:
    gate = Gate(predictor)
    async with asked(predictor, max_seconds=0.05) as client:
        responses = [await client.post("/predict", files=form(*[encoded()] * 4)) for _ in range(2)]
        assert all("no answer within 0.05 s" in detail(response, 503) for response in responses)
        gate.opened.set()
        while (await client.post("/predict", content=encoded(), headers=PNG)).status_code != 200:
            pass  # a slow machine
        assert metric((await client.get("/metrics")).text, "convnext_queue_images") == 0
    assert sum(gate.sizes[:1]) <= 4
    assert set(gate.sizes[1:]) == {1}


async def test_an_explanation_is_the_image_under_heat(predictor: convnext.Predictor) -> None:
    async with asked(predictor) as client:
        best = await client.post("/explain", content=encoded(width=3000, height=1500, kind="jpeg"), headers=PNG)
        other = await client.post("/explain?class=3&method=occlusion", files=form(encoded(), field="image"))
        for query, words in (
            ("?class=cat", "no class 'cat'"),
            ("?method=gradcam", "method: Input should be 'grad-cam'"),
            ("?stage=9", "stage: the model has 0 to"),
            ("?klass=3", "no parameter is called 'klass': did you mean class?"),
        ):
            assert words in detail(await client.post(f"/explain{query}", content=encoded(), headers=PNG), 422)
        assert "at most 1 image" in detail(
            await client.post("/explain", files=form(*[encoded()] * 2, field="image")), 413
        )
    assert Image.open(io.BytesIO(best.content)).size == (1024, 512)
    assert best.headers["content-type"] == "image/png"
    assert unquote(best.headers["x-class"]) == predictor(encoded(width=3000, height=1500, kind="jpeg"))[0].class_name
    assert best.headers["x-method"].startswith("grad-cam, ")
    assert (other.headers["x-class"], other.headers["x-method"]) == ("3", "occlusion")
    picture = Image.open(io.BytesIO(other.content))
    assert picture.size == (480, 360)
    assert len(picture.getcolors(2**20) or ()) > 1000


@pytest.mark.parametrize("preprocessing", [False, True])
async def test_an_exported_file_is_served(preprocessing: bool, digits_run: convnext.Run, tmp_path: Path) -> None:
    path = export(digits_run.path, "onnx", include_preprocessing=preprocessing, output=tmp_path / "model.onnx").path
    predictor = convnext.Predictor.load(path)
    async with asked(predictor) as client:
        about = (await client.get("/model")).json()
        response = await client.post("/predict", files=form(*[encoded(seed, width=50 + seed) for seed in range(9)]))
        refused = await client.post("/explain", content=encoded(), headers=PNG)
        explained = await client.post("/explain?method=occlusion", content=encoded(), headers=PNG)
    assert (about["backend"], about["precision"], about["explanations"], about["stages"]) == (
        *("onnxruntime", "fp32", ["occlusion"], 0),
    )
    for seed, result in enumerate(response.json()["results"]):
        assert result["predictions"][0]["class"] == predictor(encoded(seed, width=50 + seed))[0].class_name
    assert "grad-cam needs gradients" in detail(refused, 422)
    assert explained.status_code == 200


def test_the_configuration_for_triton_fits_an_export(digits_run: convnext.Run, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    shown = re.findall(r'\{ name: "(\w+)", data_type: TYPE_(\w+), dims: \[ ([\d, ]+) \] \}', text)
    path = export(digits_run.path, "onnx", output=tmp_path / "model.onnx").path
    session = onnxruntime.InferenceSession(path)
    real = [*session.get_inputs(), *session.get_outputs()]
    assert [name for name, _, _ in shown] == [one.name for one in real]
    assert [kind for _, kind, _ in shown] == ["FP32" for one in real if one.type == "tensor(float)"]
    assert [1 + len(dims.split(",")) for _, _, dims in shown] == [len(one.shape) for one in real]


async def test_what_is_said_of_the_model(predictor: convnext.Predictor) -> None:
    async with asked(predictor, max_mb=2, max_images=7) as client:
        about = (await client.get("/model")).json()
    assert about["stages"] > 0
    assert {key: value for key, value in about.items() if key != "stages"} == {
        **{"name": "digits", "classes": [str(digit) for digit in range(10)], "image_size": 8, "channels": 1},
        **{"backend": "eager", "precision": "fp32"},
        "explanations": ["grad-cam", "occlusion", "integrated-gradients"],
        "limits": {"bytes": 2**21, "pixels": 100_000_000, "images": 7},
    }


async def test_every_answer_has_strict_headers(predictor: convnext.Predictor) -> None:
    async with asked(predictor) as client:
        paths = ["/health", "/model", "/metrics", "/docs", "/openapi.json", "/missing", "/../predict", "/predict"]
        responses = [await client.get(path) for path in paths]
        responses.append(
            await client.post("/predict", content=encoded(), headers=PNG | {"Origin": "http://evil.example"})
        )
    assert [response.status_code for response in responses] == [200] * 5 + [404, 405, 405, 200]
    for response in responses:
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["permissions-policy"] == "camera=(self)"
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert "/predict" in responses[3].text
    assert re.findall(r'(?:src|href)="(?:\w+:|//)', responses[3].text) == []


async def test_a_fault_of_ours_is_one_line(predictor: convnext.Predictor) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    predictor.predict = fail  # type: ignore[method-assign, assignment]
    async with asked(predictor) as client:
        response = await client.post("/predict", content=encoded(), headers=PNG)
        assert detail(response, 500) == "internal error: RuntimeError; the server's log has more"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert 'status="500"' in (await client.get("/metrics")).text


async def test_logits_that_are_no_numbers_are_one_line(predictor: convnext.Predictor) -> None:
    predictor.model.register_forward_hook(lambda _module, _inputs, logits: logits * float("nan"))
    async with asked(predictor) as client:
        for path in ("/predict", "/explain"):
            response = await client.post(path, content=encoded(), headers=PNG)
            assert detail(response, 500) == "internal error: CheckpointError; the server's log has more"


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
async def test_names_that_the_server_has(host: str, predictor: convnext.Predictor) -> None:
    hosts = frozenset({"localhost", "127.0.0.1", "::1"})
    async with asked(predictor, hosts) as client:
        assert (await client.get("/health", headers={"Host": host})).status_code == 200
        for other in ("evil.example", "127.0.0.1.evil.example:8000", "", "[", "[::2]"):
            assert "this server is not called" in detail(await client.get("/health", headers={"Host": other}), 421)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_batch": 0}, "max-batch: must be at least 1"),
        ({"max_seconds": float("nan")}, "max-seconds: must be at least 0 and finite"),
        ({"max_mb": float("inf")}, "max-mb: must be at least 0 and finite"),
        ({"max_queue": 5}, "max-queue: must hold a batch"),
        ({"max_memory_mb": 8}, r"max-memory-mb: must hold a request \(max-mb 32\), got 8"),
    ],
)
def test_limits_that_are_none(limits: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Limits(**limits)

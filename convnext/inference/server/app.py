"""The routes of a server."""

from collections.abc import Callable
from importlib import resources
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

import convnext.inference.server
from convnext.data.images import UnreadableImageError
from convnext.errors import SettingsError, did_you_mean
from convnext.inference.backends import ExportedBackend
from convnext.inference.explanations import Method, available
from convnext.inference.server.bodies import Bodies
from convnext.inference.server.documentation import page
from convnext.inference.server.door import Door, refusal
from convnext.inference.server.engine import BusyError, Engine
from convnext.output import escaped


class Health(BaseModel):
    """Whether the server takes requests."""

    status: str


class Bounds(BaseModel):
    """What the server takes at most."""

    bytes: int
    pixels: int
    images: int


class Model(BaseModel):
    """The model that answers."""

    name: str
    classes: list[str]
    image_size: int
    channels: int
    backend: str
    precision: str
    explanations: list[Method]
    stages: int
    limits: Bounds


class Guess(BaseModel):
    """A class and its probability."""

    class_name: Annotated[str, Field(serialization_alias="class")]
    probability: float


class Answer(BaseModel):
    """The most probable classes of an image, best first."""

    name: str | None
    predictions: list[Guess]


class Answers(BaseModel):
    """What is in the images, in the order sent."""

    results: list[Answer]


class Problem(BaseModel):
    """What was wrong, in one line."""

    detail: str


def _problems(descriptions: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": Problem.model_json_schema()}}
    return {status: {"content": content, "description": text} for status, text in descriptions.items()}


_EVERYWHERE = _problems(
    {
        421: "The server does not have the name that it was called by.",
        500: "A fault of the server.",
        503: "The server is busy or stopping: try again later, as Retry-After says.",
    }
)
_OF_IMAGES = _problems(
    {
        400: "The client ended the connection within its request.",
        408: "The request did not arrive in time.",
        413: "More bytes or images than the server takes.",
        415: "A content type that is none of those taken.",
        422: "An image that cannot be read or has too many pixels, or a bad parameter.",
    }
)


def _body(field: str, files: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of a body that is a form with files, or an image."""
    form = {"type": "object", "properties": {field: files}, "required": [field], "additionalProperties": False}
    raw = {"schema": _FILE}
    content = {"multipart/form-data": {"schema": form}, "image/*": raw, "application/octet-stream": raw}
    return {"requestBody": {"required": True, "content": content}}


_FILE = {"type": "string", "format": "binary"}
_PNG = {"content": {"image/png": {"schema": _FILE}}, "description": "The picture; X-Class and X-Method say what of."}
_MANY = _body("images", {"type": "array", "items": _FILE, "minItems": 1})
_ONE = _body("image", _FILE)

# Not by `mimetypes`, which on Windows takes what the registry says.
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def make_app(engine: Engine, name: str, allowed_hosts: frozenset[str] = frozenset()) -> Door:
    """The ASGI application that answers with a model.

    Args:
        engine: that computes; it stays the caller's to close.
        name: of the model.
        allowed_hosts: as of `convnext.inference.server.door.Door`.
    """
    app = FastAPI(title=f"convnext: {name}", docs_url=None, redoc_url=None, responses=_EVERYWHERE)
    door = Door(app, engine.metrics, allowed_hosts)
    _add_problems(app)
    _add_answers(app, engine)
    _add_pages(app)
    model = _describe(engine, name)

    @app.get("/health", responses={503: {"model": Health, "description": "It is stopping."}})
    async def health() -> Health:
        """Whether the server takes requests."""
        if door.stopping:
            return JSONResponse({"status": "stopping"}, 503)  # type: ignore[return-value]
        return Health(status="ok")

    @app.get("/model")
    async def describe() -> Model:
        """The model's classes, what it can explain, and what the server takes."""
        return model

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return door


def _describe(engine: Engine, name: str) -> Model:
    backend, limits = engine.predictor.backend, engine.limits
    info = engine.predictor.info
    methods, stages = available(backend)
    return Model(
        name=name,
        classes=list(info.classes),
        image_size=info.image_size,
        channels=info.channels,
        backend=backend.name,
        precision=backend.export.precision if isinstance(backend, ExportedBackend) else "fp32",
        explanations=methods,
        stages=stages,
        limits=Bounds(bytes=limits.max_bytes, pixels=info.max_pixels, images=limits.max_images),
    )


def _add_answers(app: FastAPI, engine: Engine) -> None:
    bodies, limits = Bodies(engine.limits), engine.limits

    @app.post("/predict", responses=_OF_IMAGES, openapi_extra=_MANY)
    async def predict(
        request: Request, top_k: Annotated[int, Query(ge=1, description="Classes of each image.")] = 5
    ) -> Answers:
        """What is in images: the most probable classes of each. One that cannot be read refuses all."""
        _refuse_others(request, "top_k")
        async with bodies.images(request, "images", limits.max_images) as uploads:
            rows = await engine.predict(uploads, top_k)
        results = [
            Answer(name=upload.name, predictions=[Guess(**one._asdict()) for one in row])
            for upload, row in zip(uploads, rows, strict=True)
        ]
        return Answers(results=results)

    @app.post("/explain", response_class=Response, responses=_OF_IMAGES | {200: _PNG}, openapi_extra=_ONE)
    async def explain(
        request: Request,
        class_name: Annotated[
            str | None, Query(alias="class", description="The class looked for; the most probable one by default.")
        ] = None,
        method: Annotated[Method, Query(description="One of those that /model names.")] = "grad-cam",
        stage: Annotated[int, Query(description="Whose feature maps grad-cam takes, from 0 or from the end.")] = -1,
    ) -> Response:
        """Where the model looked for a class in an image: the image under heat, as a PNG."""
        _refuse_others(request, "class", "method", "stage")
        async with bodies.images(request, "image", 1) as (upload,):
            explanation, png = await engine.explain(upload, class_name, method, stage)
        headers = {"X-Class": quote(explanation.class_name, safe=""), "X-Method": explanation.method}
        return Response(png, media_type="image/png", headers=headers)


def _refuse_others(request: Request, *known: str) -> None:
    """Refuse parameters that would change nothing."""
    for name in request.query_params:
        if name not in known:
            raise HTTPException(422, f"no parameter is called {name!r}: {did_you_mean(name, known)}")


def _add_problems(app: FastAPI) -> None:
    """Have every error be one line."""
    statuses: dict[type[Exception], int] = {
        UnreadableImageError: 422,
        SettingsError: 422,
        BusyError: 503,
        MemoryError: 503,
    }

    def handler(status: int) -> Callable[[Request, Exception], Response]:
        return lambda _, error: refusal(status, escaped(str(error)) or "out of memory: try again later")

    for kind, status in statuses.items():
        app.add_exception_handler(kind, handler(status))

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refusal(422, f"{first['loc'][-1]}: {first['msg']}, got {first['input']!r:.100}")

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> Response:
        return refusal(500, f"internal error: {type(error).__name__}; the server's log has more")


def _add_pages(app: FastAPI) -> None:
    """The page in the folder ``page``, and one that lists the routes."""

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def documentation() -> str:
        return page(app.openapi())

    def add(path: str, content: bytes, kind: str | None) -> None:
        @app.get(path, response_class=Response, include_in_schema=False)
        async def file() -> Response:
            return Response(content, media_type=kind)

    folder = resources.files(convnext.inference.server) / "page"
    for file in folder.iterdir() if folder.is_dir() else ():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        add(path, file.read_bytes(), _KINDS[file.name.rpartition(".")[2]])

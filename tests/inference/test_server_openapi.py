"""The server keeps to its OpenAPI document, whatever is sent: by Schemathesis."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis import GenerationMode as Mode
from schemathesis.specs.openapi.checks import positive_data_acceptance

import convnext
from convnext.inference.server.app import make_app
from convnext.inference.server.engine import Engine
from convnext.inference.server.limits import Limits
from tests.support.serving import encoded

# That the model has a class, and how many stages, is beyond the document.
BEYOND_IT: list[Any] = [positive_data_acceptance]
ROUTES = (("/predict", "POST"), ("/explain", "POST"), ("/health", "GET"), ("/model", "GET"), ("/metrics", "GET"))


@pytest.fixture(scope="module")
def document(digits_run: convnext.Run) -> Iterator[Any]:
    """What the server says of itself, with images for all files."""
    image = st.builds(encoded, st.integers(0, 9), st.sampled_from(("png", "jpeg", "webp", "gif", "bmp")))
    schemathesis.openapi.format("binary", image)
    for kind in ("image/*", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, image)
    with closing(Engine(convnext.Predictor.load(digits_run.path), Limits())) as engine:
        app: Any = make_app(engine, "digits")
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


def check(operation: Any, mode: Any, examples: int) -> None:
    """Ask for what the document allows, or, negated, does not; answers must be those that it has."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def answers_as_it_says(case: Case[Any]) -> None:
        case.call_and_validate(excluded_checks=BEYOND_IT if operation.path == "/explain" else None)

    answers_as_it_says()


def test_the_routes_are_those_that_are_checked(document: Any) -> None:
    assert {(one.ok().path, one.ok().method.upper()) for one in document.get_all_operations()} == set(ROUTES)


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_what_the_document_allows(path: str, method: str, document: Any) -> None:
    check(document[path][method], Mode.POSITIVE, 15)


@pytest.mark.parametrize(("path", "method"), ROUTES[:2])
def test_what_the_document_does_not_allow(path: str, method: str, document: Any) -> None:
    check(document[path][method], Mode.NEGATIVE, 15)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [Mode.POSITIVE, Mode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), ROUTES[:2])
def test_much_of_both(path: str, method: str, mode: Any, document: Any) -> None:
    check(document[path][method], mode, 500)

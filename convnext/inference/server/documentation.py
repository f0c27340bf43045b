"""The routes as a page that loads nothing from other hosts, from which FastAPI's own takes scripts."""

from html import escape
from typing import Any


def page(schema: dict[str, Any]) -> str:
    """A plain HTML page of what an OpenAPI document says.

    Args:
        schema: the document.
    """
    routes = (
        _route(method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    )
    title = escape(schema["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="icon.svg">'
        '<link rel="stylesheet" href="page.css"></head><body><main>'
        f'<h1>{title}</h1><p>For programs: <a href="/openapi.json">openapi.json</a>.</p>{"".join(routes)}'
        "</main></body></html>"
    )


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = [
        f"<li><code>{escape(one['name'])}</code>, by default {escape(str(one['schema'].get('default')))}: "
        f"{escape(one.get('description', ''))}</li>"
        for one in operation.get("parameters", ())
    ]
    bodies = [f"<li>a body of <code>{escape(kind)}</code></li>" for kind in _content(operation.get("requestBody", {}))]
    answers = [
        f"<li>{status}: {escape(answer['description'])} {escape(', '.join(_content(answer)))}</li>"
        for status, answer in operation["responses"].items()
    ]
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
        f"<h3>Takes</h3><ul>{''.join(parameters + bodies) or '<li>nothing</li>'}</ul><h3>Answers</h3>"
        f"<ul>{''.join(answers)}</ul>"
    )


def _content(value: dict[str, Any]) -> list[str]:
    return list(value.get("content", {}))

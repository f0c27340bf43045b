"""What the documentation's site has beside the pages in ``docs/``; mkdocs calls the functions ``on_…``.

- The repository's files that the pages link to: texts, notebooks and pictures, anything else on a page that shows it.
- In ``reference/``, where ``<!-- made: NAME -->`` stands, the commands' options and all settings.
"""

import contextlib
import importlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from convnext.cli import COMMANDS
from convnext.config import RunSettings
from convnext.config.base import Settings

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:)[^)\s#]+")
MADE = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)
FOLDER = "docs/"  # of the pages, whose addresses on the site go without it

_homes: dict[str, str] = {}  # the repository's files outside of it, by their address on the site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to outside of ``docs/``, and what that links to."""
    waiting = [FOLDER + file.src_uri for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        home = waiting.pop()
        text = "" if home.endswith(".png") else _markdown(ROOT / home)
        if not home.startswith(FOLDER):
            address = _address(home)
            source = {"content": text} if text else {"abs_src_path": str(ROOT / home)}
            files.append(File.generated(config, address, inclusion=InclusionLevel.NOT_IN_NAV, **source))
            _homes[address] = home
        linked = {target for link in LINK.findall(text) if (target := _target(home, link))} - seen
        waiting += (target for target in linked if not target.startswith(FOLDER))
        seen |= linked
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Make what the reference shows, and let links lead to where the site has what they mean."""
    address = page.file.src_uri
    home = _homes.get(address, FOLDER + address)

    def link_on_site(link: re.Match[str]) -> str:
        target = _target(home, link[0])
        return posixpath.relpath(_address(target), posixpath.dirname(address)) if target else link[0]

    made = {"commands": _commands, "settings": _settings}
    return MADE.sub(lambda mark: "\n".join(made[mark[1]]()), LINK.sub(link_on_site, markdown))


def _target(home: str, link: str) -> str:
    """The repository's file or folder that a link in the text of ``home`` means; nothing where there is none."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
    return target if (ROOT / target).exists() else ""


def _address(home: str) -> str:
    """The address that mkdocs has for a file of the repository, or for the page that shows it."""
    return home.removeprefix(FOLDER) if home.startswith(FOLDER) or home.endswith((".md", ".png")) else f"{home}.md"


def _markdown(path: Path) -> str:
    """The text of a page, or one that shows another file, or a result: its pictures and how it was made."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_bytes())["cells"]]
        return "\n\n".join(f"````python\n{text}\n````" if kind == "code" else text for kind, text in cells)
    lines = ["---", "search: {exclude: true}", "---", f"# {path.relative_to(ROOT).as_posix()}"]
    for file in sorted([*path.rglob("*.png"), *path.rglob("run.json")]) if path.is_dir() else [path]:
        name = file.relative_to(path.parent).as_posix()
        if file.suffix == ".png":
            lines.append(f"\n![{name}]({name})")
        else:
            lines += [f"\n`{name}`\n", f"````{file.suffix[1:]}", file.read_text(encoding="utf-8").rstrip(), "````"]
    return "\n".join(lines)


def _settings(kind: type[Settings] = RunSettings) -> Iterator[str]:
    """A table of the settings of a group, then those of the groups in it."""
    schema = kind.model_json_schema()["properties"]
    groups = {name: field.default for name, field in kind.model_fields.items() if isinstance(field.default, Settings)}
    if kind is not RunSettings:
        yield f"\n## {kind.section.removesuffix('.')}\n\n{(kind.__doc__ or '').strip()}"
    yield "\n| setting | values | default | what it is |\n| --- | --- | --- | --- |"
    for name, field in kind.model_fields.items():
        if name not in groups and name != "recipe":
            values, default = _values(schema[name]), field.default
            default = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            yield _row(_code(f"{kind.section}{name}"), values, _code(default), field.description or "")
    for group in groups.values():
        yield from _settings(type(group))


def _values(schema: dict[str, Any]) -> str:
    """The values that a field's JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_values, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(_code, schema.get("enum", [schema.get("const")])))
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} of: {_values(schema['prefixItems'][0])}"
    if "items" in schema:
        return f"any number of: {_values(schema['items'])}"
    words = {"null": "`None`", "integer": "whole number", "string": "text"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return ", ".join([schema.get("format") or words.get(schema["type"], schema["type"]), *bounds])


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |"


def _commands() -> Iterator[str]:
    """A table of every command's options, from its ``--help``."""
    for name in (*COMMANDS, "datasets check"):
        summary, rows = _help(name)
        yield f"\n## {name}\n\n{summary}\n\n| option | values | default | what it is |\n| --- | --- | --- | --- |"
        for option, text in rows:
            words, _, values = option.replace(", ", ",").partition(" " if option.startswith("-") else "\n")
            values = re.sub(r"^{None[,}]\|?|[{}]", "", values).replace("|", ",").replace(",", ", ")
            match = re.fullmatch(r"(.*?)(?: \((?:default: ?(.*)|required)\))?", text)
            assert match is not None
            yield _row(_code(words), _code(values), _code(match[2] or ""), match[1])
        if name == "train":
            yield "\nAnd every setting, with dashes: [settings](settings.md)."


def _help(name: str) -> tuple[str, list[list[str]]]:
    """What a command does, and its options with their texts, in the order of its ``--help``."""
    module = importlib.import_module(f"convnext.commands.{name.replace(' ', '_')}")
    output = io.StringIO()
    # A narrow terminal has the groups of options below each other.
    width = mock.patch.dict(os.environ, COLUMNS="100")
    with width, contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        module.main(["digits", "--help"] if name == "train" else ["--help"])
    rows: list[list[str]] = []
    for line in re.findall(r"^  (?!-{3}| *$)(.*?) *$", output.getvalue(), re.MULTILINE):
        if line.startswith(" ") and rows:
            rows[-1][1] = f"{rows[-1][1]} {line.strip()}".strip()
        else:
            option, _, rest = line.partition("  ")
            rows.append([option, rest.strip()])
    if name == "train":
        settings = {f"--{setting.replace('_', '-')}" for setting in RunSettings.names()}
        rows = [row for row in rows if row[0].startswith("--") and re.split("[ ,]", row[0])[0] not in settings]
    summary = COMMANDS.get(name, module.main.__doc__ or "")
    return summary, [row for row in rows if row[0] != "-h, --help"]

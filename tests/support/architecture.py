"""The map of the package, read from its source: which module imports which, and whether that goes the stated way."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# As CONTRIBUTING.md states it: a room may import those after it; rooms that stand together, not each other.
ARROWS = (
    "cli > commands > comparison > training, inference > evaluation > runs, plots > recipes > data, models > "
    "weights, kernels > storage > devices, distributed > config > errors > output"
)
_LEVELS = {room: level for level, rooms in enumerate(ARROWS.split(" > ")) for room in rooms.split(", ")}


@dataclass(frozen=True)
class Module:
    """A source file: ``name`` is dotted; ``imports`` are the project's modules and names that it asks for."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The part of the house that it belongs to."""
        package, *inner = self.name.split(".")
        return ".".join(inner[:1]) if package == "convnext" else package


def read_modules(folder: Path) -> dict[str, Module]:
    """All modules below ``folder`` (the package, or another folder of Python files), by dotted name."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[str, str | None]]:
    """The modules among ``modules`` that a module imports anywhere in it, each with the name it takes from there."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in modules else (node.module, alias.name)


def wrong_arrows(modules: dict[str, Module]) -> list[str]:
    """A line for each import that does not run down, and for each circle of modules."""
    lines, graph = [], {}
    for module in modules.values():
        graph[module.name] = {target for target, _ in imports(module, modules)} - {module.name}
        if module.name in ("convnext", "convnext.__main__"):  # the doors
            continue
        for target in sorted(graph[module.name]):
            room = modules[target].room
            if target == "convnext" and module.room == "cli":  # its version
                continue
            if room not in _LEVELS or module.room not in _LEVELS:
                lines.append(f"{module.name} imports {target}: not a room of {ARROWS}")
            elif room != module.room and _LEVELS[room] <= _LEVELS[module.room]:
                lines.append(f"{module.name} imports {target}: up")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        lines.append(f"a circle: {' -> '.join(error.args[1])}")
    return lines


def _is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")


def _private_names(module: Module) -> set[str]:
    """Private names that a module makes: functions, classes, constants, attributes of ``self``."""
    names = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names if _is_private(name)}


def private_uses(users: dict[str, Module], package: dict[str, Module]) -> list[str]:
    """A line for each private name of the package that a module of another room uses: imported, as an attribute, or
    as a string, which is how `monkeypatch` and `getattr` name it."""
    owners: dict[str, set[str]] = {}
    for module in package.values():
        for name in _private_names(module):
            owners.setdefault(name, set()).add(module.room)
    lines = []
    for module in users.values():
        own = _private_names(module)
        for node in ast.walk(module.tree):
            used: list[str] = []
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Attribute):
                used = [node.attr]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                used = [node.value.rpartition(".")[2]]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("convnext"):
                used = [alias.name for alias in node.names]
            foreign = [name for name in used if name in owners and name not in own and module.room not in owners[name]]
            lines += [f"{module.path.name}:{line} uses {name} of {', '.join(owners[name])}" for name in foreign]
    return lines


def too_long(modules: dict[str, Module], most_lines: int, most_in_function: int) -> list[str]:
    """A line for each file and function that is longer than allowed."""
    lines = []
    for module in modules.values():
        count = len(module.path.read_text(encoding="utf-8").splitlines())
        if count > most_lines:
            lines.append(f"{module.name}: {count} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > most_in_function:
                    lines.append(f"{module.name}.{node.name}: {count} lines")
    return lines

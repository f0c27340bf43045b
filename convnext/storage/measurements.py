"""Measurements of speed: what they were made on, and what they gave, kept so that each is made once."""

import json
import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from convnext.storage.files import write_text


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """As the processor calls itself, where the system tells; by family and model, too, where that names no model, as in
    many virtual machines: an "AMD EPYC" may be of any generation."""
    known = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)) if cpuinfo.exists() else {}
    name = known.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= known.keys() and not re.search(r"\d", name):
        return f"{name} (family {known['cpu family']}, model {known['model']})"
    return name


def remember(path: Path, numbers: Mapping[str, float]) -> None:
    """Keep what was measured, by name, in a file; OSError where that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(dict(numbers)))


def remembered(path: Path, names: Collection[str]) -> dict[str, float] | None:
    """What `remember` kept: numbers of some of the ``names``; None where it is not there or damaged."""
    try:
        numbers = {str(name): float(number) for name, number in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return numbers if numbers and numbers.keys() <= set(names) else None

"""The repository's texts: their code blocks, and the commands in these."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
_FENCED = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"^(?:\$ )?(?:\w+=\S+ )*(?:(?:torchrun|accelerate launch) .*-m |docker run .* )?"
    r"(convnext|sbatch .*docs/train\.sbatch) (.+)$"
)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the reason that the page's source gives for not running it."""

    language: str
    text: str
    not_run: str


def name_of(path: Path) -> str:
    """Path relative to the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a text, in order."""
    found = _FENCED.findall(path.read_text(encoding="utf-8"))
    return [Block(language, text, reason) for reason, language, text in found]


def sentences(path: Path) -> str:
    """A text without its fenced blocks."""
    return _FENCED.sub("", path.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    """The words behind `convnext` of each command in a block's text."""
    for line in text.replace("\\\n", " ").splitlines():
        if match := _COMMAND.match(line):
            words = shlex.split(match[2], comments=True)
            yield words if match[1] == "convnext" else ["train", *words]

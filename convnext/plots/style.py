"""The one style of all pictures, their texts, and their writing."""

import io
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from convnext.errors import UserError
from convnext.output import escaped
from convnext.storage.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BLUE, ORANGE, RED, GREY = "#1f6fb4", "#e07b22", "#b3261e", "#666666"
# Of contenders; a page may have others for its dark ground, see `inline_svg`.
SERIES = ("#1f6fb4", "#c25e00", "#1a7f37", "#8250b8", "#b3261e", "#00797a", "#7a5230", "#b83280")


def new_figure(**options: Any) -> "Figure":
    """A figure without a display; the options are matplotlib's."""
    from matplotlib.figure import Figure  # without pyplot, which has global state

    return Figure(**{"layout": "constrained"} | options)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, whole or not at all, with all texts as they are: without formulas, in whatever script.

    Raises:
        UserError: its folder is not there.
    """
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: folder {path.parent} is not there: make it first")
    with writing(path) as unfinished:
        _write_png(figure, unfinished)


def rendered(figure: "Figure") -> Image.Image:
    """The picture that `save_figure` would write."""
    buffer = io.BytesIO()
    _write_png(figure, buffer)
    return Image.open(buffer).convert("RGB")


def inline_svg(figure: "Figure", label: str) -> str:
    """An ``<svg>`` element for a page, without a ground: black is the text's colour there, the colours of `SERIES` are
    its variables ``--series-0`` and so on, and ``label`` is what a screen reader says."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}), _any_script(figure):
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub("<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub('<g id="[^"]*"', "<g", text).replace("#000000", "currentColor")
    for number, color in enumerate(SERIES):
        text = text.replace(color, f"var(--series-{number})")
    tag, rest = text.split(">", 1)
    width = re.search(r'width="([\d.]+)pt"', tag)
    assert width is not None
    tag = re.sub(r' (width|height)="[^"]*"', "", tag)
    style = f"max-width: {float(width[1]) * 4 / 3:.0f}px"  # as large as the figure is
    return f'{tag} class="plot" role="img" aria-label="{escape(label)}" style="{style}">{rest}'


def _write_png(figure: "Figure", target: Path | io.BytesIO) -> None:
    with _any_script(figure):
        figure.savefig(target, format="png", dpi=120, bbox_inches="tight", pad_inches=0.1)


def fit_texts(figure: "Figure", texts: "Iterable[Text]", width: float) -> None:
    """Let texts be small enough for so many inches."""
    with _any_script(figure):
        for text in texts:
            needed, most = text.get_window_extent().width, width * figure.dpi
            text.set_fontsize(float(text.get_fontsize()) * most / max(needed, most))


@contextmanager
def _any_script(figure: "Figure") -> Iterator[None]:
    """Give the figure's texts the fonts that they need; what no font of the system has becomes a box, silently."""
    from matplotlib.text import Text

    texts: list[Any] = figure.findobj(Text)
    families = _families("".join(text.get_text() for text in texts))
    for text in texts:
        text.set(family=families, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def _families(text: str) -> list[str]:
    """The usual font's family, and for characters that it lacks those of the system's fonts that have them."""
    from matplotlib import font_manager, rcParams

    fonts = font_manager.fontManager
    missing = set(text) - _characters(fonts.findfont(font_manager.FontProperties())) - set("\n")
    families = list(rcParams["font.family"])
    for font in fonts.ttflist:
        if not missing:
            break
        if not font.name.startswith("Last Resort") and missing & (available := _characters(font.fname)):
            families.append(font.name)
            missing -= available
    return families


def _characters(font: str) -> set[str]:
    from matplotlib.font_manager import get_font

    return {chr(code) for code in get_font(font).get_charmap()}


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """A text in at most so many lines of at most ``width`` columns, of which ideographs take two; what does not fit is
    left out."""
    text, width = _printable(text, width)
    split = textwrap.wrap(text, width, break_on_hyphens=False)
    if len(split) > lines:
        split[lines - 1 :] = [split[lines - 1][: width - 1].rstrip(" ,;") + "…"]
    return "\n".join(split)


def shortened(text: str, width: int) -> str:
    """A text in one line of at most ``width`` columns, without its middle where it is longer."""
    text, width = _printable(text, width)
    left_out = len(text) > width
    return f"{text[: width // 2]}…{text[len(text) - (width - 1) // 2 :]}" if left_out else text


def labels(names: Sequence[str], width: int) -> list[str]:
    """Each name in one line of at most ``width`` columns: its first words, or where another begins alike, its two
    ends."""
    first = [wrapped(name, width, lines=1) for name in names]
    times = Counter(first)
    return [text if times[text] == 1 else shortened(name, width) for name, text in zip(names, first, strict=True)]


def _printable(text: str, width: int) -> tuple[str, int]:
    """The text with control characters escaped, and how many of its characters take so many columns."""
    from rich.cells import cell_len

    text = escaped(text)
    return text, max(2, width * len(text) // max(cell_len(text), 1))

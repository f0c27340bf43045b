"""The one style of all pictures, and their writing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext.errors import UserError
from convnext.storage.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, RED = "#1f6fb4", "#e07b22", "#b3261e"


def new_figure(**options: Any) -> "Figure":
    """A figure without a display; the options are matplotlib's."""
    from matplotlib.figure import Figure  # without pyplot, which has global state

    return Figure(layout="constrained", **options)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        UserError: its folder is not there.
    """
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: folder {path.parent} is not there: make it first")
    with writing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)

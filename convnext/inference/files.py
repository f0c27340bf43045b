"""The image files that a user's arguments mean."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from convnext.data.files import image_files
from convnext.data.sources import LeftOut
from convnext.errors import DataError
from convnext.output import say


def is_url(text: str) -> bool:
    """Whether it begins as a URL does, of whatever scheme."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


def expand(arguments: Sequence[str]) -> list[str]:
    """Files, URLs and ``-`` as they are; the images below folders, as training finds them, and the matches of glob
    patterns, sorted. What is left out of folders is counted on standard error.

    Raises:
        DataError: something is not there or no file, or a folder or pattern gives no image.
    """
    paths: list[str] = []
    left_out = LeftOut()
    for argument in arguments:
        path = Path(argument)
        if argument == "-" or is_url(argument) or path.is_file():
            paths.append(argument)
        elif path.is_dir():
            matches = sorted(image_files(path, left_out))
            if not matches:
                raise DataError("; ".join((f"folder {argument} has no images", *left_out.lines())))
            paths += matches
        elif path.exists():
            raise DataError(f"{argument} is no file but a pipe or a device: give - for standard input")
        else:
            matches = sorted(name for name in glob.glob(argument, recursive=True) if Path(name).is_file())
            if not matches:
                raise DataError(f"{argument} is not there, and matches nothing as a pattern")
            paths += matches
    for line in left_out.lines():
        say(line)
    return paths

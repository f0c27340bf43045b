"""The image files that a user's arguments mean."""

import glob
from collections.abc import Sequence
from pathlib import Path

from convnext.data.sources import is_image_name
from convnext.errors import DataError


def expand(arguments: Sequence[str]) -> list[str]:
    """Files as they are; the images below folders, and the matches of glob patterns, sorted; ``-`` as it is.

    Raises:
        DataError: something is not there, or a folder or pattern gives no image.
    """
    paths: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if argument == "-" or path.is_file():
            paths.append(argument)
        elif path.is_dir():
            matches = sorted(str(file) for file in path.rglob("*") if is_image_name(file.name) and file.is_file())
            if not matches:
                raise DataError(f"folder {argument} has no images")
            paths += matches
        else:
            matches = sorted(name for name in glob.glob(argument, recursive=True) if Path(name).is_file())
            if not matches:
                raise DataError(f"{argument} is not there, and matches nothing as a pattern")
            paths += matches
    return paths

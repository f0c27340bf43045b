"""Errors that the user can mend; the command prints them as one line and exits with status 2."""

from collections.abc import Iterable


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one or two lines."""


class SettingsError(UserError):
    """A setting that does not exist, or a value out of its bounds."""


class DataError(UserError):
    """Images or a data set that cannot be used as they are."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, or made for something else."""


def reason(error: object) -> str:
    """The first line of what an error says, without its number or the file's name."""
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the close matches of ``name``, or all of ``known`` where none is close."""
    import difflib

    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"

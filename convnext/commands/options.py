"""The settings of a run among a command's options."""

from collections.abc import Sequence
from itertools import pairwise

from convnext.config import RunSettings


def option_words(args: Sequence[str], *names: str) -> list[str]:
    """The arguments, with ``NAME=VALUE`` of these names as two."""
    return [word for arg in args for word in (arg.split("=", 1) if arg.split("=")[0] in names else [arg])]


def given_settings(args: Sequence[str]) -> set[str]:
    """The settings that the options name, by dotted name."""
    names, given = RunSettings.names(), set()
    for arg in args:
        if arg.startswith("--"):
            name = arg[2:].split("=", 1)[0].replace("-", "_")
            group, dot, last = name.rpartition(".")
            given |= {name, f"{group}{dot}{last.removeprefix('no_')}"} & names
    return given


def automatic_batch(args: Sequence[str]) -> list[str]:
    """``--batch-size auto`` in other words: the recipe's batch, in as few micro-batches as fit into memory."""
    names = ("--batch-size", "--batch_size")
    words = option_words(args, *names)
    for index, (name, value) in enumerate(pairwise(words)):
        if name in names and value == "auto":
            words[index] = "--gradient-accumulation"
    return words

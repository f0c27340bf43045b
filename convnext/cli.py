"""The command ``convnext``: which command, and what its errors say. Results go to standard output, the rest to standard
error.

Exit status: 0 done, 1 our mistake, 2 the user's, 128 + n stopped by signal n.
"""

import contextlib
import errno
import importlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

import convnext
from convnext.errors import SettingsError, UserError, did_you_mean
from convnext.output import abandon_output, await_first_process, filled, prepare_streams, say

_USERS_ERRNO = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EIO, errno.EBADF, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)

# What `convnext --help` says of each command: the first line of `main` in the module of that name in
# `convnext.commands`, which is imported when the command is called, and no other.
COMMANDS = {
    "train": "Train a ConvNeXt: `convnext train RECIPE`, with any setting changed by an option.",
    "evaluate": "Measure a run on its test split: accuracy, macro-F1, a report by class, pictures.",
    "compare": "Train models or settings alike, and report whether their difference is real.",
    "predict": "Name what is in images, with percentages.",
    "benchmark": "Measure a model on every backend here, in every precision, beside timm's and torchvision's.",
    "export": "Write a model as ONNX, OpenVINO or torch.export, compared with its source before it is called done.",
    "serve": "Serve a model over HTTP, with a page: predictions, explanations, metrics.",
    "runs": "List runs: status, best accuracy, settings that are not their recipe's; draw their curves.",
    "inspect": "Show what a checkpoint holds: model, classes, metrics, settings, data, versions.",
    "recipes": "List the recipes, or show one with all its settings.",
    "models": "List the models with their parameters and multiply-adds, or show one stage by stage.",
    "datasets": "List the data sets; show, fetch or check one, or write it as a folder of images.",
    "convert": "Write weights in the layout of another library: official, torchvision, timm, transformers.",
    "env": "Print what a report of a fault needs: versions, machine, accelerators, kernels, cache, variables.",
    "roadmap": "Show the steps from ResNet-50 to ConvNeXt-T, draw them, or train them all.",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    if debug:
        args.remove("--debug")
    prepare_streams()
    try:
        try:
            with _ended_in_order():
                status = _dispatch(args)
        except SystemExit as stop:  # --help, or a signal
            status = stop.code if isinstance(stop.code, int) else 2
            if status > 128:
                say(f"convnext: stopped by {signal.Signals(status - 128).name}")
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        say("convnext: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        abandon_output()
        return 0
    except Exception as error:
        abandon_output()
        if debug:
            raise
        return _report_error(error, args)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind what runs, so that no half-written file stays; a command may take them for itself."""
    if threading.current_thread() is not threading.main_thread():  # which alone can take signals
        yield
        return
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    usual = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores SIGHUP
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        raise SystemExit(128 + number)

    for number in usual:
        signal.signal(number, stop)
    try:
        yield
    except Exception as error:
        if received:  # what a library that was interrupted made of it
            raise SystemExit(128 + received[0]) from error
        raise
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_DFL)


def _dispatch(args: list[str]) -> int:
    if args[:1] == ["help"]:  # `help train` is `train --help`
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help"):
        _print_help()
        return 0 if args else 2
    if args[0] in ("-v", "-V", "--version"):
        print(f"convnext {convnext.__version__}")
        return 0
    if args[0] not in COMMANDS:
        raise SettingsError(f"no command is called {args[0]!r}: {did_you_mean(args[0], COMMANDS)}")
    status: int = importlib.import_module(f"convnext.commands.{args[0]}").main(args[1:])
    return status


def _print_help() -> None:
    commands = (filled(description, f"  {name:<10} ", " " * 13) for name, description in COMMANDS.items())
    ending = "`convnext COMMAND --help` explains a command; --debug shows the traceback of an error; --version."
    print("usage: convnext COMMAND [options]\n\nTrain, measure and use a ConvNeXt.\n", *commands, sep="\n")
    print("\n" + filled(ending))


def _report_error(error: Exception, args: list[str]) -> int:
    interrupted = type(error).__name__ == "InterruptedRunError"
    if isinstance(error, OSError) and error.errno in _USERS_ERRNO:
        error = UserError(f"{error.filename or 'a file or standard output'}: {error.strerror}")
    # Of the processes that torchrun starts on a machine, the first alone says what all of them have to say.
    is_another = os.environ.get("LOCAL_RANK", "0") != "0"
    if is_another and isinstance(error, SettingsError):
        await_first_process()  # if that one had nothing to say, this one does
    lines = [f"convnext: {error}"]
    if interrupted:
        again = ["train", "--resume", str(getattr(error, "folder", ""))] if args[0] == "train" else args
        lines.append(f"go on with: convnext {shlex.join(again)}")
    elif not isinstance(error, UserError):
        lines = [
            f"convnext: internal error: {type(error).__name__}: {error}",
            "run the command again with --debug for the traceback; please report it, with what `convnext env` prints",
        ]
    if not (is_another and interrupted):
        say(*lines, by_all=True)
    return 128 + int(getattr(error, "signal", 0)) if interrupted else 2 if isinstance(error, UserError) else 1

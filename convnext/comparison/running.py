"""Work in processes of its own: one that fails, or is killed, leaves the others as they are."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from convnext.errors import UserError
from convnext.output import prepare_streams
from convnext.training.interruption import InterruptedRunError, StopSignals

START_METHOD = "forkserver"
_MOMENT = 0.2  # seconds from one look for a signal to the next


@dataclass(frozen=True)
class Job:
    """``work`` to do in a process of its own, whose output goes into the file ``log``, if there is one."""

    name: str
    work: Callable[[], Any]
    log: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a job came to: its ``value``, or the ``problem`` that it had, in one line, with the exit status for it."""

    value: Any = None
    problem: str | None = None
    status: int = 0


@dataclass
class _Running:
    job: Job
    slot: int
    process: BaseProcess
    receiver: Connection

    def outcome(self) -> Outcome:
        """After its end."""
        self.process.join()
        try:
            outcome: Outcome = self.receiver.recv()
        except EOFError:  # it had no time to say anything
            code = self.process.exitcode or 0
            cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"its process ended with status {code}"
            memory = "; where memory ran out, lower --parallel or --batch-size" if code == -9 else ""
            outcome = Outcome(problem=cause + memory, status=128 - code if code < 0 else 1)
        self.receiver.close()
        self.process.close()
        return outcome


def devices(device: str) -> list[str]:
    """The GPUs, as CUDA_VISIBLE_DEVICES names them, that trainings on ``device`` (a setting) can have one each; none
    where there are not several."""
    import torch

    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def run_jobs(
    jobs: Sequence[Job], signals: StopSignals, parallel: int, gpus: Sequence[str]
) -> Iterator[tuple[Job, Outcome]]:
    """Do the jobs, ``parallel`` of them at a time, in order, each with its part of this process's threads and one of
    the ``gpus``, if there are any; gives each with its outcome as it ends.

    Raises:
        InterruptedRunError: ``signals`` asked to stop; the jobs were asked to, too, and have ended.
    """
    import torch

    # Forked from a process that has imported everything and computed nothing: quick to start, with nothing inherited.
    context: Any = multiprocessing.get_context(START_METHOD)
    context.set_forkserver_preload(["convnext.training.train", "sklearn.model_selection", "sklearn.metrics"])
    threads = max(1, torch.get_num_threads() // parallel)
    waiting, running = list(jobs), dict[Any, _Running]()
    slots = list(range(parallel))
    try:
        while waiting or running:
            while waiting and slots and signals.received is None:
                job, slot = waiting.pop(0), slots.pop(0)
                receiver, sender = multiprocessing.Pipe(duplex=False)
                gpu = gpus[slot % len(gpus)] if gpus else None
                process = context.Process(target=_work, args=(job, threads, gpu, sender), name=job.name)
                process.start()
                sender.close()
                running[process.sentinel] = _Running(job, slot, process, receiver)
            if signals.received is not None:
                _stop(running.values())
                signals.stop()
            for sentinel in wait(list(running), _MOMENT):
                ended = running.pop(sentinel)
                slots.append(ended.slot)
                yield ended.job, ended.outcome()
    finally:
        for left in running.values():  # after an error here, or a second Ctrl-C
            left.process.kill()


def _stop(running: Any) -> None:
    """Ask what runs to save and stop, and wait for it."""
    for each in running:
        each.process.terminate()
    for each in running:
        each.process.join()


def _work(job: Job, threads: int, gpu: str | None, sender: Connection) -> None:
    """What the job's process does."""
    import torch

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until a training takes them for itself
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if job.log is not None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
    prepare_streams()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used, which is later
    torch.set_num_threads(threads)
    try:
        outcome = Outcome(job.work())
    except InterruptedRunError as error:
        outcome = Outcome(problem=str(error), status=128 + error.signal)
    except UserError as error:
        outcome = Outcome(problem=str(error), status=2)
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(problem=f"internal error: {type(error).__name__}: {error}", status=1)
    with suppress(BrokenPipeError):  # where the one that would read it was killed
        sender.send(outcome)


def _end_with_parent() -> None:
    """Have this process save and stop where the one that started it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

"""The live display of a training run, on standard error."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """A bar that moves on a terminal, and a line an epoch anywhere.

    Args:
        steps: optimizer steps of the whole run.
        start: steps already done.
        shown: False on all processes but the first.
    """

    def __init__(self, steps: int, start: int, shown: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not shown, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("training", total=steps, completed=start, numbers="")
        self._since, self._images = time.perf_counter(), 0

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False)

    def update(self, step: int, epoch: str, images: int, loss: float, accuracy: float, lr: float) -> None:
        """Show the numbers after ``step`` steps; ``images`` were trained on since the last call."""
        now = time.perf_counter()
        rate = images / max(now - self._since, 1e-9)
        self._since = now
        numbers = f"loss {loss:.3f}  top-1 {100 * accuracy:5.2f} %  lr {lr:.2e}  {rate:,.0f} images/s"
        self._bar.update(self._task, completed=step, description=epoch, numbers=numbers)

    def resume_clock(self) -> None:
        """Leave the time since the last update out of the rate, after an evaluation."""
        self._since = time.perf_counter()

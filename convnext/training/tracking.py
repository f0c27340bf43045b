"""Where a run's numbers go: a line of JSON an epoch, and TensorBoard."""

import json
from pathlib import Path
from typing import Any

from convnext.training.checkpoint import write_text


class Tracker:
    """Writes ``metrics.jsonl`` and, where asked, TensorBoard's event files.

    Args:
        run: the run's folder.
        step: optimizer step from which the run goes on; what was logged after it is dropped, since it will be
            computed again.
        tensorboard: whether to write event files into ``<run>/tensorboard``.
    """

    def __init__(self, run: Path, step: int, tensorboard: bool) -> None:
        self.path = run / "metrics.jsonl"
        self.history = [line for line in read_metrics(run) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.history))
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one epoch's numbers; ``metrics`` has ``epoch`` and ``step``."""
        self.history.append(metrics)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                if name not in ("epoch", "step"):
                    self._board.add_scalar(name.replace("_", "/", 1), value, metrics["step"])  # type: ignore[no-untyped-call]
            self._board.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Finish the event file."""
        if self._board is not None:
            self._board.close()  # type: ignore[no-untyped-call]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; a last line cut short by a kill is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines

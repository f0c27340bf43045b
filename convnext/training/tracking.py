"""Where a run's numbers go: a line of JSON an epoch, and the trackers of the settings."""

import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from convnext.config import RunSettings
from convnext.errors import SettingsError
from convnext.files import write_text
from convnext.training.run import flatten, read_metrics


class Backend(Protocol):
    """A place to log to."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take the numbers of one epoch, which ended after ``step`` optimizer steps."""

    def close(self) -> None:
        """Finish."""


class Tracker:
    """Writes ``metrics.jsonl``, and passes the same numbers on to the backends.

    Args:
        run: the run's folder.
        step: optimizer step from which the run goes on; lines from after it are dropped, since those epochs will
            be computed again.
        settings: the run's.
        main: False on all processes but the first, which write nothing.

    Raises:
        SettingsError: a tracker whose package is not installed.
    """

    def __init__(self, run: Path, step: int, settings: RunSettings, main: bool = True) -> None:
        self.path = run / "metrics.jsonl"
        self.history = [line for line in read_metrics(run) if line["step"] <= step]
        self._main, self._backends = main, dict[str, Backend]()
        if not main:
            return
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.history))
        kinds: dict[str, Callable[[Path, int, RunSettings], Backend]]
        kinds = {"tensorboard": _TensorBoard, "wandb": _WandB}
        self._backends = {name: kinds[name](run, step, settings) for name in settings.trackers}

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one epoch's numbers; ``metrics`` has ``epoch`` and ``step``."""
        self.history.append(metrics)
        if not self._main:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        values = {name.replace("_", "/", 1): value for name, value in metrics.items() if name != "step"}
        self._tell(lambda backend: backend.log(metrics["step"], values))

    def close(self) -> None:
        """Finish the backends' files."""
        self._tell(lambda backend: backend.close())

    def _tell(self, what: Callable[[Backend], None]) -> None:
        """Tell every backend; one that fails is told no more, and training goes on without it."""
        for name, backend in list(self._backends.items()):
            try:
                what(backend)
            except Exception as error:  # a full disk, no network, a broken service
                del self._backends[name]
                reason = (str(error) or type(error).__name__).splitlines()[0]
                print(f"tracker {name} failed ({reason}); training goes on without it", file=sys.stderr)


class _TensorBoard:
    def __init__(self, run: Path, step: int, settings: RunSettings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("settings", f"```\n{settings.model_dump_json(indent=2)}\n```", step)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, run: Path, _: int, settings: RunSettings) -> None:
        try:
            import wandb
        except ModuleNotFoundError:
            raise SettingsError("tracker wandb is not installed: pip install 'convnext[wandb]'") from None
        # The identity stays in the folder, so that a resumed run goes on in the same place.
        identity = run / "wandb_id"
        if not identity.exists():
            write_text(identity, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project="convnext",
                name=run.name,
                id=identity.read_text(encoding="utf-8"),
                resume="allow",
                dir=run,
                config=flatten(settings),
            )
        except Exception as error:  # no key, no network, a broken service: wandb has many names for it
            reason = str(error).splitlines()[0]
            raise SettingsError(
                f"tracker wandb cannot start ({reason}): log in with `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()

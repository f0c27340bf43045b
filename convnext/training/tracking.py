"""Where a run's numbers go: a line of JSON an epoch, and the trackers of the settings."""

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from convnext.config import RunSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.evaluation.metrics import Report
from convnext.output import say
from convnext.runs.folder import flatten, read_metrics
from convnext.storage.files import sync, write_text


class Tracker:
    """Writes ``metrics.jsonl``, on the ``main`` process alone, and passes the same numbers on to the backends, which
    leaving the context closes. Lines from after ``step``, from which the run goes on, are dropped: those epochs come
    again.

    A backend that fails is told no more, and the run goes on without it; only a new run does not start then, since
    nothing is lost yet and somebody is there to mend it.

    Raises:
        SettingsError: a tracker of a new run that is not installed or cannot start.
    """

    def __init__(self, run: Path, step: int, settings: RunSettings, main: bool = True) -> None:
        self.path = run / "metrics.jsonl"
        self.history = [line for line in read_metrics(run) if line["step"] <= step]
        self._main, self._backends = main, dict[str, _Backend]()
        if not main:
            return
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.history))
        for name in settings.trackers:
            try:
                self._backends[name] = _BACKENDS[name](run, step, settings)
            except Exception as error:  # no package, no key, no network, a full disk: each has many names for it
                if not step:
                    self.close(failed=True)
                    raise SettingsError(f"tracker {name} cannot start ({_reason(error)}): {_ADVICE[name]}") from None
                _warn_failed(name, error)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one epoch's numbers; ``metrics`` has ``epoch`` and ``step``."""
        self.history.append(metrics)
        if not self._main:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
            sync(self.path)  # before the checkpoint that goes on from here
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror}; the checkpoints are untouched: free space, then continue "
                f"with --resume"
            ) from error
        values = {name.replace("_", "/", 1): value for name, value in metrics.items() if name != "step"}
        self._call(lambda backend: backend.log(metrics["step"], values))

    def finish(self, report: Report, pictures: Sequence[Path]) -> None:
        """Pass the report of the test split and the run's pictures, PNG files, on; after the last epoch."""
        values = {f"test/{name}": getattr(report, name) for name in ("loss", "top1", "top5", "macro_f1")}
        named = {f"pictures/{path.stem}": path for path in pictures}
        step = self.history[-1]["step"] if self.history else 0
        self._call(lambda backend: backend.finish(step, values, named))

    def close(self, failed: bool = False) -> None:
        """Finish the backends' files, of a run that ``failed`` where it stops before its end; once is enough."""
        self._call(lambda backend: backend.close(failed))
        self._backends.clear()

    def _call(self, method: "Callable[[_Backend], None]") -> None:
        for name, backend in list(self._backends.items()):
            try:
                method(backend)
            except Exception as error:  # a full disk, no network, a broken service
                del self._backends[name]
                _warn_failed(name, error)


def _warn_failed(name: str, error: Exception) -> None:
    say(f"tracker {name} failed ({_reason(error)}); training goes on without it")


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# A backend has `log` for the numbers of an epoch, `finish` for those and the PNG files of the whole run, each after so
# many optimizer steps, and `close`, which writes what is left, also of a run that stops before its end (``failed``).
class _TensorBoard:
    def __init__(self, run: Path, step: int, settings: RunSettings) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from torch.utils.tensorboard import SummaryWriter

        # Numbers from after the step are hidden: those epochs are computed again.
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("settings", f"```\n{settings.model_dump_json(indent=2)}\n```", step)
        # The writer's own add_hparams would make a second run, beside the one that has the curves.
        plain = bool | int | float | str
        values = {name: value if isinstance(value, plain) else str(value) for name, value in flatten(settings).items()}
        self._writer.file_writer.add_summary(hparams_pb(values, trial_id=run.name))  # type: ignore[attr-defined]
        self._writer.flush()

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, step: int, values: dict[str, float], pictures: dict[str, Path]) -> None:
        import numpy as np
        from PIL import Image

        for name, path in pictures.items():
            with Image.open(path, formats=["PNG"]) as image:
                self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.log(step, values)

    def close(self, _: bool) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, run: Path, _: int, settings: RunSettings) -> None:
        import wandb

        # The identity stays in the folder, so that a resumed run goes on in the same place.
        identity = run / "wandb_id"
        if not identity.exists():
            write_text(identity, secrets.token_hex(4))
        self._run = wandb.init(
            project="convnext",
            name=run.name,
            id=identity.read_text(encoding="utf-8"),
            resume="allow",
            dir=run,
            config=flatten(settings),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def finish(self, _: int, values: dict[str, float], pictures: dict[str, Path]) -> None:
        import wandb

        # Without a step, which would be dropped where the run was finished before and is only tested again.
        self._run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})
        self._run.summary.update(values)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


_Backend: TypeAlias = _TensorBoard | _WandB
_BACKENDS: dict[str, type[_Backend]] = {"tensorboard": _TensorBoard, "wandb": _WandB}
_ADVICE = {
    "tensorboard": "see that the run's folder can be written, or leave it out of --trackers",
    "wandb": "pip install 'convnext[wandb]' where it is missing, log in with `wandb login`, or set WANDB_MODE=offline",
}

"""The training loop.

A run is a stream of optimizer steps, numbered from 0 over all epochs. Images, augmentation, learning rate and dropped
paths of a step depend on the settings and its number alone, so a run can stop after any step and go on later. Several
processes each take some images of every batch, and agree once a step on its numbers and on whether to stop.
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convnext import distributed
from convnext.config import RunSettings
from convnext.data.batch_transforms import Normalize, batch_mix
from convnext.data.loading.loader import Batch, raise_if_strict, seed_for, training_images, training_sampler
from convnext.data.loading.resident import ResidentImages, training_batches
from convnext.data.splits import Splits
from convnext.errors import CheckpointError, UserError, reason
from convnext.evaluation.evaluator import PICTURES, SplitLogits, compute_logits, prepare_model, write_report
from convnext.evaluation.images import check_classes
from convnext.evaluation.metrics import Report, compute_report
from convnext.models import registry
from convnext.output import say
from convnext.plots.curves import curves
from convnext.runs import checkpoint
from convnext.runs.checkpoint import TrainingState
from convnext.runs.folder import as_begun, changed_since, write_settings
from convnext.storage.files import sweep
from convnext.training import faults, progress
from convnext.training.interruption import InterruptedRunError, StopSignals, stopping_together
from convnext.training.loss import class_weights
from convnext.training.memory import images_to_evaluate, settle_augment_on, settle_gradient_accumulation
from convnext.training.optimizers import WeightAverage, configure, load_optimizers, make_optimizers, optimizer_tensors
from convnext.training.proxy import Proxy, load_proxy, own_copy
from convnext.training.start import start
from convnext.training.step import Stepper, Taken, are_finite, compiled, decides_on_device
from convnext.training.tracking import Tracker
from convnext.weights.loading import load_state
from convnext.weights.model_info import ModelInfo, read_json

DRAWN_EVERY = 20.0  # seconds, at least, from one drawing of the curves to the next: it takes a fifth of one


class Trainer:
    """One run: its model, optimizers and data, and the step at which it stands.

    Args:
        settings: resolved settings.
        splits: the data.
        accelerator: the processes, the device and the precision.
        model: a module of one's own, from images ``(N, C, H, W)`` to logits ``(N, K)``, which is then trained itself.

    Attributes:
        folder: the run's, once `open` was given it.
        resident: the training images on the device, where `open` was to put them there.
        proxy: what chooses among the images of a batch, once `choose_by` was given its folder.
        unreadable: the images that could not be read, each once.

    Raises:
        UserError: settings that the data or the machine do not allow.
    """

    def __init__(
        self, settings: RunSettings, splits: Splits, accelerator: Accelerator, model: nn.Module | None = None
    ) -> None:
        self.settings, self.splits, self.accelerator = settings, splits, accelerator
        self.device, self.main = accelerator.device, accelerator.is_main_process
        self.sampler = training_sampler(settings, splits.train, accelerator.process_index, accelerator.num_processes)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.total_steps = self.steps_per_epoch * settings.epochs
        self.info = ModelInfo.of(settings, splits)
        self.images = training_images(settings, splits.train, splits.mean)
        self.resident: ResidentImages | None = None
        self.proxy: Proxy | None = None
        self.normalize = Normalize(splits.mean, splits.std).to(self.device)
        self.mix = batch_mix(settings.augment, len(splits.classes))
        self.mixed_steps = round(settings.augment.mix_until * self.total_steps)

        torch.manual_seed(seed_for(settings.seed))
        self.memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        raw_model = registry.build(settings.model, len(splits.classes)) if model is None else model
        self.raw_model = raw_model.to(self.device).to(memory_format=self.memory_format)
        prepare_model(self.raw_model, self.info)
        self.average = WeightAverage(self.raw_model, settings.ema_decay) if settings.ema_decay else None
        configure(self.raw_model, settings)
        self.optimizers = make_optimizers(self.raw_model, settings.optimizer)
        self.model, *_ = accelerator.prepare(self.raw_model, *self.optimizers)
        if settings.compile:
            self.model = compiled(self.model, settings, self.device, accelerator.num_processes)
        self.stepper = Stepper(
            accelerator,
            self.model,
            self.raw_model,
            self.optimizers,
            self.average,
            class_weights(settings, splits, self.device),
            decides_on_device(self.device),
        )
        self._under_way = deque[Taken]()  # steps whose numbers have not been read
        self.state = TrainingState(settings=settings, versions=progress.versions(), fingerprints=splits.fingerprints())
        self.unreadable: dict[str, None] = {}  # an ordered set: each image is named once
        self._fault = ""  # where the first of the steps that are being skipped went wrong
        self._clock = self._last_save = self._last_drawing = time.perf_counter()
        self.folder = settings.output
        self.display = progress.Display(self.total_steps, 0, shown=False)

    def open(self, folder: Path, check: Callable[[], None] = lambda: None) -> None:
        """Take ``folder``, locked by the main process, as the run's, which ``check`` stops where that is gone, and go
        on from its newest whole checkpoint, if any; CheckpointError where those are damaged or of other classes."""
        self.folder, self._check_folder = folder, check
        newest = distributed.from_main(self.accelerator, lambda: checkpoint.newest_complete(folder))
        if newest is not None:
            self._restore(newest)
            if self.main:
                checkpoint.point_links(newest, self.state)
        else:
            start(self.raw_model, self.settings, self.splits, self.accelerator)
        self.settings = settle_augment_on(as_begun(folder, self.settings), self.splits, self.accelerator)
        if self.settings.data.augment_on == "device" and self.state.step < self.total_steps:
            self.resident = ResidentImages(self.settings, self.splits, self.device, self.state.step, self.main)
        self.settings = settle_gradient_accumulation(self.settings, self.raw_model, self.accelerator)
        self.state.settings = self.settings
        self.choose_by(distributed.from_main(self.accelerator, lambda: own_copy(folder, self.settings)))
        if self.main:
            sweep(folder)
            if changed := changed_since(folder, self.settings):
                say(f"changed since the run was last started: {'; '.join(changed)}")
            write_settings(folder, self.settings)
        # An epoch whose validation was stopped is written down once that is done.
        self.tracker = Tracker(folder, self.state.step - self.state.unvalidated, self.settings, self.main)

    def choose_by(self, folder: Path | None) -> None:
        """Train on the images that the proxy in ``folder`` chooses, if any; errors as of `load_proxy`."""
        with distributed.reported_once(self.accelerator):
            self.proxy = None if folder is None else load_proxy(folder, self.settings, self.info, self.accelerator)

    def fit(self, signals: StopSignals) -> None:
        """Train from the step at which the run stands to the end, or until patience is over; ``signals`` are asked
        after every step whether to save or stop, and in a validation between batches.

        Raises:
            InterruptedRunError: a signal asked to stop.
            UserError: an unreadable image under ``data.strict``, numbers that stay infinite, or a full disk.
        """
        self.sampler.start_step = self.state.step
        with ExitStack() as stack:
            self.display = progress.Display(self.total_steps, self.state.step, self.main)
            stack.enter_context(self.display)
            stack.callback(self.catch_up)  # whatever ends it, what was skipped is said
            for line in progress.announcement(self.settings, self.splits, self.raw_model, self.device, self.folder):
                self.display.line(line)
            if self.state.step:
                self.display.line(f"resumed after step {self.state.step} of {self.total_steps}")
            self.model.train()
            self._clock = self._last_save = time.perf_counter()
            if self.state.unvalidated:
                self._end_epoch(False, signals)
            if self._stops_early():
                return
            images, workers = self.resident or self.images, self.settings.data.workers
            stream = training_batches(images, self.sampler, workers, self.device)
            for batch in stack.enter_context(stream):
                self._check_folder()
                stop, save = self.step(batch, signals)
                if self.state.step % self.steps_per_epoch == 0:
                    self._end_epoch(save or stop, signals)
                elif save or stop or self._is_due():
                    self._tick()
                    self._save()
                if stop:
                    self.accelerator.wait_for_everyone()  # until all is saved: launchers kill what outlives the others
                    signals.stop()
                if self._stops_early():
                    break

    def finish(self, signals: StopSignals) -> Report:
        """Evaluate the last weights on the test split, or the best where there is `patience`, and draw the pictures;
        stops as `predict` does."""
        used = distributed.from_main(self.accelerator, lambda: checkpoint.find(self.folder))
        if used.name == "best":
            load_state(self._weights_to_use, checkpoint.read_tensors(used / "model.safetensors"), used)
        predictions = self.predict("test", signals)
        if not self.main:
            return self._report(predictions)
        report = write_report(self.folder, self.splits.test_name, predictions, self.splits.test, self.info)
        self.draw_curves(report)
        names = ("curves", *(f"{self.splits.test_name}_{name}" for name in PICTURES))
        self.tracker.finish(report, [self.folder / f"{name}.png" for name in names])
        return report

    def draw_curves(self, report: Report | None = None) -> None:
        """Bring ``curves.png`` up to date, with the numbers on the test split where there are any."""
        self._last_drawing = time.perf_counter()
        if not self.main or not self.tracker.history:
            return
        path, state = self.folder / "curves.png", self.state
        step = state.best_step if self.settings.patience is not None and state.best_step else state.step
        test = {"epoch": step / self.steps_per_epoch, "loss": report.loss, "top1": report.top1} if report else None
        try:
            curves(self.tracker.history, path, self.settings.name, state.best_step, test, self.splits.test_name)
        except (OSError, UserError) as error:  # a full disk, which a run may outlive
            self.display.line(f"cannot write {path}: {reason(error)}")

    def step(self, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        """One optimizer step: the mean gradient over the images of all processes, in micro-batches. Returns whether any
        process was asked to stop, and whether one was asked to save."""
        self._note_unreadable(batch.unreadable)
        step, settings, count = self.state.step, self.settings, len(batch.targets)
        count = min(count, self.proxy.most) if self.proxy else count
        (total,) = distributed.agreed(self.accelerator, count)
        self.state.step += 1
        if total:
            self.stepper.seed(settings.seed, step)
            lr = settings.learning_rate(step, self.steps_per_epoch)
            taken = self.stepper.take(settings, step + 1, lr, self.to_device(batch), count, total)
            self._under_way.append(taken)
            self.catch_up(but=1 if self.stepper.on_device else 0)
        if save_asked := signals.save:
            signals.save = False  # now, so that a signal from now on counts in the next step
        stop, save = distributed.agreed(self.accelerator, signals.received is not None, save_asked)
        return bool(stop), bool(save)

    def catch_up(self, but: int = 0) -> None:
        """Take account of the numbers of all steps ``but`` so many, waiting for the device where it is at them;
        TrainingError where too many in a row were not finite."""
        while len(self._under_way) > but:
            taken = self._under_way.popleft()
            numbers = taken.numbers.read()
            if are_finite(numbers):
                self.state.loss_sum += numbers[0]
                self.state.correct += numbers[1]
                self.state.images += taken.count
                self.state.skipped, self._fault = 0, ""
            else:
                self._note_skipped(taken, dict(zip(taken.parameters, numbers[3:], strict=True)))
            self.display.update(self.state, self.steps_per_epoch, self.settings.epochs, taken.count, taken.lr)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Normalized, mixed images, their targets, and the labels before mixing."""
        if not len(batch.targets):
            # A process none of whose images could be read has to take part all the same, with nothing to say.
            size = self.settings.data.last_size
            images = torch.zeros(1, self.splits.channels, size, size, device=self.device)
            nothing = torch.zeros(1, dtype=torch.int64, device=self.device)
            return images, nothing, nothing
        pixels = batch.images.to(self.device, non_blocking=True, memory_format=self.memory_format)
        images, labels = self.normalize(pixels), batch.targets.to(self.device, non_blocking=True)
        mixing = list(batch.mixing)
        if self.proxy is not None:
            images, labels, *mixing = self.proxy.choose(images, labels, *mixing)
        if self.mix is None or self.state.step > self.mixed_steps:  # that step is under way, and counted already
            return images, labels, labels
        return *self.mix(images, labels, *mixing), labels

    def _note_skipped(self, taken: Taken, gradient: dict[str, float]) -> None:
        """Say where a step that was left out went wrong; too many in a row end the run."""
        self._fault = self._fault or faults.origin(self.raw_model, taken.images, gradient)
        self.state.skipped += 1
        self.state.skipped_in_all += 1
        self.display.line(f"skipped step {taken.step}: numbers that are not finite in {self._fault}")
        if self.state.skipped > self.settings.max_skipped_steps:
            self._under_way.clear()
            raise faults.not_finite(taken.step, self._fault, self.settings, self.folder)

    def _end_epoch(self, save: bool, signals: StopSignals) -> None:
        """Validate, log, and save where it is due.

        A signal that stops the validation raises InterruptedRunError; it is done first when the run goes on.
        """
        self._tick()
        state, settings = self.state, self.settings
        epoch = state.step // self.steps_per_epoch
        metrics = {"epoch": epoch, "step": state.step} | state.means()
        self._note_unreadable(distributed.gather_lines(self.accelerator, list(self.unreadable)))
        if self.splits.val is not None and (epoch % settings.eval_every == 0 or epoch == settings.epochs):
            try:
                report = self._report(self.predict("val", signals))
            except InterruptedRunError:
                state.unvalidated = True
                self._save()
                self.accelerator.wait_for_everyone()
                raise
            values = {name: getattr(report, name) for name in ("loss", "top1", "top5", "macro_f1")}
            metrics |= {f"val_{name}": value for name, value in values.items()}
            state.note_validation(values)
        metrics["lr"] = settings.learning_rate(state.step - 1, self.steps_per_epoch)
        metrics["images_per_second"] = state.images / max(state.seconds, 1e-9)
        metrics["seconds"] = state.seconds
        state.end_epoch(metrics)
        self.tracker.log(metrics)
        due = epoch == settings.epochs or state.best_step == state.step or state.is_over(self.steps_per_epoch)
        due = due or (epoch % settings.save_every_epochs == 0 and not state.skipped)
        if save or due or self._is_due():
            self._save()
        self.display.line(progress.epoch_line(metrics, settings.epochs))
        if time.perf_counter() - self._last_drawing >= DRAWN_EVERY and epoch < settings.epochs:
            self.draw_curves()
        self.display.resume_clock()
        self._clock = time.perf_counter()

    def _stops_early(self) -> bool:
        """Whether the main process, and hence all, has run out of patience, which is said."""
        if self.settings.patience is None or self.state.step % self.steps_per_epoch:
            return False
        over = distributed.from_main(self.accelerator, lambda: self.state.is_over(self.steps_per_epoch))
        if over and self.state.step < self.total_steps:
            self.display.line(progress.early_stop_line(self.state, self.steps_per_epoch, self.settings))
        return over

    def _report(self, predictions: SplitLogits) -> Report:
        return compute_report(predictions.logits, predictions.targets, self.info.classes, len(predictions.unreadable))

    def predict(self, split: str, signals: StopSignals) -> SplitLogits:
        """The logits of the weights to use for every image of ``"val"`` or ``"test"``; InterruptedRunError where
        ``signals``, asked between batches, say to stop."""
        source = self.splits.val if split == "val" else self.splits.test
        assert source is not None
        count = images_to_evaluate(self.settings, self.accelerator.num_processes)
        predictions = compute_logits(
            self._weights_to_use,
            source,
            self.info,
            device=self.device,
            batch_size=count,
            workers=self.settings.data.workers,
            strict=self.settings.data.strict,
            autocast=self.accelerator.autocast,
            between_batches=stopping_together(self.accelerator, signals, len(source), count),
            accelerator=self.accelerator,
            title={"val": "validating", "test": "testing"}[split] if self.main else None,
        )
        self._check_folder()  # what follows is written into it
        self.model.train()
        self._note_unreadable(predictions.unreadable)
        return predictions

    def _note_unreadable(self, lines: list[str]) -> None:
        raise_if_strict(lines, self.settings.data.strict)
        for line in lines:
            if line not in self.unreadable:
                self.unreadable[line] = None
                self.display.line(f"left out: {line}")

    def _tick(self) -> None:
        """Add the time of the steps since the last call to that of the epoch."""
        self.catch_up()
        now = time.perf_counter()
        self.state.seconds += now - self._clock
        self._clock = now

    def _is_due(self) -> bool:
        """Whether a checkpoint is due in an epoch's middle; never while steps are skipped: the weights may be bad."""
        steps, minutes = self.settings.save_every_steps, self.settings.save_every_minutes
        late = minutes is not None and time.perf_counter() - self._last_save >= 60 * minutes
        if not late and (steps is None or self.state.step % steps):
            return False
        self.catch_up()
        return not self.state.skipped

    def _save(self) -> None:
        """Save, after a `_tick`; the time since then, as that of a validation, counts for no epoch."""
        if self.main:
            if self.accelerator.scaler is not None:
                self.state.scaler = self.accelerator.scaler.state_dict()
            training = optimizer_tensors(self.raw_model, self.optimizers)
            if self.average is not None:
                training |= {f"model.{name}": tensor for name, tensor in self.raw_model.state_dict().items()}
                training["average.updates"] = self.average.n_averaged
            weights = self._weights_to_use.state_dict()
            checkpoint.save(self.folder / "checkpoints", weights, self.info, training, self.state)
        self._last_save = self._clock = time.perf_counter()

    @property
    def _weights_to_use(self) -> nn.Module:
        return self.raw_model if self.average is None else self.average.module

    def _restore(self, folder: Path) -> None:
        check_classes(read_json(folder / "model.json", ModelInfo), self.splits.classes, folder)
        state = checkpoint.read_state(folder)
        checkpoint.check_same_images(state, self.state.fingerprints, self.folder)
        state.format, state.versions = checkpoint.FORMAT, self.state.versions
        self.state = state
        weights, rest = folder / "model.safetensors", folder / "training.safetensors"
        training = checkpoint.read_tensors(rest)
        load_optimizers(self.raw_model, self.optimizers, training)
        load_state(self._weights_to_use, checkpoint.read_tensors(weights), weights)
        if self.average is not None:
            if "average.updates" not in training:
                raise CheckpointError(f"{rest} is not the one of this run: no average.updates")
            self.average.n_averaged.copy_(training["average.updates"])
            own = {name.removeprefix("model."): x for name, x in training.items() if name.startswith("model.")}
            load_state(self.raw_model, own, folder)
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))

"""The training loop.

A run is a stream of optimizer steps, numbered from 0 over all epochs. Images, augmentation, learning rate and dropped
paths of a step depend on the settings and its number alone, so a run can stop after any step and go on later.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convnext.config import RunSettings
from convnext.data.catalog import Splits, load_splits
from convnext.data.loading import AugmentedImages, Batch, TrainSampler, batches, raise_if_strict, seed_for
from convnext.data.transforms import Normalize, TrainTransform, batch_mix, sizes_by_epoch
from convnext.errors import CheckpointError, DataError, SettingsError, UserError
from convnext.evaluation import plots
from convnext.evaluation.evaluator import Predictions, check_classes, predict_source, write_report
from convnext.evaluation.metrics import Report, compute_report
from convnext.files import locked, write_text
from convnext.models import registry
from convnext.models.pretrained import released, start_from
from convnext.training import checkpoint, snapshot
from convnext.training.checkpoint import ModelInfo, TrainingState
from convnext.training.devices import make_accelerator
from convnext.training.interruption import StopSignals
from convnext.training.optimization import average_weights, configure, learning_rate, make_optimizers, set_learning_rate
from convnext.training.progress import Display
from convnext.training.run import Run, folder_to_resume, new_folder, write_settings
from convnext.training.tracking import Tracker


def train(settings: RunSettings, *, resume: bool = False) -> Run:
    """Train, evaluate on the test split, and keep everything in the run's folder.

    Args:
        settings: what to do; see `convnext.recipe`.
        resume: go on with the newest run of this name where there is one.

    Returns:
        The finished run.

    Raises:
        UserError: settings, data or an output folder that cannot be used; nothing is written then.
        InterruptedRunError: SIGTERM or SIGINT came; the run can be resumed.
    """
    splits = load_splits(settings.data)
    settings, splits = _resolve(settings, splits)
    found = folder_to_resume(settings) if resume else None
    if resume and found is None:
        print(f"nothing to resume: {settings.output} has no run {settings.name!r}; starting it", file=sys.stderr)
    trainer = Trainer(settings, splits)
    folder = found or new_folder(settings.output, settings.name)
    try:
        with locked(folder), StopSignals(folder) as signals:
            write_settings(folder, settings)
            trainer.open(folder)
            trainer.fit(signals)
            return trainer.finish(signals)
    except Exception:
        if found is None and not (folder / "checkpoints").exists():
            shutil.rmtree(folder)  # nothing in it but the settings that led to the error
        raise


def _resolve(settings: RunSettings, splits: Splits) -> tuple[RunSettings, Splits]:
    """The settings with every open choice made by the data and the model's variant, and the splits that fit them."""
    model = registry.resolve(settings.model, splits.channels)
    if model.in_channels != splits.channels:
        raise SettingsError(
            f"model.in_channels is {model.in_channels}, but the images of data set {settings.data.name!r} have "
            f"{splits.channels}: leave model.in_channels out"
        )
    registry.check_image_size(model, settings.data.image_size)
    # Released weights expect the normalisation that they were trained with.
    if (weights := released(model)) is not None and splits.channels == 3:
        splits = replace(splits, mean=settings.data.mean or weights.mean, std=settings.data.std or weights.std)
    root = settings.data.root and settings.data.root.absolute()
    data = settings.data.replace(root=root, mean=splits.mean, std=splits.std)
    resolved: RunSettings = settings.replace(model=model, data=data)
    return resolved, splits


class Trainer:
    """One run: its model, optimizer and data, and the step at which it stands.

    Args:
        settings: resolved settings.
        splits: the data.

    Raises:
        UserError: settings that the data or the machine do not allow.
    """

    def __init__(self, settings: RunSettings, splits: Splits) -> None:
        self.settings, self.splits = settings, splits
        self.accelerator = make_accelerator(settings)
        self.device = self.accelerator.device
        self.sampler = TrainSampler(
            len(splits.train),
            settings.batch_size,
            settings.epochs,
            settings.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            repeats=settings.augment.repeats,
            groups=splits.train.groups,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.total_steps = self.steps_per_epoch * settings.epochs
        data = settings.data
        self.info = ModelInfo(
            model=settings.model,
            classes=splits.classes,
            mean=splits.mean,
            std=splits.std,
            image_size=data.image_size,
            center_crop=data.center_crop,
        )
        sizes = sizes_by_epoch(data.image_size, data.start_size, data.full_size_from, settings.epochs)
        by_size = {size: TrainTransform(settings.augment, size, splits.mean) for size in set(sizes)}
        self.images = AugmentedImages(splits.train, [by_size[size] for size in sizes], settings.seed)
        self.normalize = Normalize(splits.mean, splits.std).to(self.device)
        self.mix = batch_mix(settings.augment, len(splits.classes))

        torch.manual_seed(seed_for(settings.seed))
        self.memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        raw_model = registry.build(settings.model, len(splits.classes))
        self.raw_model = raw_model.to(self.device).to(memory_format=self.memory_format)
        self.average = average_weights(self.raw_model, settings.ema_decay) if settings.ema_decay else None
        configure(self.raw_model, settings)
        self.optimizers = make_optimizers(self.raw_model, settings.optimizer)
        self.model, *self._steppers = self.accelerator.prepare(self.raw_model, *self.optimizers)
        if settings.compile:
            self.model = torch.compile(self.model)
        self.state = TrainingState(settings=settings, versions=_versions())
        self.unreadable: dict[str, None] = {}  # an ordered set: each image is named once
        self._pending: list[tuple[Tensor, int]] = []
        self._last_update = 0.0

    def open(self, folder: Path) -> None:
        """Take ``folder`` as the run's, and go on from its last checkpoint where it has one.

        Raises:
            CheckpointError: the checkpoint is damaged or of other classes.
        """
        self.folder = folder
        if (folder / "checkpoints" / "last").is_dir():
            self._restore(checkpoint.find(folder))
            self._check_same_images(folder)
        elif self.settings.model.weights is not None:
            note = start_from(self.raw_model, self.settings.model, len(self.splits.classes))
            print(note or f"started from {self.settings.model.weights}", file=sys.stderr)
        write_text(folder / "splits.json", json.dumps(self.splits.fingerprints(), indent=2))
        self.tracker = Tracker(folder, self.state.step, self.settings)

    def _check_same_images(self, folder: Path) -> None:
        known = checkpoint.read_fingerprints(folder)
        changed = [name for name, digest in self.splits.fingerprints().items() if known.get(name) != digest]
        if changed:
            raise DataError(
                f"the {' and '.join(changed)} images have changed since {folder} was started, so it cannot go on: "
                f"restore them, or leave --resume out to start a new run"
            )

    def fit(self, signals: StopSignals) -> None:
        """Train from the step at which the run stands to the end.

        Args:
            signals: asked after every step whether to stop.

        Raises:
            InterruptedRunError: a signal asked to stop.
            UserError: an unreadable image under ``data.strict``, a loss that is not finite, or a full disk.
        """
        self.sampler.start_step = self.state.step
        with ExitStack() as stack:
            stack.callback(self.tracker.close)
            self.display = Display(self.total_steps, self.state.step, self.accelerator.is_main_process)
            stack.enter_context(self.display)
            self._announce()
            self.model.train()
            started = time.perf_counter()
            stream = stack.enter_context(batches(self.images, self.sampler, self.settings.data.workers))
            for batch in stream:
                self._train_step(batch)
                self.state.step += 1
                if self.state.step % self.steps_per_epoch == 0:
                    self.state.seconds += time.perf_counter() - started
                    self._end_epoch()
                    started = time.perf_counter()
                elif signals.received is not None:
                    self._flush()
                    self.state.seconds += time.perf_counter() - started
                    self._save()
                signals.check()

    def finish(self, signals: StopSignals) -> Run:
        """Evaluate the last weights on the test split, draw the pictures, and return the run.

        Args:
            signals: asked between batches whether to stop.
        """
        plots.curves(self.tracker.history, self.folder / "curves.png", self.settings.name)
        predictions = self._predict("test", signals.check)
        report = write_report(self.folder, self.splits.test_name, predictions, self.splits.test, self.info)
        return Run(self.folder, self.settings, report, self.splits.test_name, list(self.unreadable))

    def _train_step(self, batch: Batch) -> None:
        """One optimizer step on ``batch``: the mean gradient over all its images, in ``accumulate`` parts."""
        self._note_unreadable(batch.unreadable)
        if not len(batch.targets):
            return
        step = self.state.step
        torch.manual_seed(seed_for(self.settings.seed, step, self.accelerator.process_index, 0))
        images = self.normalize(batch.images.to(self.device, non_blocking=True, memory_format=self.memory_format))
        labels = batch.targets.to(self.device, non_blocking=True)
        images, targets = self.mix(images, labels) if self.mix else (images, labels)
        lr = learning_rate(step, self.settings, self.steps_per_epoch)
        set_learning_rate(self.optimizers, lr)

        sums = torch.zeros(2, device=self.device)
        parts = list(zip(*(x.chunk(self.settings.accumulate) for x in (images, targets, labels)), strict=True))
        for number, (part_images, part_targets, part_labels) in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    logits = self.model(part_images).float()
                loss = F.cross_entropy(logits, part_targets, label_smoothing=self.settings.label_smoothing)
                self.accelerator.backward(loss * (len(part_labels) / len(labels)))
            correct = (logits.detach().argmax(1) == part_labels).sum()
            sums += torch.stack([loss.detach() * len(part_labels), correct])
        if self.settings.optimizer.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.clip_norm)
        for optimizer in self._steppers:
            optimizer.step()
            optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.raw_model)

        self._pending.append((sums, len(labels)))
        if time.perf_counter() - self._last_update > 0.5:  # seldom: reading the loss waits for the device
            self._flush(lr)

    def _flush(self, lr: float | None = None) -> None:
        """Read the pending steps' numbers from the device, and show them.

        Sums are taken step by step in double precision, so they do not depend on when this is called.
        """
        if not self._pending:
            return
        rows = torch.stack([sums for sums, _ in self._pending]).cpu().tolist()
        images = sum(count for _, count in self._pending)
        self._pending.clear()
        for loss_sum, correct in rows:
            self.state.loss_sum += loss_sum
            self.state.correct += correct
        self.state.images += images
        if not math.isfinite(self.state.loss_sum):
            raise UserError(
                f"the loss is no longer a finite number near step {self.state.step} of {self.folder}: lower "
                f"optimizer.lr (now {self.settings.peak_lr:.3g} at its peak), lengthen the warm-up, or set "
                f"optimizer.clip_norm; checkpoints, where there are some, are from before"
            )
        if lr is not None:
            state, epoch = self.state, self.state.step // self.steps_per_epoch + 1
            description = f"epoch {epoch}/{self.settings.epochs}"
            accuracy = state.correct / state.images
            self.display.update(
                state.step,
                description,
                images * self.accelerator.num_processes,
                state.loss_sum / state.images,
                accuracy,
                lr,
            )
        self._last_update = time.perf_counter()

    def _end_epoch(self) -> None:
        """Validate, log, and save."""
        self._flush()
        state, settings = self.state, self.settings
        epoch = state.step // self.steps_per_epoch
        metrics: dict[str, Any] = {"epoch": epoch, "step": state.step}
        if state.images:
            metrics["train_loss"] = state.loss_sum / state.images
            metrics["train_top1"] = state.correct / state.images
        if self.splits.val is not None and (epoch % settings.eval_every == 0 or epoch == settings.epochs):
            report = self._validate()
            metrics |= {f"val_{name}": getattr(report, name) for name in ("loss", "top1", "top5", "macro_f1")}
            if state.best_top1 is None or report.top1 > state.best_top1:
                state.best_top1, state.best_step = report.top1, state.step
        metrics["lr"] = learning_rate(state.step - 1, settings, self.steps_per_epoch)
        metrics["images_per_second"] = state.images / max(state.seconds, 1e-9)
        metrics["seconds"] = state.seconds
        state.loss_sum = state.correct = state.seconds = 0.0
        state.images = 0
        self.tracker.log(metrics)
        self._save()
        self.display.line(_epoch_line(metrics, settings.epochs))
        self.display.resume_clock()

    def _validate(self) -> Report:
        predictions = self._predict("val", lambda: None)  # stops are for after the epoch's checkpoint
        return compute_report(predictions.logits, predictions.targets, self.info.classes, len(predictions.unreadable))

    def _predict(self, split: str, between_batches: Callable[[], None]) -> Predictions:
        source = self.splits.val if split == "val" else self.splits.test
        assert source is not None
        predictions = predict_source(
            self.average.module if self.average is not None else self.raw_model,
            source,
            self.info,
            device=self.device,
            workers=self.settings.data.workers,
            strict=self.settings.data.strict,
            autocast=self.accelerator.autocast,
            between_batches=between_batches,
        )
        self.model.train()
        self._note_unreadable(predictions.unreadable)
        return predictions

    def _note_unreadable(self, lines: list[str]) -> None:
        raise_if_strict(lines, self.settings.data.strict)
        for line in lines:
            if line not in self.unreadable:
                self.unreadable[line] = None
                self.display.line(f"left out: {line}")

    def _announce(self) -> None:
        settings, splits = self.settings, self.splits
        parameters = sum(parameter.numel() for parameter in self.raw_model.parameters())
        held_out = f"{len(splits.val):,} validation, " if splits.val is not None else "no validation, "
        self.display.line(
            f"{registry.describe(settings.model)}, {parameters:,} parameters, on {self.device} in "
            f"{self.accelerator.mixed_precision.replace('no', 'fp32')}; {len(splits.train):,} training, {held_out}"
            f"{len(splits.test):,} test images of {len(splits.classes)} classes at {settings.data.image_size} px"
        )
        self.display.line(
            f"peak learning rate {settings.peak_lr:.3g} = {settings.optimizer.lr:g} x batch {settings.batch_size} / "
            f"reference {settings.optimizer.reference_batch_size}; {settings.epochs} epochs of "
            f"{self.steps_per_epoch} steps, {settings.warmup_epochs:g} of warm-up; run folder {self.folder}"
        )
        if self.state.step:
            self.display.line(f"resumed after step {self.state.step} of {self.total_steps}")

    def _save(self) -> None:
        weights, training = snapshot.take(self.raw_model, self.average, self.optimizers)
        checkpoint.save(self.folder / "checkpoints", weights, self.info, training, self.state)

    def _restore(self, folder: Path) -> None:
        info: ModelInfo = checkpoint.read_json(folder / "model.json", ModelInfo)
        check_classes(info, self.splits, folder)
        self.state = checkpoint.read_json(folder / "training.json", TrainingState)
        if self.state.format != checkpoint.FORMAT:
            raise CheckpointError(
                f"{folder} has format {self.state.format}, and this version reads format {checkpoint.FORMAT}"
            )
        snapshot.restore(folder, self.raw_model, self.average, self.optimizers)


def _epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {metrics['epoch']}/{epochs}"]
    for name in ("train", "val"):
        if f"{name}_loss" in metrics:
            accuracy = 100 * metrics[f"{name}_top1"]
            parts.append(f"{name} loss {metrics[f'{name}_loss']:.4f}, top-1 {accuracy:.2f} %")
    parts.append(f"lr {metrics['lr']:.2e}, {metrics['images_per_second']:,.0f} images/s")
    return "; ".join(parts)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("convnext", "torch", "torchvision", "accelerate")}

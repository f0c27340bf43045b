"""Whether an export may leave: its logits or its accuracy are the source's, and int8 is computed in int8.

Where int8 costs too much accuracy on the test split, layers are put back to float. Which, and how many, is chosen by
other images, of the validation split or, where there is none, of the training split, so that the test's number is one
of images that chose nothing but when to stop.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convnext.errors import CheckpointError, DataError
from convnext.inference.backends import Backend
from convnext.inference.backends.eager import EagerBackend
from convnext.inference.export import checks
from convnext.inference.export.evidence import Evidence
from convnext.inference.export.formats import Source
from convnext.inference.export.layers import ranked_layers
from convnext.output import counted, say

_COMPARED = 72  # images that the logits of every export are compared on
_CHOOSING = 1000  # images that choose which layers of int8 stay in float
_TOLERANCE = 1e-3  # of a logit of fp32
_ROUNDED = 0.05  # of the largest logit, where pre-processing is inside


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        path: the file; OpenVINO's has a ``.bin`` beside it.
        comparison: with its source.
        compared_on: what the images of the comparison are.
        source_top1: the source's accuracy on the whole test split, between 0 and 1; None for fp32, whose logits are
            the same, and where there are no labels.
        top1: the file's.
        unmeasured: why there are no labels; empty where there are.
        products: of int8, how many convolutions and products of matrices are computed in int8, and how many there are.
        float_layers: those that int8 left in float to keep the accuracy.
    """

    path: Path
    comparison: checks.Comparison
    compared_on: str
    source_top1: float | None = None
    top1: float | None = None
    unmeasured: str = ""
    products: tuple[int, int] | None = None
    float_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examination:
    """What an export is held to.

    Attributes:
        path: of the file when it is accepted.
        unfinished: of the file until then.
        source: the model.
        evidence: images.
        max_drop: points of top-1 on the test split that another precision than fp32 may cost; infinity to accept any.
        write: writes the file anew, with these layers in float, and opens it.
    """

    path: Path
    unfinished: Path
    source: Source
    evidence: Evidence
    max_drop: float
    write: Callable[[tuple[str, ...]], Backend]

    def export(self) -> Export:
        """Write the file, of int8 again with layers in float until it passes.

        Raises:
            CheckpointError: its logits or its accuracy are not the source's.
            UserError: int8 without one operation in int8.
        """
        eager = EagerBackend(self.source.model, self.source.info.model, "cpu")
        first = self.write(())
        if self.source.info.precision == "fp32":
            return self._same_logits(eager, first)
        if self.evidence.splits is None:
            return self._described(eager, first)
        test, name = self.evidence.splits.test, self.evidence.splits.test_name
        before = checks.top1(eager, test, "testing source")
        precision = self.source.info.precision
        for exported, float_layers in self._attempts(eager, first, before):
            after = checks.top1(exported, test, f"testing {precision}")
            if 100 * (before - after) <= self.max_drop:
                return replace(self._described(eager, exported, before, after), float_layers=float_layers)
            lost = f"{precision} has {100 * after:.2f} % top-1 on the {name} split"
            if float_layers:
                lost += f" with {counted(len(float_layers), 'layer')} in float"
            lost += f", and the source {100 * before:.2f} %"
            if precision == "int8":
                say(lost)
        raise CheckpointError(
            f"{self.path} was not written: {lost}: choose another --precision, or allow more with --max-drop"
        )

    def _attempts(self, eager: Backend, exported: Backend, before: float) -> Iterator[tuple[Backend, tuple[str, ...]]]:
        """The file; then for int8 with 1, 2, 4, … of the layers that int8 harms most in float, those files alone that
        cost no more than allowed on the images that choose. Each comes with its layers in float."""
        yield exported, ()
        if self.source.info.precision != "int8" or before == 0:
            return
        choosing = self.evidence.choosing
        choosing = choosing.subset(np.unique(np.linspace(0, len(choosing) - 1, _CHOOSING).astype(int)))
        reference = checks.top1(eager, choosing, "testing source")
        ranked, count = ranked_layers(self.source), 1
        while count < len(ranked):
            float_layers = tuple(ranked[:count])
            exported = self.write(float_layers)
            lost = 100 * (reference - checks.top1(exported, choosing, "testing int8"))
            say(
                f"with {counted(count, 'layer')} in float int8 costs {lost:.2f} points on {len(choosing):,} images of "
                f"the {self.evidence.choosing_split} split"
            )
            if lost <= self.max_drop:
                yield exported, float_layers
            count *= 2

    def _compared(self, eager: Backend, exported: Backend) -> checks.Comparison:
        own, files = (checks.pictures(self.evidence.compared, each, _COMPARED) for each in (eager, exported))
        if not own:
            raise DataError(f"none of the {self.evidence.title} can be read, so there is nothing to compare on")
        comparison = checks.compare(eager, exported, list(zip(own, files, strict=True)))
        if not math.isfinite(comparison.difference):
            whose, remedy = "its", "choose another --precision"
            if not math.isfinite(comparison.scale):
                whose, remedy = "the source's", "its training diverged: choose another --checkpoint"
            raise CheckpointError(
                f"{self.path} was not written: {whose} logits are no numbers (NaN or infinite): {remedy}"
            )
        return comparison

    def _same_logits(self, eager: Backend, exported: Backend) -> Export:
        comparison = self._compared(eager, exported)
        inside = exported.preprocessing
        # Pre-processing of one's own may round a pixel to the grey level beside it, and reads a JPEG as a whole.
        tolerance = _ROUNDED * comparison.scale if inside else _TOLERANCE
        if not comparison.difference <= tolerance or (comparison.other_class and not inside):
            raise CheckpointError(
                f"{self.path} was not written: its logits differ from the source's by up to "
                f"{comparison.difference:.2g}, and {comparison.other_class} of {comparison.images} images get another "
                f"class"
            )
        return Export(self.path, comparison, self.evidence.title)

    def _described(
        self, eager: Backend, exported: Backend, before: float | None = None, after: float | None = None
    ) -> Export:
        products = None
        if self.source.info.precision == "int8":
            from convnext.inference.export.quantization import products_of, require_int8

            done = products_of(self.unfinished, exported)
            products = sum(product.is_int8 for product in done), len(done)
            require_int8(products[0])
        return Export(
            self.path,
            self._compared(eager, exported),
            self.evidence.title,
            before,
            after,
            self.evidence.unmeasured,
            products,
        )

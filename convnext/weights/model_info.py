"""``model.json``, which stands beside the weights of a run: how they are used. Importing it is cheap: no torch."""

import json
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from convnext.config import MAX_PIXELS, ModelSettings, Positive, RunSettings
from convnext.errors import CheckpointError, SettingsError, reason

M = TypeVar("M", bound=BaseModel)

# Settings by another name since format 3, wherever a file of format 2 or 1 has them.
_RENAMED = {
    "accumulate": "gradient_accumulation",
    "cache_side": "cache_image_size",
    "erasing": "random_erasing",
    "expansion": "mlp_ratio",
}


class Images(Protocol):
    """What a model has to know of the images: `convnext.data.splits.Splits`, for one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means, on a scale of 0 to 1."""

    @property
    def std(self) -> tuple[float, ...]:
        """Channel standard deviations, on that scale."""


class ModelInfo(BaseModel):
    """All that is needed to use the weights.

    Attributes:
        model: resolved settings of the architecture.
        classes: class names in the order of the logits.
        mean: channel means of the training data, on a scale of 0 to 1.
        std: channel standard deviations on that scale.
        image_size: side of the images in pixels.
        center_crop: share of the resized shorter side that is kept.
        max_pixels: of a file, as in the settings of the training data.
        max_value: as there.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model: ModelSettings
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    image_size: Positive
    center_crop: Annotated[float, Field(gt=0, le=1)]
    max_pixels: Positive = MAX_PIXELS
    max_value: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _channels(self) -> "ModelInfo":
        numbers = {len(self.mean), len(self.std), self.model.in_channels or len(self.mean)}
        if len(numbers) > 1:
            raise ValueError(f"mean, std and model.in_channels are of {', '.join(map(str, numbers))} channels")
        return self

    @classmethod
    def of(cls, settings: RunSettings, splits: Images) -> "ModelInfo":
        """What a run's settings and data come to."""
        data, model = settings.data, settings.model
        return cls(
            model=model,
            classes=splits.classes,
            mean=splits.mean,
            std=splits.std,
            image_size=data.image_size,
            center_crop=data.center_crop,
            max_pixels=data.max_pixels,
            max_value=data.max_value,
        )

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)


def read_json(path: Path, kind: type[M]) -> M:
    """A JSON file as the pydantic model ``kind``; CheckpointError where it is missing, damaged, or of another
    version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None
    return validated(values, kind, path)


def validated(values: Any, kind: type[M], path: Path) -> M:
    """JSON values from the file at ``path`` as the pydantic model ``kind``; CheckpointError where they cannot be."""
    try:
        return kind.model_validate(values if issubclass(kind, RootModel) else renamed(values))
    except ValidationError as error:
        problem = error.errors()[0]
        name, message = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"cannot read {path}: {f'{name}: ' if name else ''}{message}") from None
    except SettingsError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object, of whatever version; CheckpointError where it is missing or damaged."""
    return read_json(path, RootModel[dict[str, Any]]).root


def renamed(value: Any) -> Any:
    """JSON values with the settings in them under today's names; an older format has some under others."""
    if not isinstance(value, dict):
        return value
    if value.get("cache") == "ram":  # the system's own cache holds the file in memory
        value = value | {"cache": "disk"}
    if "augment_on" not in value and {"root", "workers", "cache"} <= value.keys():  # all of a run's that is older
        value = value | {"augment_on": "workers"}
    return {_RENAMED.get(key, key): renamed(inner) for key, inner in value.items()}

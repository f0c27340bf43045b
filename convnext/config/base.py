"""What every group of settings is: immutable, checked, and changed by copies."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from convnext.errors import SettingsError, did_you_mean

_ALL = "`convnext train RECIPE --help` shows them all"
# What to do where a setting has a value that another tool would take.
VALUES = {"device": "--device cuda with CUDA_VISIBLE_DEVICES=N in the environment computes on GPU N"}


class Settings(BaseModel):
    """Immutable settings; a mistake raises `convnext.errors.SettingsError`, in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    section: ClassVar[str] = ""
    whole: ClassVar["type[Settings]"]
    """All settings: a mistyped name may be that of any."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(self._explain(error)) from None

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        problem = error.errors()[0]
        if problem["type"] == "extra_forbidden":
            unknown = (cls.section + str(one["loc"][0]) for one in error.errors() if one["type"] == problem["type"])
            hints = ((name, did_you_mean(name, cls.whole.names(), _ALL)) for name in unknown)
            return "; ".join(f"no setting is called {name}: {hint}" for name, hint in hints)
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            return message
        # Nested locations go on with pydantic's own names for the branches of a union: only the field's is the user's.
        name = cls.section + str(problem["loc"][0])
        hint = f"; {VALUES[name]}" if name in VALUES else ""
        return f"{name}: {message[0].lower()}{message[1:]}, got {problem['input']!r}{hint}"

    @classmethod
    def names(cls) -> set[str]:
        """The dotted names of all settings."""
        names: set[str] = set()
        for name, field in cls.model_fields.items():
            group = field.annotation
            if isinstance(group, type) and issubclass(group, Settings):
                names |= {f"{name}.{inner}" for inner in group.names()}
            else:
                names.add(name)
        return names

    def replace(self, **changes: Any) -> "Any":
        """A validated copy with ``changes``: plain (``epochs=5``), nested (``model={"dims": …}``) or dotted
        (``**{"model.dims": …}``).

        Raises:
            SettingsError: an unknown setting, or a value out of its bounds.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        nested: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            name, _, rest = key.partition(".")
            if rest:
                nested.setdefault(name, {})[rest] = value
            elif isinstance(value, dict):
                nested.setdefault(name, {}).update(value)
            elif isinstance(values.get(name), Settings) and not isinstance(value, Settings):
                raise SettingsError(f"{name} is a group of settings, got {value!r}: {did_you_mean(name, self.names())}")
            else:
                values[name] = value
        for name, inner in nested.items():
            if not isinstance(values.get(name), Settings):
                raise SettingsError(f"no group of settings is called {name}: {did_you_mean(name, values)}")
            values[name] = values[name].replace(**inner)
        return type(self)(**values)

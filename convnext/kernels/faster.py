"""Classes of modules that compute by our kernels, and keep the names, parameters and bases of their own."""

from typing import Any

from torch import nn


class Faster(nn.Module):
    """Comes before a module's own class in the order of inheritance, so that ``super()`` is that."""

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        # The class is made at run time, and cannot be imported by name.
        state = {name: value for name, value in vars(self).items() if name != "_held"}
        return empty, type(self).__bases__, state


_classes: dict[tuple[type, type], type[nn.Module]] = {}


def class_of(faster: type[nn.Module], plain: type[nn.Module]) -> type[nn.Module]:
    """The module's class whose ``forward`` is that of ``faster``, which can ask for its own."""
    if (faster, plain) not in _classes:
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
        _classes[faster, plain] = type(plain.__name__, (faster, plain), names)
    return _classes[faster, plain]


def empty(faster: type[nn.Module], plain: type[nn.Module]) -> nn.Module:
    """A module of that class without anything in it, for a copy."""
    its_class = class_of(faster, plain)
    return its_class.__new__(its_class)

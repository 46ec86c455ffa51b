"""Replaces a function of torch in all loaded modules, and restores it.

A function that code calls as `F.f`, as `torch.nn.functional.f`, or as a name that it imported, is found in the
namespaces of the loaded modules and replaced there. References elsewhere (a default argument, a closure) are not
replaced: the coverage report shows what was not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_KEPT = ("stabwatch.", "torch._C", "torch._dynamo", "torch._decomp", "torch._inductor", "torch.fx")
"""Namespaces in which names must refer to the original: ours, and those in which compilers run graphs."""


class Patch:
    """One function replaced in all module namespaces."""

    def __init__(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        self._original = original
        self._replacement = replacement

    def install(self) -> None:
        """Replace the original by the replacement."""
        _swap(self._original, self._replacement)

    def remove(self) -> None:
        """Restore the original, also where the replacement was imported in the meantime."""
        _swap(self._replacement, self._original)


class MethodPatch:
    """One method of a class replaced."""

    def __init__(self, owner: type, name: str, replacement: Callable[..., Any]) -> None:
        self._owner = owner
        self._name = name
        self._original = getattr(owner, name)
        self._replacement = replacement

    def install(self) -> None:
        """Replace the original by the replacement."""
        setattr(self._owner, self._name, self._replacement)

    def remove(self) -> None:
        """Restore the original."""
        setattr(self._owner, self._name, self._original)


def _swap(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType) or module.__name__.startswith(_KEPT):
            continue
        namespace = vars(module)
        for name in [name for name, value in list(namespace.items()) if value is old]:
            namespace[name] = new

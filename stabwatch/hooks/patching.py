"""Replacing a function of torch everywhere it is known, and putting it back.

A function that code reaches as `F.f`, as `torch.nn.functional.f`, or as a name that it imported, is found in
the namespaces of the loaded modules and replaced there. References kept elsewhere (a default argument, a
closure) are not reached: the coverage report shows what was not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_KEPT = ("stabwatch.", "torch._C", "torch._dynamo", "torch._decomp", "torch._inductor", "torch.fx")
"""Namespaces in which names stand for the original: ours, and those that compilers read graphs with."""


class Patch:
    """One function replaced in all module namespaces."""

    def __init__(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        self._original = original
        self._replacement = replacement

    def install(self) -> None:
        """Replace the original by the replacement."""
        _swap(self._original, self._replacement)

    def remove(self) -> None:
        """Put the original back, also where the replacement was imported meanwhile."""
        _swap(self._replacement, self._original)


def _swap(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType) or module.__name__.startswith(_KEPT):
            continue
        namespace = vars(module)
        for name in [name for name, value in list(namespace.items()) if value is old]:
            namespace[name] = new

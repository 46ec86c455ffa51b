"""Replaces a function of torch in all loaded modules, and restores it.

A function that code calls as `F.f`, as `torch.nn.functional.f`, or as a name that it imported, is found in the
namespaces of the loaded modules and replaced there. References elsewhere (a default argument, a closure) are not
replaced: the coverage report shows what was not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn
from torch.jit import _builtins

_KEPT = ("stabwatch.", "torch._C", "torch._dynamo", "torch._decomp", "torch._inductor", "torch.fx")
"""Namespaces in which names must refer to the original: ours, and those in which compilers run graphs."""


class Patch:
    """One function replaced in all module namespaces."""

    def __init__(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        self._original = original
        self._replacement = replacement

    def install(self) -> None:
        """Replace the original by the replacement. TorchScript goes on compiling the original."""
        operator = _builtins._find_builtin(self._original)
        if operator is not None:
            _builtins._register_builtin(self._replacement, operator)
        else:
            self._replacement.__prepare_scriptable__ = lambda: self._original  # type: ignore[attr-defined]
        _swap(self._original, self._replacement)

    def remove(self) -> None:
        """Restore the original, also where the replacement was imported in the meantime."""
        _swap(self._replacement, self._original)

    @property
    def pair(self) -> tuple[Any, Any]:
        """The original and its replacement."""
        return self._original, self._replacement


class MethodPatch:
    """One method of a class replaced, or one function in a single namespace."""

    def __init__(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
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


class KeptReferences:
    """Functions that a model keeps as attributes of its modules or of their classes, replaced there.

    pairs: originals and their replacements. A `functools.partial` of an original is replaced by one of the replacement.
    """

    def __init__(self, model: nn.Module, pairs: Iterable[tuple[Any, Any]]) -> None:
        self._kept: list[tuple[Any, str, Any]] = []
        self._pairs = list(pairs)
        for module in model.modules():
            self._replace(module, vars(module))
            for base in type(module).__mro__:
                if not base.__module__.startswith(("torch.", "builtins")):
                    self._replace(base, vars(base))

    def _replace(self, owner: Any, namespace: Mapping[str, Any]) -> None:
        for name, value in list(namespace.items()):
            replacement = self._replacement(value)
            if replacement is not None:
                self._kept.append((owner, name, value))
                _set(owner, name, replacement)

    def _replacement(self, value: Any) -> Any:
        if isinstance(value, staticmethod):
            inner = self._replacement(value.__func__)
            return None if inner is None else staticmethod(inner)
        if type(value) is partial:
            inner = self._replacement(value.func)
            return None if inner is None else partial(inner, *value.args, **value.keywords)
        return next((new for old, new in self._pairs if value is old), None)

    def remove(self) -> None:
        """Put the originals back."""
        kept, self._kept = self._kept, []
        for owner, name, value in reversed(kept):
            _set(owner, name, value)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, nn.Module):
        vars(owner)[name] = value  # not by `Module.__setattr__`, which a class may override
    else:
        setattr(owner, name, value)


class PassingPatches:
    """Functions that are replaced while a forward is measured that needs it, and are the originals at other times."""

    def __init__(self) -> None:
        self._places: list[tuple[Any, str, Any, Any]] = []
        self._installed = False

    def add(self, owner: Any, name: str, original: Any, replacement: Any) -> None:
        """One more place: an attribute of a module, an object or a class."""
        self._places.append((owner, name, original, replacement))

    def add_references(self, model: nn.Module) -> Callable[[], None]:
        """The names under which a model's modules, and the files that define them, keep one of the originals.

        Returns a function that forgets them again.
        """
        known = {id(old): new for _, _, old, new in self._places}
        files = {type(module).__module__ for module in model.modules()}
        owners = [sys.modules[name] for name in files if name in sys.modules and not name.startswith("torch.")]
        found = [
            (owner, name, value, known[id(value)])
            for owner in (*model.modules(), *owners)
            for name, value in list(vars(owner).items())
            if id(value) in known
        ]
        self._places += found
        return lambda: self._forget(found)

    def _forget(self, found: list[tuple[Any, str, Any, Any]]) -> None:
        self.set_installed(False)
        gone = set(map(id, found))
        self._places = [place for place in self._places if id(place) not in gone]

    def set_installed(self, wanted: bool) -> None:
        """Replace the functions, or restore them."""
        if wanted != self._installed:
            self._installed = wanted
            for owner, name, original, replacement in self._places:
                old, new = (original, replacement) if wanted else (replacement, original)
                if not wanted and _inherits(owner, name, original):
                    if vars(owner).get(name) is replacement:
                        delattr(owner, name)
                elif getattr(owner, name, None) is old:
                    _set(owner, name, new)


def _inherits(owner: Any, name: str, original: Any) -> bool:
    return isinstance(owner, type) and any(vars(base).get(name) is original for base in owner.__mro__[1:])


SOFTMAX_FORMS = PassingPatches()
"""The spellings of softmax that reach no function of `torch.nn.functional`."""


def _swap(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType) or module.__name__.startswith(_KEPT):
            continue
        namespace = vars(module)
        for name in [name for name, value in list(namespace.items()) if value is old]:
            namespace[name] = new

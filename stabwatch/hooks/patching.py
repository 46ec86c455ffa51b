"""Replaces a function of torch in all loaded modules, and restores it.

A function that code calls as `F.f`, as `torch.nn.functional.f`, or as a name that it imported, is found in the
namespaces of the loaded modules and replaced there, and so it is where values are kept (see `references`): pickles
refer to functions by their names, and fail where another function has the name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn
from torch.jit import _builtins

from stabwatch.hooks.references import exchange

KEPT = ("stabwatch.", "torch._C", "torch._dynamo", "torch._decomp", "torch._inductor", "torch.fx")
"""Namespaces in which names must refer to the original: ours, and those in which compilers run graphs."""


class Patch:
    """One function replaced in all module namespaces. See `references` for other places."""

    __slots__ = ("_original", "_replacement")

    def __init__(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        self._original = original
        self._replacement = replacement

    def prepare(self) -> None:
        """TorchScript goes on compiling the original."""
        operator = _builtins._find_builtin(self._original)
        if operator is not None:
            _builtins._register_builtin(self._replacement, operator)
        else:
            self._replacement.__prepare_scriptable__ = lambda: self._original  # type: ignore[attr-defined]

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
        self._inherited = name not in vars(owner)
        self._replacement = replacement

    def install(self) -> None:
        """Replace the original by the replacement."""
        setattr(self._owner, self._name, self._replacement)

    def remove(self) -> None:
        """Restore the original."""
        if self._inherited:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._original)


class KeptReferences:
    """Functions that a model keeps as attributes of its modules or of their classes, replaced there.

    pairs: originals and their replacements. A `functools.partial` of an original is replaced by one of the replacement.
    """

    def __init__(self, model: nn.Module, pairs: Iterable[tuple[Any, Any]]) -> None:
        self._kept: list[tuple[Any, str, Any]] = []
        self._pairs = list(pairs)
        classes: dict[type, None] = {}
        for module in model.modules():
            self._replace(module, vars(module))
            classes[type(module)] = None
        for base in {base: None for known in classes for base in known.__mro__}:
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


class PassingMethod:
    """A method that is replaced while a forward is measured that needs it, and is the original at other times.

    The class inherits the original: to restore it, the replacement is taken off the class.
    """

    def __init__(self) -> None:
        self.installed = False
        self._place: tuple[type, str, Any] | None = None

    def set_method(self, owner: type, name: str, replacement: Any) -> None:
        """Say which method it is."""
        self._place = owner, name, replacement

    def set_installed(self, wanted: bool) -> None:
        """Replace the method, or restore it."""
        if wanted == self.installed or self._place is None:
            return
        self.installed = wanted
        owner, name, replacement = self._place
        if wanted and name not in vars(owner):
            setattr(owner, name, replacement)
        elif not wanted and vars(owner).get(name) is replacement:
            delattr(owner, name)


SOFTMAX_METHOD = PassingMethod()
"""`Tensor.softmax`, which `torch.nn.functional.softmax` calls too. Compilers do not look it up."""


def install_patches(patches: Iterable[Patch | MethodPatch]) -> None:
    """Replace the originals by their replacements."""
    functions = []
    for patch in patches:
        if isinstance(patch, Patch):
            patch.prepare()
            functions.append(patch.pair)
        else:
            patch.install()
    _swap({id(original): replacement for original, replacement in functions})
    exchange(tuple(functions), KEPT)


def remove_patches(patches: Iterable[Patch | MethodPatch]) -> None:
    """Restore the originals, also where a replacement was imported in the meantime."""
    functions = []
    for patch in patches:
        if isinstance(patch, Patch):
            functions.append(patch.pair)
        else:
            patch.remove()
    _swap({id(replacement): original for original, replacement in functions})
    exchange(tuple((replacement, original) for original, replacement in functions), KEPT)


def _swap(new: Mapping[int, Callable[..., Any]]) -> None:
    """Replace functions in the namespaces of all loaded modules, in one pass. new: by id of what is replaced."""
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType) or module.__name__.startswith(KEPT):
            continue
        namespace = vars(module)
        for name, value in list(namespace.items()):
            if id(value) in new:
                namespace[name] = new[id(value)]

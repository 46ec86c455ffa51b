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
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.jit import _builtins

from stabwatch.hooks.references import exchange

KEPT = ("stabwatch.", "torch._C", "torch._dynamo", "torch._decomp", "torch._inductor", "torch.fx")
"""Namespaces in which names must refer to the original: ours, and those in which compilers run graphs."""


COUNTED = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether the number of references to an object is known."""


_replaced: list[tuple[Any, Any]] = []
"""The functions that are replaced now, and their replacements."""


class Patch:
    """One function replaced in all module namespaces. See `references` for other places."""

    __slots__ = ("_original", "_replacement", "back", "pair")

    def __init__(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        self._original = original
        self._replacement = replacement
        self.pair, self.back = (original, replacement), (replacement, original)

    def prepare(self) -> None:
        """TorchScript goes on compiling the original."""
        operator = _builtins._find_builtin(self._original)
        if operator is not None:
            _builtins._register_builtin(self._replacement, operator)
        else:
            self._replacement.__prepare_scriptable__ = lambda: self._original  # type: ignore[attr-defined]


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
        """Restore the original, where it was replaced."""
        if vars(self._owner).get(self._name) is not self._replacement:
            return
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
    _PLACES.note_replacements(functions)
    _PLACES.move(functions)
    _replaced.extend(functions)


def note_originals(begins: bool = True) -> None:
    """Compilers look up functions of torch by their names, once, and keep what they found: it may be a replacement.

    Calls of that would become calls in the graph, and not be traced. begins: something is compiled now; else only what
    was looked up so far is put right.
    """
    look_up: Any = getattr(sys.modules.get("torch._dynamo.trace_rules"), "get_torch_obj_rule_map", None)
    if not hasattr(look_up, "cache_info") or not (begins or look_up.cache_info().currsize):
        return
    rules = look_up()
    for original, replacement in _replaced:
        if replacement in rules:
            rules[original] = rules.pop(replacement)


def remove_patches(patches: Iterable[Patch | MethodPatch]) -> None:
    """Restore the originals, also where a replacement was imported in the meantime."""
    functions = []
    for patch in patches:
        if isinstance(patch, Patch):
            functions.append(patch.back)
        else:
            patch.remove()
    note_originals(begins=False)
    _replaced[:] = [pair for pair in _replaced if pair[::-1] not in functions]
    _PLACES.move(functions)


class _Places:
    """Puts functions in the place of others, wherever these are kept, and knows the modules of the last time.

    A pass over all objects takes 50 to 100 ms of a processor. It is left out where no reference to a function is left
    after it was replaced in the known modules and in those imported since: then there is no other place.
    """

    def __init__(self) -> None:
        self._modules: set[str] = set()
        """Names of those that were looked into."""
        self._with: set[str] = set()
        """Of these, those in which functions were found."""
        self._stay: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """By function: the references to it when it is in no place."""

    def note_replacements(self, pairs: list[tuple[Any, Any]]) -> None:
        """Those that are seen for the first time are in no place yet. pairs: originals and replacements."""
        self._stay.update([known for known in _references(pairs, 1) if known[0] not in self._stay])

    def move(self, pairs: list[tuple[Any, Any]]) -> None:
        """Put the second of each pair in the place of the first."""
        if not self._move_known(pairs):
            self._move_all(pairs)
            self._stay.update(_references(pairs, 0))

    def _move_known(self, pairs: list[tuple[Any, Any]]) -> bool:
        """Whether these were all places."""
        if not COUNTED or not self._modules:
            return False
        by_id = {id(old): new for old, new in pairs}
        for name in self._with | (sys.modules.keys() - self._modules):
            self._swap(name, by_id)
        for listed in _overridable():
            listed[:] = [by_id.get(id(function), function) for function in listed]
        del by_id
        return all(self._stay.get(old) == number for old, number in _references(pairs, 0))

    def _move_all(self, pairs: list[tuple[Any, Any]]) -> None:
        by_id = {id(old): new for old, new in pairs}
        for name in list(sys.modules):
            self._swap(name, by_id)
        exchange(pairs, KEPT)

    def _swap(self, name: str, new: Mapping[int, Any]) -> None:
        """Replace functions in the namespace of one module. new: by id of what is replaced."""
        self._modules.add(name)
        module = sys.modules.get(name)
        if not isinstance(module, ModuleType) or module.__name__.startswith(KEPT):
            return
        namespace = vars(module)
        for key, value in list(namespace.items()):
            if id(value) in new:
                namespace[key] = new[id(value)]
                self._with.add(name)


def _overridable() -> Iterable[list[Any]]:
    """The lists of functions that torch makes of its modules when a compiler or a mode first asks for them."""
    lists = getattr(torch.overrides, "_get_overridable_functions", None)
    info = getattr(lists, "cache_info", None)
    return lists()[0].values() if lists is not None and info is not None and info().currsize else ()


def _references(pairs: list[tuple[Any, Any]], of: int) -> list[tuple[Any, int]]:
    """Each first or second function, and the number of references to it."""
    numbers = [sys.getrefcount(pair[of]) for pair in pairs]
    return [(pair[of], number) for pair, number in zip(pairs, numbers, strict=True)]


_PLACES = _Places()

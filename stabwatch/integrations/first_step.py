"""Watching a program that does not call `attach`: from its first optimizer step on (`stabwatch run`)."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any
from weakref import WeakSet

import stabwatch
from stabwatch.integrations import environment

_log = logging.getLogger("stabwatch")


def install(optim: ModuleType) -> None:
    """Wait for the first step. optim: the module `torch.optim.optimizer`, just imported."""
    FirstStep(optim).install()


class FirstStep:
    """Attaches when an optimizer of torch has made its first step in this process.

    A hook before the step gives the optimizer a hook of its own for after the step, and that one attaches: the lists of
    hooks that `attach` extends are not being gone through then.
    """

    def __init__(self, optim: ModuleType) -> None:
        self._optim: Any = optim
        self._known: WeakSet[Any] = WeakSet()
        self._parameters: set[int] | None = None
        """Of the watched model, by id; None before anything is watched."""
        self._watch: stabwatch.Watch | None = None
        self._pid = 0

    def install(self) -> None:
        """Register the hook for all optimizers."""
        self._optim.register_optimizer_step_pre_hook(self.before)

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Any optimizer is about to step."""
        if optimizer in self._known:
            return
        self._known.add(optimizer)
        if self._parameters is None:
            optimizer.register_step_post_hook(self.after)
        elif self._pid == os.getpid():
            self._say_if_outside(optimizer)

    def _say_if_outside(self, optimizer: Any) -> None:
        if self._parameters is not None and not parameters_of(optimizer) <= self._parameters:
            _say(
                f"{type(optimizer).__name__} trains parameters outside of the model that is watched: these are not "
                "measured. Call `stabwatch.attach` in the program to watch them."
            )

    def after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The first step has been made."""
        if self._parameters is not None:
            return
        self._parameters, self._pid = set(), os.getpid()
        try:
            with filters_unnoticed():
                self._attach(optimizer)
        except Exception as error:
            _log.debug("stabwatch: attaching failed", exc_info=True)
            _say(f"the training is not watched: {error}")

    def _attach(self, optimizer: Any) -> None:
        from torch import nn

        settings = os.environ.get(environment.SETTINGS)
        folder = os.environ.get(environment.FOLDER)
        environment.take_from(os.environ)
        if _is_watched():
            return  # the program calls `attach` itself
        modules = _live(nn.Module)
        model = find_model(optimizer, _live(self._optim.Optimizer), modules)
        if model is None:
            _say(
                "the training is not watched: no module that can be has parameters of the first optimizer that stepped."
            )
            return
        if is_compiled(model, modules):
            _say("the model is compiled already: what happens inside its graphs is not measured. Call `attach` before.")
        self._parameters = {id(p) for p in model.parameters()}
        self._say_if_outside(optimizer)
        self._watch = stabwatch.attach(model, run_dir=folder, config=settings, first_step=1)


@contextmanager
def filters_unnoticed() -> Iterator[None]:
    """What is imported meanwhile changes the filters of warnings: Python would say all warnings again that it has said.

    A registry holds what was said, with the number of changes until then; the changes in here are added to that.
    """
    original: Any = getattr(warnings, "_filters_mutated", None)
    if original is None:
        yield
        return
    changes = 0

    def counted() -> None:
        nonlocal changes
        changes += 1
        original()

    found = [vars(m).get("__warningregistry__") for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
    before = [(registry, registry.get("version")) for registry in found if isinstance(registry, dict)]
    vars(warnings)["_filters_mutated"] = counted
    try:
        yield
    finally:
        vars(warnings)["_filters_mutated"] = original
        for registry, version in before:
            if isinstance(version, int) and registry.get("version") == version:
                registry["version"] = version + changes


def _is_watched() -> bool:
    """Has the program attached a watch of its own?"""
    return "stabwatch.watch" in sys.modules and bool(_live(stabwatch.Watch))


def _say(what: str) -> None:
    if sys.stderr is not None:
        with suppress(Exception):
            print(f"stabwatch: {what}", file=sys.stderr)


def _live(kind: type) -> list[Any]:
    """All objects of a class that are alive. Not `isinstance`, which runs code of objects that pretend a class."""
    return [found for found in gc.get_objects() if issubclass(type(found), kind)]


def parameters_of(optimizer: Any) -> set[int]:
    """Ids of an optimizer's parameters."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def find_model(optimizer: Any, optimizers: Iterable[Any], modules: Iterable[Any]) -> Any:
    """The smallest module with all parameters of all optimizers; or, if there is none, with those of `optimizer`.

    A module without a `forward`, such as an actor and a critic with methods of their own, is never called, its parts
    are: it is watched where no other fits. Where the parameters are those of several modules that nothing holds
    together, it is the one with the most of them. Of several with the same parameters it is the innermost that has
    children: a wrapper is not always called, and what is inside it is. Returns None if there is none.
    """
    owned = [(module, {id(p) for p in module.parameters()}) for module in modules if not _is_trainer(module)]
    called = [(module, parameters) for module, parameters in owned if _has_forward(module)]
    everything = set().union(parameters_of(optimizer), *map(parameters_of, optimizers))
    for group in (called, owned):
        for wanted in filter(None, (everything, parameters_of(optimizer))):
            fitting = list(_ranked(group, wanted))
            if fitting:
                return min(fitting, key=lambda item: item[:3])[3]
    parts = [(module, parameters) for module, parameters in called if parameters and parameters <= everything]
    most = max((len(parameters) for _, parameters in parts), default=0)
    largest = _ranked([part for part in parts if len(part[1]) == most], set())
    return min(largest, key=lambda item: item[:3], default=(0, False, 0, None))[3]


def _ranked(owned: list[tuple[Any, set[int]]], wanted: set[int]) -> Iterator[tuple[int, bool, int, Any]]:
    for module, parameters in owned:
        if wanted <= parameters:
            size = sum(1 for _ in module.modules())
            yield len(parameters), size == 1, size, module


def _has_forward(module: Any) -> bool:
    from torch import nn

    return type(module).forward is not nn.Module.forward


def _is_trainer(module: Any) -> bool:
    """Its `training_step` is called by a trainer that has a callback of its own, and the model is inside."""
    return hasattr(type(module), "training_step")


def is_compiled(model: Any, modules: Iterable[Any]) -> bool:
    """Is the model, or a part of it, inside `torch.compile`, or was `compile` called on it?"""
    parts = list(model.modules())
    if any(getattr(part, "_compiled_call_impl", None) is not None for part in parts):
        return True
    compiled = [vars(m)["_modules"]["_orig_mod"] for m in modules if "_orig_mod" in vars(m).get("_modules", {})]
    return any(any(c is part for part in parts) or any(model is part for part in c.modules()) for c in compiled)

"""Entry points: every place where a user's call runs code of ours.

What ours raises is caught there, counted and reported, and never reaches the user's call. The guards are written out
in the entry points themselves and call no function of ours outside of a `try`. While a compiler traces, another
function takes the place of the guarded one: its errors are errors of the compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stabwatch.hooks.base.isolation import Begun

HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
"""Attributes of a module that hold its forward hooks by number."""
_INFRASTRUCTURE = tuple(torch._C._TorchDispatchModeKey.__members__.values())
_NOTHING = nullcontext()
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
"""True inside `torch.export`; always False in versions of torch that do not say."""
_set_eval_frame: Callable[[Any], Any] = torch._C._dynamo.eval_frame.set_eval_frame
"""Sets what compiles the functions that this thread calls, and returns what did so before; None compiles nothing."""
_unreported: set[str] = set()
"""Names of entry points whose errors could not even be counted."""


def runs_for_real() -> bool:
    """False while a call only serves to record or transform the model: tracing, export, fake tensors, `torch.func`."""
    return not (
        torch._C._get_tracing_state() is not None
        or is_exporting()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or (torch._C._len_torch_dispatch_stack() and any(map(torch._C._get_dispatch_mode, _INFRASTRUCTURE)))
    )


def unseen_by_modes() -> AbstractContextManager[Any]:
    """Our own tensor operations in it are not seen by the user's dispatch modes and function modes."""
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return _without_modes()
    return _NOTHING


@contextmanager
def _without_modes() -> Iterator[None]:
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


class Ours:
    """What is registered with torch. Pickles and copies of modules leave it out, see `hooks/pickling.py`.

    Where a class of the user's pickles its modules in a way of its own, it becomes a function of the standard library
    that does nothing: what was saved needs no stabwatch.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Ours:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


class Hook(Ours):
    """A forward hook of all watched modules of all watches; the module's site says which watch it belongs to.

    eager: called with the site, the module and what torch passes. traced: the same while a compiler traces; what it
    returns is the hook's result.
    """

    def __init__(self, name: str, eager: Callable[..., None], traced: Callable[..., Any]) -> None:
        self._name = self.__name__ = name
        self._eager = eager
        self._traced = traced

    def __call__(self, module: Any, *args: Any) -> Any:
        """Called by torch with the module, its arguments, and its output where it has one."""
        if torch.compiler.is_dynamo_compiling():
            return self._traced(module, *args)
        site = module.__dict__.get("_stabwatch")
        if site is None or self._name in site.context.isolation.disabled:
            return None
        try:
            self._eager(site, module, *args)
        except site.context.isolation.passes:
            raise
        except Exception as error:
            _count(site.context.isolation, self._name, error)
        return None


class shielded:
    """Code of ours between calls of the user's: what it raises is counted under a name, and goes no further.

    Where the user's code is being compiled call by call, ours is not.
    """

    def __init__(self, isolation: Any, name: str) -> None:
        self._isolation = isolation
        self._name = name
        self._begun: Begun = None
        self._compiler: Any = None

    def __enter__(self) -> None:
        self._compiler = _set_eval_frame(None)
        try:
            self._begun = self._isolation.begin()
        except Exception as error:
            _count(self._isolation, self._name, error)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        _set_eval_frame(self._compiler)
        try:
            self._isolation.end(self._begun)
        except Exception as failure:
            _count(self._isolation, self._name, failure)
        if not isinstance(error, Exception) or isinstance(error, self._isolation.passes):
            return False
        _count(self._isolation, self._name, error)
        return True


def _count(isolation: Any, name: str, error: Exception) -> None:
    try:
        isolation.caught(name, error)
    except Exception:
        _unreported.add(name)


class Callback(Ours):
    """To be registered with torch: calls `action`, under a name for its errors, and returns None."""

    def __init__(self, name: str, isolation: Any, action: Callable[..., object]) -> None:
        self._name = self.__name__ = name
        self._isolation = isolation
        self._action = action

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Called by torch with what it passes to such a hook."""
        if self._name in self._isolation.disabled:
            return
        if torch.compiler.is_dynamo_compiling():
            self._action(*args, **kwargs)
            return
        try:
            with unseen_by_modes():
                _counted(self._isolation, self._action, args, kwargs)
        except self._isolation.passes:
            raise
        except Exception as error:
            _count(self._isolation, self._name, error)


def _counted(isolation: Any, action: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Apart from the entry points: compilers that trace those do not inline a `finally`."""
    begun = isolation.begin()
    try:
        action(*args, **kwargs)
    finally:
        isolation.end(begun)


def observed(
    original: Callable[..., Any],
    seen: Callable[..., None],
    traced: Callable[..., None] | None,
    isolation: Callable[[], Any],
) -> Callable[..., Any]:
    """A function in place of `original`: its result is that of the original, called with the arguments as they are.

    seen: called afterwards with the result and the arguments. traced: the same while a compiler traces.
    isolation: returns where errors and time of `seen` are counted; None while nobody wants to know of such calls.
    """
    name = original.__name__

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            if traced is not None:
                traced(out, *args, **kwargs)
            return out
        ours = None
        try:
            ours = isolation()
            if ours is not None:
                _counted(ours, seen, (out, *args), kwargs)
        except Exception as error:
            _count(ours, name, error)
        return out

    return call

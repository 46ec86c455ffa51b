"""How long a watch lives: as long as a module of its model, or a `Watch` that somebody holds.

What is there once per process (torch's hooks of optimizers, patched functions, the writer's thread, `atexit`) reaches a
session by weak references only. The modules of its model hold it. When nobody holds these any more, the session is
garbage with them: it ends as a run that has finished, and the memory of the model is free.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import multiprocessing.util
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stabwatch.hooks.base.entry import Ours
from stabwatch.hooks.presence import OWNER

if TYPE_CHECKING:
    from stabwatch.runtime.session import Session

FLUSH_SECONDS = 0.5
"""Most time to wait for what is left to be written of a run, before another model is attached."""
FIRST = 100
"""Priority among what `multiprocessing` calls when a child ends."""
_SCRIPTED = torch.jit.ScriptModule
_left: list[Session] = []
"""Sessions that are garbage, and have to be ended."""
_open: weakref.WeakSet[Session] = weakref.WeakSet()
_held: set[Session] = set()
"""Those of a model of one module: a list of parameters that was made for `attach` alone is nobody else's."""


class _Hold(Ours):
    """What a module has of its session: no part of its copies and pickles."""

    def __init__(self, session: Session) -> None:
        self.session = session


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls a bound method, and does nothing once the object is gone."""
    assert isinstance(method, MethodType)
    found = weakref.WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = found()
        return None if bound is None else bound(*args, **kwargs)

    return call


def keep(session: Session, model: nn.Module) -> None:
    """The modules of a model keep a session alive from now on."""
    _open.add(session)
    hold = _Hold(session)
    modules = [module for module in model.modules() if not isinstance(module, _SCRIPTED)]
    for module in modules:
        vars(module)[OWNER] = hold
    if len(modules) < 2:
        _held.add(session)


def release(session: Session, model: nn.Module) -> None:
    """They no longer do."""
    _open.discard(session)
    _held.discard(session)
    for module in model.modules():
        if getattr(vars(module).get(OWNER), "session", None) is session:
            del vars(module)[OWNER]


def leave(session: Session) -> None:
    """Called while garbage is collected, wherever the thread is: takes no lock and starts nothing."""
    _left.append(session)


def when_child_ends(end: Callable[[BaseException | None], object]) -> Callable[[], object]:
    """In a child of `multiprocessing`: call `end` when it ends, with the error that has left its function, if one has.

    The interpreter never sees such an error, and a forked child does not run `atexit`. Returns what takes that back.
    """
    if multiprocessing.parent_process() is None:
        return lambda: None
    found = multiprocessing.util.Finalize(None, lambda: end(_behind(sys.exc_info()[1])), exitpriority=FIRST)
    return found.cancel


def _behind(error: BaseException | None) -> BaseException | None:
    """The error for which a process exits: `torch.multiprocessing.spawn` catches it, and exits with 1."""
    if isinstance(error, SystemExit) and error.code and error.__context__ is not None:
        return error.__context__
    return error


def free_memory() -> None:
    """Another model is attached: where one that was trained before it is garbage, its memory is free from now on."""
    if _flushed():
        gc.collect()
    end_left()


def _flushed() -> bool:
    """Is a model being watched that was trained already? What is still to be written of it would keep it alive."""
    trained = [session for session in tuple(_open) if session.begun]
    for session in trained:
        session.settle(FLUSH_SECONDS)
    return bool(trained)


def end_left(wait: bool = True) -> None:
    """End the runs whose models are gone. Not wait: in a thread of its own, which the end of the process waits for."""
    while _left:
        with suppress(IndexError):  # another thread was quicker
            session = _left.pop()
            if wait:
                session.detach()
            else:
                threading.Thread(target=session.detach, name="stabwatch-left", daemon=False).start()


atexit.register(end_left)

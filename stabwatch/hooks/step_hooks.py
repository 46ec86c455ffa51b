"""Hooks of all optimizers' steps: ours see the gradients that the step really uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from stabwatch.hooks.base.entry import Callback
from stabwatch.hooks.base.isolation import Isolation
from stabwatch.kernels.where import tracing

Event = Callable[[Any, Any, Any], None]
"""Called with the optimizer, the positional arguments of its step, and those by name."""


class StepHooks:
    """Calls `before` and `after` at the steps of all optimizers, `tracks` says which are of the model.

    torch calls hooks that an optimizer has of its own after those of all optimizers. One of the user's may change
    gradients, so `before` is then called behind these, by a hook that the optimizer gets; guards of ours follow.
    """

    def __init__(self, isolation: Isolation, before: Event, after: Event, tracks: Callable[[Any], bool]) -> None:
        self._before, self._tracks = before, tracks
        self._late = Callback("optimizer_step", isolation, self._called_late)
        self._handles: WeakKeyDictionary[Any, RemovableHandle] = WeakKeyDictionary()
        self._awaited = False
        with ExitStack() as undo:
            first, last = (Callback("optimizer_step", isolation, each) for each in (self._called_first, after))
            undo.callback(register_optimizer_step_pre_hook(first).remove)
            undo.callback(register_optimizer_step_post_hook(last).remove)
            self._undo = undo.pop_all()

    def _called_first(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        table = getattr(optimizer, "_optimizer_step_pre_hooks", None)
        self._awaited = bool(table) and not tracing() and self._put_last(optimizer, table)
        if not self._awaited:
            self._before(optimizer, args, kwargs)

    def _put_last(self, optimizer: Any, table: Any) -> bool:
        """Have a hook of ours behind those of the user's; False if there are none."""
        handle = self._handles.get(optimizer)
        mine = {key for key, hook in table.items() if _is_ours(hook)}
        if len(mine) == len(table) or not self._tracks(optimizer):
            return False
        if handle is None:
            handle = self._handles[optimizer] = optimizer.register_step_pre_hook(self._late)
        for key in (handle.id, *sorted(mine - {handle.id})):
            table.move_to_end(key)
        return True

    def _called_late(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._awaited:
            self._awaited = False
            self._before(optimizer, args, kwargs)

    def remove(self) -> None:
        """Remove all of them."""
        self._undo.close()
        for handle in self._handles.values():
            handle.remove()


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, Callback) or str(getattr(hook, "__module__", "")).startswith("stabwatch.")

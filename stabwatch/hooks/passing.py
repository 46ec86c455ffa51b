"""Hooks of modules that are in the modules' tables only while they are wanted."""

from __future__ import annotations

from typing import Any

from torch.utils.hooks import RemovableHandle

from stabwatch.hooks.base.entry import Hook


class PassingHook:
    """A hook of one module that is in the module's table while it is wanted, at the place where it was registered."""

    def __init__(self, table: dict[int, Any], handle: RemovableHandle, hook: Hook) -> None:
        self._table = table
        self._key = handle.id
        self._hook = hook
        self._before: frozenset[int] = frozenset()

    def insert(self) -> None:
        """Put it in, behind the hooks that were registered before it."""
        if self._key in self._table:
            return
        self._table[self._key] = self._hook
        for key in [k for k in self._table if k != self._key and k not in self._before] if len(self._table) > 1 else ():
            self._table[key] = self._table.pop(key)

    def take_out(self) -> None:
        """Take it out."""
        if self._key not in self._table:
            return
        if len(self._table) > 1:
            keys = list(self._table)
            self._before = frozenset(keys[: keys.index(self._key)])
        del self._table[self._key]

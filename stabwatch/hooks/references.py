"""Finds where programs keep a function besides the namespaces of modules, and puts another one in its place.

That is in dicts, lists, attributes, partials, variables of closures, default arguments, and tuples in any of these. A
tuple is replaced by a new one where it is kept. Not reached are local variables of functions that run, and keys.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from functools import partial
from types import CellType, FunctionType
from typing import Any

from torch.jit import _builtins

DEPTH = 3
"""Tuples in each other that are looked into."""

_New = Mapping[int, Any]
"""By id of what is replaced."""


def exchange(pairs: Sequence[tuple[Any, Any]], left: tuple[str, ...]) -> None:
    """Replace the first of each pair by the second. left: beginnings of the names of modules that are left as they are.

    What belongs to the functions of the pairs themselves is left too, as are tuples that hold both of a pair, and the
    table by which TorchScript finds its operators. A pass over all objects takes 30 to 50 ms of a processor: there is
    one, and more only where tuples or closures keep one of the functions.
    """
    if not pairs:
        return
    ours = {id(cell) for pair in pairs for function in pair for cell in _cells(function)}
    known = {id(function) for pair in pairs for function in pair}
    new: dict[int, Any] = {id(old): replacement for old, replacement in pairs}
    holders = [h for h in gc.get_referrers(*(old for old, _ in pairs)) if id(h) not in ours]
    cells = _left_out([h for h in holders if type(h) is CellType], left)
    for holder in holders:
        if id(holder) not in cells:
            _replace(holder, new, left)
    tables = set(map(id, _builtins._builtin_ops))
    found = [h for h in holders if _is_plain(h) and id(h) not in tables]
    tuples = [h for h in found if sum(id(x) in known for x in h) == sum(id(x) in new for x in h)]
    for _ in range(DEPTH):
        made = {id(old): _rebuilt(old, new) for old in tuples}
        if not made:
            return
        mine = {id(tuples), id(made), id(holders)}
        holders = [h for h in gc.get_referrers(*tuples) if id(h) not in mine]
        for holder in holders:
            _replace(holder, made, left)
        new, tuples = made, [h for h in holders if _is_plain(h)]


def _cells(function: Any, depth: int = DEPTH) -> list[CellType]:
    """The variables of the closure of a function, and of functions in there."""
    found: list[CellType] = list(getattr(function, "__closure__", None) or ())
    inner = [cell.cell_contents for cell in found if depth and _is_set(cell)]
    return [*found, *(cell for value in inner if isinstance(value, FunctionType) for cell in _cells(value, depth - 1))]


def _is_set(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _left_out(cells: list[CellType], left: tuple[str, ...]) -> set[int]:
    """Those that belong to functions of modules that are left as they are."""
    found: set[int] = set()
    closures = [c for c in (gc.get_referrers(*cells) if cells else []) if type(c) is tuple]
    for function in gc.get_referrers(*closures) if closures else ():
        if isinstance(function, FunctionType) and str(function.__module__).startswith(left):
            found.update(map(id, function.__closure__ or ()))
    return found


def _is_plain(holder: Any) -> bool:
    return type(holder) is tuple or (isinstance(holder, tuple) and hasattr(type(holder), "_fields"))


def _rebuilt(old: tuple[Any, ...], new: _New) -> tuple[Any, ...]:
    return tuple.__new__(type(old), [new.get(id(x), x) for x in old])


def _replace(holder: Any, new: _New, left: tuple[str, ...]) -> None:
    """What one object keeps."""
    if isinstance(holder, list):
        for i, value in enumerate(holder):
            if id(value) in new:
                list.__setitem__(holder, i, new[id(value)])
    elif type(holder) is partial:
        if id(holder.func) in new:
            vars(partial)["__setstate__"](holder, (new[id(holder.func)], *vars(partial)["__reduce__"](holder)[2][1:]))
    elif type(holder) is CellType:
        if _is_set(holder) and id(holder.cell_contents) in new:
            holder.cell_contents = new[id(holder.cell_contents)]
    elif type(holder) is FunctionType and holder.__defaults__ is not None and id(holder.__defaults__) in new:
        if not str(holder.__module__).startswith(left):
            holder.__defaults__ = new[id(holder.__defaults__)]
    elif isinstance(kept := _attributes(holder, left), dict):
        for name, value in list(kept.items()):
            if id(value) in new and name != "__wrapped__":
                dict.__setitem__(kept, name, new[id(value)])


def _attributes(holder: Any, left: tuple[str, ...]) -> Any:
    """The dict itself, or that of an object, without asking its class; None for a namespace that is left."""
    if isinstance(holder, dict):
        return None if "__spec__" in holder and str(holder.get("__name__")).startswith(left) else holder
    try:
        return object.__getattribute__(holder, "__dict__")
    except AttributeError:
        return None

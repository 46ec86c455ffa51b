"""Pickles and copies of modules, while a watch is attached: those of modules that nobody watches.

`pickle`, `copy`, `torch.save`, `multiprocessing` and all that extends them ask an object's `__reduce_ex__`. What that
of a module returns is freed of our hooks, of the module's site, and of our functions in place of torch's. Nothing of
ours gets into a file or into another process, and the bytes are the same as without a watch.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from functools import partial
from operator import is_
from types import FunctionType
from typing import Any, SupportsIndex

from torch import nn
from torch.fx import GraphModule

from stabwatch.hooks.backward import LISTENERS
from stabwatch.hooks.patching import MethodPatch
from stabwatch.hooks.presence import ATTRIBUTES, without_ours

_reduce_package = GraphModule.__reduce_package__
_SHALLOW = copy.copy.__code__
DEPTH = 4
"""Containers in each other in which ours is looked for."""


def pickling_patches(pairs: Sequence[tuple[Any, Any]]) -> list[MethodPatch]:
    """What pickles modules, replaced. pairs: functions of torch, and ours in their places.

    Those that are built in have other names than ours. Others are pickled by the name that both have.
    """
    built_in = tuple((ours, original) for original, ours in pairs if not isinstance(original, FunctionType))

    def reduce_ex(self: nn.Module, protocol: SupportsIndex) -> Any:
        parts = super(nn.Module, self).__reduce_ex__(protocol)
        return _isolated(parts, built_in, sys._getframe(1).f_code is _SHALLOW)

    def reduce_package(self: GraphModule, exporter: Any) -> Any:
        return _isolated(_reduce_package(self, exporter), built_in, False)

    return [
        MethodPatch(nn.Module, "__reduce_ex__", reduce_ex),
        MethodPatch(GraphModule, "__reduce_package__", reduce_package),
    ]


def _isolated(parts: Any, replaced: Sequence[tuple[Any, Any]], shallow: bool) -> Any:
    try:
        return _freed(parts, replaced, shallow)
    except Exception as error:
        for context in LISTENERS[:1]:
            context.isolation.caught("pickle", error)
    return parts


def _freed(part: Any, replaced: Sequence[tuple[Any, Any]], shallow: bool, depth: int = DEPTH) -> Any:
    """A part of what `__reduce_ex__` returned, with the attributes of the module without ours; itself if it has none.

    shallow: it is for a shallow copy, which shares its hooks with the module.
    """
    if depth and type(part) in (tuple, list):
        new = type(part)(_freed(inner, replaced, shallow, depth - 1) for inner in part)
        return part if all(map(is_, new, part)) else new
    if depth and type(part) is dict:
        state = {k: _freed(value, replaced, shallow, depth - 1) for k, value in part.items() if k not in ATTRIBUTES}
        if not shallow and "_forward_hooks" in state:
            state.update(without_ours(state))
        return part if len(state) == len(part) and all(map(is_, state.values(), part.values())) else state
    return _original(part, replaced)


def _original(value: Any, replaced: Sequence[tuple[Any, Any]]) -> Any:
    """The function of torch in place of which a value is ours, also inside of a `functools.partial`."""
    if type(value) is partial:
        inner = _original(value.func, replaced)
        return value if inner is value.func else partial(inner, *value.args, **value.keywords)
    return next((original for ours, original in replaced if value is ours), value)

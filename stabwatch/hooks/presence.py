"""Modules with hooks of ours, and what they are without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import HOOK_TABLES, Ours

OWNER = "_stabwatch_run"
"""Attribute of the modules of a watched model that keeps the session alive."""
ATTRIBUTES = ("_stabwatch", OWNER)
"""What a module has of ours, besides hooks."""


def contexts_on(model: nn.Module) -> list[TapContext]:
    """The watches that have hooks on modules of this model."""
    sites = (vars(module).get("_stabwatch") for module in model.modules())
    return list({id(site.context): site.context for site in sites if site is not None}.values())


def without_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of hooks among the attributes of a module, without ours; only those that have some."""
    tables = {name: state[name] for name in HOOK_TABLES if isinstance(state.get(name), dict)}
    mine = {key for table in tables.values() for key, hook in table.items() if isinstance(hook, Ours)}
    return {
        name: type(table)((key, hook) for key, hook in table.items() if key not in mine)
        for name, table in tables.items()
        if not mine.isdisjoint(table)
    }


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Our hooks are off the model meanwhile: for TorchScript, which compiles hooks."""
    kept = []
    for module in model.modules():
        attributes = vars(module)
        if tables := without_ours(attributes):
            mine = {name: attributes.pop(name) for name in ATTRIBUTES if name in attributes}
            kept.append((attributes, mine | {name: attributes[name] for name in tables}))
            attributes.update(tables)
    try:
        yield
    finally:
        for attributes, before in kept:
            attributes.update(before)

"""Which modules are watched, and what they are called.

Watched: every module that contains others (a block, its attention, its MLP: residual branches are such
modules), and leaves with parameters that stand outside repeated blocks (embeddings, final norm, head, the
layers of a plain `nn.Sequential`) or that are themselves a branch of a block (no module around them), and the gates of
gated MLPs.
A `Sequential` is left out when its last child is watched: they return the same tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.context import MeasurementFlags
from stabwatch.hooks.base.roles import NO_ROLE, Role, find_roles, is_gate
from stabwatch.runlog import Accumulator

_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)(?=\.|$)")
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_NORMS = ("norm",)


def site_name(path: str) -> str:
    """A module path with the names of wrappers (DDP, FSDP, compile, checkpointing) taken out."""
    return _WRAPPERS.sub("", path).strip(".")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside compile and data-parallel wrappers."""
    inner: Any = model
    while True:
        if isinstance(inner, torch._dynamo.eval_frame.OptimizedModule):
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = inner.module
        else:
            return inner


class Site:
    """A watched module: its name and the cells that its tensors are folded into.

    Lives in the module's `__dict__` as `_stabwatch`, not in a closure, so that identical blocks share one
    compiled graph. A deep copy or a pickle of the model carries None in its place: copies are not watched.
    """

    def __init__(self, name: str, flags: MeasurementFlags, watch: Any, parent: Site | None, attention: bool) -> None:
        self.name = name
        self.flags = flags
        self.watch = watch
        self.parent = parent
        self.attention_like = attention
        self.heads = 0
        self.activation: Tensor | None = None
        self.bracket: int | None = None
        """Row in the watch's `Brackets`, for modules that may call attention."""
        self.exact: Tensor | None = None
        self.role = NO_ROLE
        self.index: int | None = None
        """In the order of the sites that take turns."""
        self.graph_handle: Tensor | None = None
        self.gradient_handle: Tensor | None = None
        """Int64 (2,) on the host: the site's number, and how often a compiled graph has looked at it (`traced.py`)."""
        self.input: Tensor | None = None
        """Of a block, while it runs and its writers may ask for it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def fields(self) -> dict[Accumulator, str]:
        """The site's cells, and the attributes that hold them on the device."""
        named = {
            Accumulator("activation", self.name, "moments"): "activation",
            Accumulator("attention", self.name, "attention_exact"): "exact",
        }
        return {cell: field for cell, field in named.items() if getattr(self, field) is not None}


@dataclass(frozen=True)
class Target:
    """One module to hook."""

    path: str
    name: str
    module: nn.Module
    activation: bool
    """False for the root: its output is seen as logits, but attention may be called from its own code."""
    role: Role = NO_ROLE


def select_modules(model: nn.Module, include: str | None = None, exclude: str | None = None) -> list[Target]:
    """Modules to watch, in the order of `named_modules()`; `include` and `exclude` are regular expressions on names."""
    modules = dict(model.named_modules())
    blocks = {path for path in modules if _is_repeated(path, modules)}
    wanted = {
        path: module
        for path, module in modules.items()
        if path and not isinstance(module, _CONTAINERS) and _wanted(path, module, modules, blocks)
    }
    seen = {id(module) for module in wanted.values()}
    chosen = [Target("", "", model, False)]

    def kept(path: str) -> bool:
        name = site_name(path)
        return not (include and not re.search(include, name)) and not (exclude and re.search(exclude, name))

    def repeats(module: nn.Module) -> bool:
        return isinstance(module, nn.Sequential) and len(module) > 0 and id(module[-1]) in seen

    shown = {path for path, module in wanted.items() if kept(path) and not repeats(module)}
    roles = find_roles(modules, blocks, shown)
    for path, module in modules.items():
        role = roles.get(path, NO_ROLE) if kept(path) else NO_ROLE
        if path and (role or path in shown or (path in wanted and list(module.children()))):
            chosen.append(Target(path, site_name(path), module, path in shown, role))
    return chosen


def _is_repeated(path: str, modules: dict[str, nn.Module]) -> bool:
    parent = modules.get(path.rpartition(".")[0])
    return path != "" and isinstance(parent, nn.ModuleList | nn.Sequential) and bool(list(modules[path].children()))


def _wanted(path: str, module: nn.Module, modules: dict[str, nn.Module], blocks: set[str]) -> bool:
    if list(module.children()):
        return True
    if not any(True for _ in module.parameters(recurse=False)):
        return False
    parents = [path[:i] for i, c in enumerate(path) if c == "."]
    inside = [p for p in parents if p in blocks]
    if not inside or is_gate(path, modules):
        return True
    is_norm = any(word in type(module).__name__.lower() for word in _NORMS)
    return path.rpartition(".")[0] in blocks and not is_norm and not isinstance(modules[inside[-1]], nn.Sequential)


def looks_like_attention(module: nn.Module) -> bool:
    """By class name; used only to notice an attention whose call was never seen."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    name = type(module).__name__.lower()
    return bool(re.search(r"attn$|attention$|attention2d$", name)) and any(True for _ in module.parameters())

"""Which modules are watched, and what they are called.

Watched are: every module that contains others (a block, its attention, its MLP: residual branches are such modules);
leaves with parameters outside of repeated blocks (embeddings, final norm, head, the layers of a plain `nn.Sequential`);
leaves that are a branch of a block (no module around them); and the gates of gated MLPs.
A `Sequential` is left out when its last child is watched: they return the same tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.roles import NO_ROLE, Role, find_roles, is_gate

if TYPE_CHECKING:
    from stabwatch.hooks.base.views import SiteView

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
    """A watched module: its name, its role, and what belongs to it alone.

    It is kept in the module's `__dict__` as `_stabwatch`, and not in a closure, so that identical blocks share one
    compiled graph. A deep copy or a pickle of the model has None in its place: copies are not watched.
    """

    def __init__(self, name: str, context: TapContext, parent: Site | None, role: Role, attention: bool) -> None:
        self.name = name
        self.context = context
        self.flags = context.flags
        self.parent = parent
        self.role = role
        self.attention_like = attention
        self.heads = 0
        self.activation: Tensor | None = None
        """Accumulator of the moments of its outputs, on the module's device; None where outputs are not watched."""
        self.exact: Tensor | None = None
        """Accumulator of its exact largest attention logit; None where it cannot call attention."""
        self.bracket: int | None = None
        """Row in `Brackets`, for modules that may call attention; also their index in the round robin."""
        self.index: int | None = None
        """Index among the sites that are measured in turn."""
        self.views: tuple[type[SiteView], ...] = ()
        """Views of its calls for which there are probes."""
        self.graph_handle: Tensor | None = None
        self.gradient_handle: Tensor | None = None
        """int64 (2,) on the host: the site's number, and how often a compiled graph has called (`compiled.py`)."""
        self.input: Tensor | None = None
        """Input of a block while the block runs, for its writers."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class WatchedModule(nn.Module):
    """A watched module, for type checkers: its `_stabwatch` is in its `__dict__`."""

    _stabwatch: Site | None


@dataclass(frozen=True)
class Target:
    """One module to hook."""

    path: str
    name: str
    module: nn.Module
    activation: bool
    """Are its outputs watched? Not those of the model itself: they are seen as logits."""
    role: Role = NO_ROLE


def select_modules(model: nn.Module, include: str | None = None, exclude: str | None = None) -> list[Target]:
    """Modules to watch, in the order of `named_modules()`; `include` and `exclude` are regular expressions on names."""
    modules = dict(model.named_modules())
    blocks = {path for path in modules if _is_repeated(path, modules)}
    candidates = {
        path: module
        for path, module in modules.items()
        if path and not isinstance(module, _CONTAINERS) and _is_candidate(path, module, modules, blocks)
    }
    seen = {id(module) for module in candidates.values()}
    targets = [Target("", "", model, False)]

    def kept(path: str) -> bool:
        name = site_name(path)
        return not (include and not re.search(include, name)) and not (exclude and re.search(exclude, name))

    def repeats(module: nn.Module) -> bool:
        return isinstance(module, nn.Sequential) and len(module) > 0 and id(module[-1]) in seen

    shown = {path for path, module in candidates.items() if kept(path) and not repeats(module)}
    roles = find_roles(modules, blocks, shown)
    for path, module in modules.items():
        role = roles.get(path, NO_ROLE) if kept(path) else NO_ROLE
        if path and (role or path in shown or (path in candidates and list(module.children()))):
            targets.append(Target(path, site_name(path), module, path in shown, role))
    return targets


def _is_repeated(path: str, modules: dict[str, nn.Module]) -> bool:
    parent = modules.get(path.rpartition(".")[0])
    return path != "" and isinstance(parent, nn.ModuleList | nn.Sequential) and bool(list(modules[path].children()))


def _is_candidate(path: str, module: nn.Module, modules: dict[str, nn.Module], blocks: set[str]) -> bool:
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

"""Which modules are watched, and what they are called.

Watched are: every module that contains others (a block, its attention, its MLP: residual branches are such modules);
leaves with parameters outside of repeated blocks (embeddings, final norm, head, the layers of a plain `nn.Sequential`);
leaves that are a branch of a block (no module around them); and the gates of gated MLPs.
A `Sequential` is left out when its last child is watched: they return the same tensor.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from stabwatch.distributed.flat import is_flattened
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import HOOK_TABLES, Ours
from stabwatch.hooks.base.loops import Loop
from stabwatch.hooks.base.roles import NO_ROLE, Role, find_roles, is_gate
from stabwatch.hooks.base.tree import ModuleTree, held

if TYPE_CHECKING:
    from stabwatch.hooks.base.view import SiteView

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_NORMS = ("norm",)
_ATTENTION = re.compile(r"attn|attention|msa$", re.IGNORECASE)
_MAPS = r"(_?(proj|projection|lin|linear|layer|net|weight|a_proj|b_proj))?$"
_QUERIES = re.compile(r"^((w|to|fc|lin|linear|proj)_?)?(q|query|queries)" + _MAPS, re.IGNORECASE)
_KEYS = re.compile(r"^((w|to|fc|lin|linear|proj)_?)?(k|key|keys|kv|key_value)" + _MAPS, re.IGNORECASE)
_FUSED = re.compile(r"^((w|to|fc|lin|linear|in|proj)_?)?(qkv|query_key_value)" + _MAPS + "|^c_attn$", re.IGNORECASE)


class Site:
    """A watched module: its name, its role, and what belongs to it alone.

    It is kept in the module's `__dict__` as `_stabwatch`, and not in a closure, so that identical blocks share one
    compiled graph. Copies and pickles of the model are without it, or have None in its place where a class makes them
    in a way of its own: they are not watched.
    parent: the nearest watched module around it. shared: the module is reachable in several ways.
    """

    def __init__(self, target: Target, context: TapContext, parent: Site | None) -> None:
        self.name = target.name
        self.context = context
        self.flags = context.flags
        self.parent = parent
        self.role = target.role
        self.shared = target.shared
        self.module = weakref.ref(target.module)
        self.attention_like = looks_like_attention(target.module)
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
        self.in_subgraph = False
        """A compiler has traced it inside of an activation checkpoint, where nothing is measured."""
        self.calls = 0
        """Measured calls in the forward with the number `forward`."""
        self.forward = 0
        self.loop: Loop | None = None
        """Of a module that is known to be called several times in one forward."""
        self.codes: Tensor | None = None
        """Of a codebook: how often each row was looked up in measured steps, float32 (rows,)."""
        self.outer: Site | None = None
        """Of a model that runs inside of another watched one: where it was called."""

    def around(self) -> Iterator[Site]:
        """The watched modules around it, from the inside to the outside, without the model itself."""
        site = self.parent
        while site is not None and site.name:
            yield site
            site = site.parent

    def called(self) -> int:
        """Counts a measured call; returns its number within the forward, from 0."""
        if self.forward != self.context.forwards:
            self.forward, self.calls = self.context.forwards, 0
        self.calls += 1
        return self.calls - 1

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """The copy of the module is not watched: the copies of our hooks are taken out of it."""
        module = self.module()
        copies = [] if module is None else [memo.get(id(module.__dict__.get(table))) or {} for table in HOOK_TABLES]
        for key in [key for copied in copies for key, hook in copied.items() if isinstance(hook, Ours)]:
            for copied in copies:
                copied.pop(key, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class WatchedModule(nn.Module):
    """A watched module, for type checkers: its `_stabwatch` is in its `__dict__`."""

    _stabwatch: Site | None


@dataclass(frozen=True)
class Target:
    """One module to hook. around: names of the modules around it, from the inside to the outside."""

    name: str
    module: nn.Module
    activation: bool
    """Are its outputs watched? Not those of the model itself: they are seen as logits."""
    role: Role = NO_ROLE
    around: tuple[str, ...] = ()
    shared: bool = False
    """Is it reachable in several ways?"""

    @property
    def contains(self) -> bool:
        """Does it contain other modules?"""
        return _contains(self.module)


def select_modules(model: nn.Module, include: str | None = None, exclude: str | None = None) -> list[Target]:
    """Modules to watch, parents first; `include` and `exclude` are regular expressions on names."""
    tree = ModuleTree(model)
    modules = tree.modules
    blocks = {name for name in modules if _is_repeated(name, tree)}
    candidates = {name for name in modules if name and _is_candidate(name, tree, blocks)}

    def kept(name: str) -> bool:
        return not (include and not re.search(include, name)) and not (exclude and re.search(exclude, name))

    def repeats(name: str) -> bool:
        children = tree.children(name)
        return isinstance(modules[name], nn.Sequential) and bool(children) and children[-1] in candidates

    shown = {name for name in candidates - tree.beside if kept(name) and not repeats(name)}
    roles = find_roles(tree, blocks, shown)
    targets = [Target("", modules[""], False)]
    for name, module in modules.items():
        role = roles.get(name, NO_ROLE) if kept(name) else NO_ROLE
        if name and (role or name in shown or (name in candidates and _contains(module))):
            targets.append(Target(name, module, name in shown, role, tuple(tree.above(name)), name in tree.shared))
    return targets


def _contains(module: nn.Module) -> bool:
    return any(name != "parametrizations" for name, child in module._modules.items() if child is not None)


def _is_repeated(name: str, tree: ModuleTree) -> bool:
    around = next(tree.above(name), "")
    if not around and isinstance(tree.modules[""], nn.ModuleList):
        return False  # several models (stages of a pipeline), and not blocks of one
    parent = tree.modules[around]
    return name != "" and isinstance(parent, nn.ModuleList | nn.Sequential) and _contains(tree.modules[name])


def _is_candidate(name: str, tree: ModuleTree, blocks: set[str]) -> bool:
    module = tree.modules[name]
    if isinstance(module, _CONTAINERS):
        return False
    if any(isinstance(tree.modules[outer], ParametrizationList) for outer in (name, *tree.above(name))):
        return False  # it computes one tensor of a layer
    if _contains(module):
        return True
    around = tree.modules[next(tree.above(name), "")]
    if isinstance(around, nn.MultiheadAttention) and type(around).forward is nn.MultiheadAttention.forward:
        return False  # its projections are applied as functions
    if not is_flattened(module) and not any(True for _ in module.parameters()):
        return False
    inside = [outer for outer in tree.above(name) if outer in blocks]
    if not inside or is_gate(name, tree):
        return True
    is_norm = any(word in type(module).__name__.lower() for word in _NORMS)
    return (
        next(tree.above(name), "") == inside[0]
        and not is_norm
        and not isinstance(tree.modules[inside[0]], nn.Sequential)
    )


def looks_like_attention(module: nn.Module) -> bool:
    """By its class name, or by projections for queries and keys: for attention whose call was never seen."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    if not _ATTENTION.search(type(module).__name__) and not projects_queries(module):
        return False
    own = any(nn.parameter.is_lazy(p) or p.dim() > 1 for p in module.parameters())
    return own or any((weight := held(m)) is not None and weight.dim() > 1 for m in module.modules())


def projects_queries(module: nn.Module) -> bool:
    """Has it projections for queries and keys among its own children, apart or in one?"""
    names = [name for name, child in module._modules.items() if child is not None]
    apart = any(_QUERIES.match(name) for name in names) and any(_KEYS.match(name) for name in names)
    return apart or any(_FUSED.match(name) for name in names)

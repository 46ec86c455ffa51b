"""Forward hooks: plain functions shared by all modules, so that torch.compile traces and shares them."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from stabwatch.hooks import compiled
from stabwatch.hooks.base.accumulators import Buffer
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.sites import Site, Target, WatchedModule, looks_like_attention
from stabwatch.hooks.base.tensors import device_of, first_tensor, new_accumulator
from stabwatch.hooks.base.views import CALL_VIEWS
from stabwatch.hooks.module_calls import measure_call
from stabwatch.hooks.probes import activation
from stabwatch.hooks.probes.attention import BRACKET, EXACT
from stabwatch.hooks.probes.depth import Stacks
from stabwatch.hooks.probes.directional import OwnCall
from stabwatch.kernels.where import tracing
from stabwatch.runlog import Accumulator


class Cursor:
    """Where the forward pass is now. One per process: torch's functions do not say which module called them."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self.root: Site | None = None


CURSOR = Cursor()


def in_backward() -> bool:
    """True while autograd runs: a forward seen then is a recomputation, which was counted before."""
    return torch._C._current_graph_task_id() != -1


def before_root(module: WatchedModule, args: Any, kwargs: Any) -> None:
    """Pre-hook of the model: does this forward belong to a training step?"""
    site = module._stabwatch
    if site is None:
        return
    training = torch.is_grad_enabled() and module.training and not OwnCall.now
    if training and not tracing():
        site.context.events.forward_begins((*args, *kwargs.values()), kwargs)
    site.flags.recording = training and site.flags.open
    CURSOR.root = site
    CURSOR.site = site


def after_root(module: WatchedModule, args: Any, output: Any) -> None:
    """Hook of the model: its `.loss`, when it computes one itself."""
    site = module._stabwatch
    if site is None:
        return
    CURSOR.site = None
    if not tracing() and site.flags.recording:
        site.context.events.forward_ended(output)


def before(module: WatchedModule, args: Any) -> None:
    """Pre-hook of a watched module."""
    site = module._stabwatch
    CURSOR.site = site
    if not tracing() and site is not None and site.role.residual and site.flags.recording and site.flags.deep:
        site.input = first_tensor(args)


def after(module: WatchedModule, args: Any, output: Any) -> Any:
    """Hook of a watched module. While a compiler traces, it may return a new output, with operators in its graph."""
    site = module._stabwatch
    if site is None:
        return None
    CURSOR.site = site.parent
    if not site.flags.recording:
        return None
    if tracing():
        site.flags.traced = True
        if not site.flags.sampled:
            return None
        if site.activation is not None:
            activation.measure(site, output)
        return compiled.tap(site, args, output)
    if (site.flags.sampled or site.flags.deep or site.flags.outputs) and not in_backward():
        if site.flags.sampled and site.activation is not None:
            site.context.isolate(activation.ACTIVATION, activation.measure, site, output)
        measure_call(site, module, args, output)
    site.input = None
    return None


class ModuleTaps:
    """The hooks of one watch on one model."""

    def __init__(self, targets: list[Target], context: TapContext) -> None:
        self.sites: dict[str, Site] = {}
        self._modules: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []
        self._index = count()
        for target in targets:
            parent = self._parent(target.path)
            site = Site(target.name, context, parent, target.role, looks_like_attention(target.module))
            self._prepare(target, site)
            self._hook(target, site)
            self.sites[target.path] = site
        self.stacks = Stacks([(target, self.sites[target.path]) for target in targets], context.device)

    def _parent(self, path: str) -> Site | None:
        while path:
            path = path.rpartition(".")[0]
            if path in self.sites:
                return self.sites[path]
        return None

    def _prepare(self, target: Target, site: Site) -> None:
        """Give a site its accumulators and its index in the round robin."""
        context, device = site.context, device_of(target.module, site.context.device)
        if target.activation:
            site.activation = new_accumulator("moments", device)
        if not target.path or list(target.module.children()) or site.attention_like:
            site.bracket = context.brackets.add(BRACKET.accumulator(site.name))
            site.exact = new_accumulator("attention_exact", device)
            site.heads = int(getattr(target.module, "num_heads", 0) or 0)
        if target.role or site.bracket is not None:
            compiled.graph_handle(site, target.module)
        context.declare_site(site)
        site.views = tuple(view for view in CALL_VIEWS if context.of(view) and view.seen_at(site))
        site.index = next(self._index) if context.takes_turns(site) else None

    def _hook(self, target: Target, site: Site) -> None:
        object.__setattr__(target.module, "_stabwatch", site)
        self._modules.append(target.module)
        if target.path:
            self._handles.append(target.module.register_forward_pre_hook(before))
            self._handles.append(target.module.register_forward_hook(after))
        else:
            self._handles.append(target.module.register_forward_pre_hook(before_root, with_kwargs=True))
            self._handles.append(target.module.register_forward_hook(after_root))

    def register(self, buffer: Buffer) -> None:
        """Put the sites' own accumulators into the step's buffer."""
        for site in self.sites.values():
            if site.activation is not None:
                buffer.add((activation.ACTIVATION.accumulator(site.name),), partial(getattr, site, "activation"))
            if site.exact is not None:
                buffer.add((EXACT.accumulator(site.name),), partial(getattr, site, "exact"))
        self.stacks.register(buffer)

    @property
    def expected(self) -> tuple[Accumulator, ...]:
        """The accumulators that every run should fill."""
        sites = [site for site in self.sites.values() if site.activation is not None]
        return tuple(activation.ACTIVATION.accumulator(site.name) for site in sites)

    def remove(self) -> None:
        """Take every hook and every attribute off the model again."""
        for handle in self._handles:
            handle.remove()
        for module in self._modules:
            module.__dict__.pop("_stabwatch", None)
        if CURSOR.root in self.sites.values():
            CURSOR.root = CURSOR.site = None

"""Forward hooks: three plain functions shared by all modules, so that torch.compile traces and shares them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from stabwatch.hooks import compiled
from stabwatch.hooks.base.context import MeasurementFlags
from stabwatch.hooks.base.sites import Site, Target, looks_like_attention
from stabwatch.hooks.base.tensors import device_of, first_tensor, new_accumulator
from stabwatch.hooks.probes import experts, residual
from stabwatch.hooks.probes.depth import Stacks
from stabwatch.hooks.probes.directional import Probing
from stabwatch.kernels.moments import update_moments
from stabwatch.kernels.where import is_fake, tracing


class Cursor:
    """Where the forward pass is now. One per process: torch's functions do not say which module called them."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self.root: Site | None = None


CURSOR = Cursor()


def in_backward() -> bool:
    """True while autograd runs: a forward seen then is a recomputation, counted already."""
    return torch._C._current_graph_task_id() != -1


def before_root(module: nn.Module, args: Any, kwargs: Any) -> None:
    """Pre-hook of the model: does this forward belong to a training step?"""
    site: Site | None = module._stabwatch  # type: ignore[assignment]
    if site is None:
        return
    training = torch.is_grad_enabled() and module.training and not Probing.now
    if training and not tracing():
        site.watch.forward_begins((*args, *kwargs.values()), kwargs)
    site.flags.recording = training and site.flags.open
    CURSOR.root = site
    CURSOR.site = site


def after_root(module: nn.Module, args: Any, output: Any) -> None:
    """Hook of the model: its `.loss`, when it computes one itself."""
    site: Site | None = module._stabwatch  # type: ignore[assignment]
    if site is None:
        return
    CURSOR.site = None
    if not tracing() and site.flags.recording:
        site.watch.forward_ended(output)


def before(module: nn.Module, args: Any) -> None:
    """Pre-hook of a watched module."""
    site: Site | None = module._stabwatch  # type: ignore[assignment]
    CURSOR.site = site
    if not tracing() and site is not None and site.role.residual and site.flags.recording and site.flags.deep:
        site.input = first_tensor(args)


def after(module: nn.Module, args: Any, output: Any) -> Any:
    """Hook of a watched module: the moments of its output. While a compiler traces, it may give the output anew."""
    site: Site | None = module._stabwatch  # type: ignore[assignment]
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
            _measure(site, output)
        return compiled.tap(site, args, output)
    if (site.flags.sampled or site.flags.deep or site.flags.plugins) and not in_backward():
        _see(site, module, args, output)
    site.input = None
    return None


def _see(site: Site, module: nn.Module, args: Any, output: Any) -> None:
    isolation = site.watch.isolation
    if site.flags.sampled and site.activation is not None:
        isolation.run("activation", "sampled", _measure, site, output)
    if site.flags.sampled and site.role.top_k:
        isolation.run("router", "sampled", experts.routed, site, module, args)
    if site.flags.is_due(site.index):
        residual.observe(site, module, args, output)
    if site.activation is not None:
        site.watch.plugins.activation(site, output)


def _measure(site: Site, output: Any) -> None:
    x = first_tensor(output)
    if x is None or x.numel() == 0 or site.activation is None or (not tracing() and is_fake(x)):
        return
    with torch.no_grad():
        if not tracing() and site.activation.device != x.device:
            site.activation = new_accumulator("moments", x.device)
        update_moments(x.detach(), site.activation)


class ModuleTaps:
    """The hooks of one watch on one model."""

    def __init__(self, chosen: list[Target], flags: MeasurementFlags, watch: Any, device: torch.device) -> None:
        self.sites: dict[str, Site] = {}
        self._modules: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []
        for item in chosen:
            parent = self._parent(item.path)
            site = Site(item.name, flags, watch, parent, looks_like_attention(item.module))
            self._hook(item, site, device_of(item.module, device))
            self.sites[item.path] = site
        self.stacks = Stacks([(item, self.sites[item.path]) for item in chosen], device)
        self.deep = residual.DeepTaps({self.sites[item.path]: item.role for item in chosen}, device)

    def _parent(self, path: str) -> Site | None:
        while path:
            path = path.rpartition(".")[0]
            if path in self.sites:
                return self.sites[path]
        return None

    def _hook(self, item: Target, site: Site, device: torch.device) -> None:
        if item.activation:
            site.activation = new_accumulator("moments", device)
        if not item.path or list(item.module.children()) or site.attention_like:
            site.bracket = sum(s.bracket is not None for s in self.sites.values())
            site.exact = new_accumulator("attention_exact", device)
            site.heads = int(getattr(item.module, "num_heads", 0) or 0)
        if item.role or site.bracket is not None:
            compiled.graph_handle(site, item.module)
        object.__setattr__(item.module, "_stabwatch", site)
        self._modules.append(item.module)
        if item.path:
            self._handles.append(item.module.register_forward_pre_hook(before))
            self._handles.append(item.module.register_forward_hook(after))
        else:
            self._handles.append(item.module.register_forward_pre_hook(before_root, with_kwargs=True))
            self._handles.append(item.module.register_forward_hook(after_root))

    def register(self, buffer: Any) -> None:
        """Put the sites' cells into a StepBuffer."""
        for site in self.sites.values():
            for cell, field in site.fields().items():
                buffer.add((cell,), lambda site=site, field=field: getattr(site, field))
        self.stacks.register(buffer)
        self.deep.store.register(buffer)

    @property
    def attention_names(self) -> tuple[str, ...]:
        """Names of the sites that have a row in `Brackets`, in row order."""
        return tuple(site.name for site in self.sites.values() if site.bracket is not None)

    def remove(self) -> None:
        """Take every hook and every attribute off the model again."""
        for handle in self._handles:
            handle.remove()
        for module in self._modules:
            module.__dict__.pop("_stabwatch", None)
        if CURSOR.root in self.sites.values():
            CURSOR.root = CURSOR.site = None

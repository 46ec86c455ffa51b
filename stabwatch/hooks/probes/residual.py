"""The deep tier at modules: residual stream, residual writers, activation functions, experts.

Sites take turns, so that no step carries all. Inside a compiled graph they are called by `traced.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.accumulators import Accumulators
from stabwatch.hooks.base.roles import NO_ROLE, Role
from stabwatch.hooks.base.sampling import ELEMENTS, spread
from stabwatch.hooks.base.side_effects import call_isolated
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.hooks.probes import experts
from stabwatch.kernels.exponent_histogram import exponents
from stabwatch.kernels.geometry import stability
from stabwatch.kernels.mean_mode import dead_units, mean_mode
from stabwatch.kernels.merge import Partials
from stabwatch.kernels.moments import moments
from stabwatch.kernels.precision import precision
from stabwatch.kernels.saturation import saturation
from stabwatch.kernels.shape import shape
from stabwatch.kernels.tokens import tokens
from stabwatch.runlog import Accumulator

POINTS = 128
"""Tokens (or samples) between which distances are taken."""
PARTITIONS = 8
"""Random halves of the features per measurement."""
NO_TOKENS = "its input has no token axis: it is not (batch, tokens, features)"
NO_GRADIENT = "its output needs no gradient (a frozen branch, or reentrant checkpointing)"

NO_TRUNK = "its block gets no tensor as a positional argument"
IN_PLACE = "it works in place: its input is gone when it returns"

_RESIDUAL = ("shape", "tokens", "geometry", "precision", "exponents")
_WRITER = ("mean_mode", "units", "branch")
_ATTENTION = ("attention_entropy", "attention_contraction")


class DeepTaps:
    """Gives each site its role and its place in the turns, keeps the cells, and a generator for what is drawn."""

    def __init__(self, roles: Mapping[Site, Role], device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(0)
        cells: list[Accumulator] = []
        busy = [site for site, role in roles.items() if role.residual or role.writer or role.nonlinear or role.stack]
        for place, site in enumerate(busy):
            site.index = place
        for site, role in roles.items():
            site.role = role
            cells += [Accumulator("residual", site.name, r) for r in _RESIDUAL if role.residual]
            cells += [Accumulator("probe", site.name, "drift")] * role.residual
            cells += [Accumulator("writer", site.name, r) for r in _WRITER if role.writer]
            cells += [Accumulator("nonlinearity", site.name, "saturation")] * role.nonlinear
            cells += experts.cells(site, role)
            cells += [Accumulator("attention", site.name, r) for r in _ATTENTION if site.bracket is not None]
        self.store = Accumulators(cells, device)


def observe(site: Site, module: nn.Module, args: Any, output: Any) -> None:
    """The deep signals of one call of a module whose turn it is."""
    if site.role.nonlinear:
        site.watch.isolation.run("saturation", "deep", _saturation, site, module, args)
    if site.role.stack:
        site.watch.isolation.run("experts", "deep", experts.stacked, site, module, args)
    out = first_tensor(output)
    if out is None or out.numel() == 0:
        return
    if site.role.residual:
        site.watch.isolation.run("residual", "deep", _residual, site, out.detach())
    if site.role.writer:
        site.watch.isolation.run("mean_mode", "deep", _writer, site, args, out)


def observe_traced(site: Site, module: nn.Module, tensors: tuple[Tensor, ...]) -> None:
    """The same where a compiled graph runs: `tensors` are what the role asks for, and the output last.

    What a writer adds is not seen beside its block's input here: buffers of a graph are used again.
    """
    if site.role.nonlinear:
        site.watch.isolation.run("saturation", "deep", _saturation, site, module, tensors)
    if site.role.stack:
        site.watch.isolation.run("experts", "deep", experts.stacked, site, module, tensors)
    if site.role.residual:
        site.watch.isolation.run("residual", "deep", _residual, site, tensors[-1])


def observe_gradient(site: Site, inputs: Tensor, gradient: Tensor) -> None:
    """The gradient of a writer's output, where a compiled graph runs."""
    inputs, gradient = _samples(inputs, site.role), _samples(gradient, site.role)
    if inputs.shape[1] < 2:
        site.watch.unmeasured("writer", site.name, NO_TOKENS)
    else:
        groups = site.watch.token_groups_seen.of(inputs)
        site.watch.isolation.run("mean_mode", "deep", _written, site, inputs, gradient, groups)


@torch.no_grad()
def _residual(site: Site, out: Tensor) -> None:
    x = _as_tokens(out, site.role)
    rows = spread(x.flatten(0, -2), max(1, ELEMENTS // x.shape[-1]))
    _run(site, "shape", lambda: shape(rows))
    _run(site, "precision", lambda: precision(rows))
    _run(site, "exponents", lambda: exponents(rows))
    samples = _as_tokens(_samples(out, site.role), site.role)
    if samples.dim() == 3 and samples.shape[1] > 1:
        _run(site, "tokens", lambda: tokens(samples, site.watch.token_groups_seen.of(samples)))
    points = points_of(out, site.role)
    if points.shape[0] > 3 and points.shape[1] > 3:
        _run(site, "geometry", lambda: stability(points, PARTITIONS, site.watch.deep.generator))


def _run(site: Site, reduction: str, measure: Callable[[], Tensor]) -> None:
    """Under a guard of its own: what fails takes nothing else with it."""
    site.watch.isolation.run(reduction, "deep", lambda: _update(site, "residual", reduction, measure()))


def _writer(site: Site, args: Any, out: Tensor) -> None:
    _branch(site, out)
    found = first_tensor(args)
    inputs = None if found is None else _samples(found, site.role)
    if inputs is None or inputs.dim() != 3 or inputs.shape[1] < 2:
        site.watch.unmeasured("writer", site.name, NO_TOKENS)
    elif not out.requires_grad:
        site.watch.unmeasured("writer", site.name, NO_GRADIENT)
    else:
        y, groups = inputs.detach(), site.watch.token_groups_seen.of(inputs)
        out.register_hook(
            lambda d: site.watch.isolation.run("mean_mode", "deep", _written, site, y, _samples(d, site.role), groups)
        )


@torch.no_grad()
def _written(site: Site, inputs: Tensor, gradients: Tensor, groups: Tensor | None) -> None:
    _update(site, "writer", "mean_mode", mean_mode(inputs, gradients, groups))
    _update(site, "writer", "units", dead_units(inputs))


@torch.no_grad()
def _branch(site: Site, out: Tensor) -> None:
    """What the writer adds, beside the input of the block that it stands in."""
    block = site.parent
    while block is not None and not block.role.residual:
        block = block.parent
    if block is None or block.input is None:
        site.watch.unmeasured("branch", site.name, NO_TRUNK)
        return
    branch, trunk = moments(out.detach()), moments(block.input.detach())
    parts = (branch[0] - branch[2], branch[1], trunk[0] - trunk[2], trunk[1])
    site.watch.deep.store.update("writer", site.name, "branch", _together(parts))


def _together(parts: tuple[Any, ...]) -> Partials:
    """Numbers on the host stay numbers; those on a device become a tensor."""
    return torch.stack(parts) if isinstance(parts[0], Tensor) else parts


def _saturation(site: Site, module: nn.Module, args: Any) -> None:
    """The slope of an activation function at some of its inputs, found by calling its `forward` on them again."""
    x = first_tensor(args)
    if getattr(module, "inplace", False):
        site.watch.unmeasured("nonlinearity", site.name, IN_PLACE)
    elif x is not None and x.numel() and x.dim() > 1:
        rows = _as_tokens(x.detach()).flatten(0, -2)
        rows = spread(rows, max(1, ELEMENTS // rows.shape[-1]))
        _update(site, "nonlinearity", "saturation", saturation(lambda x: call_isolated(module, x), rows))


def points_of(x: Tensor, role: Role = NO_ROLE) -> Tensor:
    """(n, D): at most `POINTS` tokens or samples, evenly spread."""
    return spread(_as_tokens(x, role).flatten(0, -2), POINTS)


def _update(site: Site, tap: str, reduction: str, partials: Tensor) -> None:
    site.watch.deep.store.update(tap, site.name, reduction, partials)


def _samples(x: Tensor, role: Role) -> Tensor:
    """Samples before tokens."""
    return x.transpose(0, 1) if role.sequence_first and x.dim() == 3 else x


def _as_tokens(x: Tensor, role: Role = NO_ROLE) -> Tensor:
    """(B, T, D) or (N, D); the places of an image are its tokens, its channels their features."""
    if x.dim() == 4:
        return x.flatten(1, 2) if role.features_last(x.shape) else x.flatten(2).mT
    return x if x.dim() in (2, 3) else x.reshape(-1, x.shape[-1])

"""Measurements inside a compiled graph: an opaque operator that reads a tensor when the graph runs.

The operator is part of the graph of measured steps, and decides by itself whether its site is due: all deep steps share
one graph, and steps without measurements have another graph without the operator. It measures the sampled tier too: as
operations of the graph that would be most of what the compiler has to translate. A site is identified by the number in
its graph handle, a tensor on the host: a graph that several blocks share gets it as an input. The operator writes into
the handle, so that compilers do not remove it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.hooks.base.views import AttentionCall, LogitsCall
from stabwatch.hooks.module_calls import measure_call, measure_gradient
from stabwatch.hooks.probes import activation, attention

_TAGS = tuple(tag for name, tag in torch.Tag.__members__.items() if name == "cudagraph_unsafe")
"""A recorded CUDA graph does not call Python; versions of torch that know the tag leave the operator out of it."""
_numbers = count()
_sites: WeakValueDictionary[int, Site] = WeakValueDictionary()
_modules: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()


def _in_subgraph() -> bool:
    """Is a compiler tracing the body of an activation checkpoint, or of another operator that contains a graph?

    Such a body is computed again, or differentiated as a whole: nothing in it may be written to in place.
    """
    tracer = torch._dynamo.symbolic_convert.InstructionTranslator.current_tx().output.current_tracer
    return tracer.parent is not None


_in_subgraph._dynamo_marked_constant = True  # type: ignore[attr-defined]
in_subgraph: Callable[[], bool] = _in_subgraph
"""`_in_subgraph` at the place that is traced: a constant of the graph. The mark is all that
`torch.compiler.assume_constant_result` sets; calling that would import the compiler, which takes a second."""


def _run_plainly(action: Callable[..., None], *args: Any) -> None:
    action(*args)


_UNCHECKED = "_disable_side_effect_safety_checks_for_current_subtracer"


def unchecked(action: Callable[..., Any], *args: Any) -> Any:
    """Calls a function that sets an attribute of ours, also inside an activation checkpoint.

    To have set it twice, when the checkpoint is computed again, is harmless. Only called while dynamo traces.
    """
    return getattr(torch._dynamo.utils, _UNCHECKED, _run_plainly)(action, *args)


def graph_handle(site: Site, module: nn.Module) -> None:
    """Give a site its handles, by which a graph refers to it: one for the forward, one for the backward."""
    number = next(_numbers)
    _sites[number], _modules[number] = site, module
    site.graph_handle, site.gradient_handle = (torch.tensor([number, 0]) for _ in range(2))


@torch.library.custom_op("stabwatch::observe", mutates_args=("graph_handle",), tags=_TAGS)
def observe(graph_handle: Tensor, tensors: list[Tensor]) -> None:
    """A module returned the last of `tensors`; the others are its inputs, where its role needs them."""
    graph_handle[1] += 1
    number = int(graph_handle[0])
    site, module = _sites.get(number), _modules.get(number)
    if site is None or module is None or torch._C._current_graph_task_id() != -1:
        return  # the watch has ended, or this is a recomputation, counted already
    if site.activation is not None:
        site.context.isolate(activation.ACTIVATION, activation.measure, site, tensors[-1])
    if site.role.residual or site.role.needs_inputs:
        measure_call(site, module, tuple(tensors[:-1]), tensors[-1], in_graph=True)


@torch.library.custom_op("stabwatch::observe_gradient", mutates_args=("graph_handle",), tags=_TAGS)
def observe_gradient(graph_handle: Tensor, inputs: list[Tensor], gradient: Tensor) -> None:
    """A block, or a residual writer that was called with `inputs`, got this gradient of its output."""
    graph_handle[1] += 1
    site = _sites.get(int(graph_handle[0]))
    if site is not None:
        measure_gradient(site, inputs, gradient)


@torch.library.custom_op("stabwatch::observe_attention", mutates_args=("graph_handle",), tags=_TAGS)
def observe_attention(
    graph_handle: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> None:
    """`scaled_dot_product_attention` was called with these."""
    graph_handle[1] += 1
    site = _sites.get(int(graph_handle[0]))
    if site is None or torch._C._current_graph_task_id() != -1:
        return
    if site.flags.sampled:
        given = site.context.input.attention
        site.context.isolation.run("token_order", "sampled", given, query, key, mask, is_causal)
    if site.exact is not None:
        call = (site, query, key, mask, is_causal, scale)
        site.context.isolation.run(attention.EXACT.name, site.flags.tier, attention.exact, *call)
    site.context.measure_in_graph(AttentionCall, site.bracket, site, query, key, mask, is_causal, scale)


@torch.library.custom_op("stabwatch::observe_logits", mutates_args=("graph_handle",), tags=_TAGS)
def observe_logits(
    graph_handle: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smooth: float
) -> None:
    """`cross_entropy` was called with these."""
    graph_handle[1] += 1
    site = _sites.get(int(graph_handle[0]))
    if site is None or torch._C._current_graph_task_id() != -1 or not logits.numel():
        return
    site.context.measure_in_graph(LogitsCall, None, logits, target, weight, ignored, smooth)


@observe.register_fake
def _(graph_handle: Tensor, tensors: list[Tensor]) -> None:
    return None


@observe_gradient.register_fake
def _(graph_handle: Tensor, inputs: list[Tensor], gradient: Tensor) -> None:
    return None


@observe_attention.register_fake
def _(
    graph_handle: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> None:
    return None


@observe_logits.register_fake
def _(graph_handle: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smooth: float) -> None:
    return None


class _ObservedGradient(torch.autograd.Function):
    """The identity; its backward passes the gradient to `observe_gradient`."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, graph_handle: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(graph_handle, *inputs)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        graph_handle, *inputs = ctx.saved_tensors
        observe_gradient(graph_handle, [x.detach() for x in inputs], gradient.detach())
        return gradient, None, *(None for _ in inputs)


def opaque(x: Tensor) -> bool:
    """Can an operator of ours take it? What it does with a subclass of tensors (a DTensor) is not known."""
    return type(x) in (Tensor, nn.Parameter)


def tap(site: Site, args: Any, output: Any) -> Any:
    """Called while a compiler traces a module's hook: put the operators into its graph; returns the module's output."""
    if site.graph_handle is None:
        return output
    out = first_tensor(output)
    if out is None:
        return output
    if not opaque(out):
        activation.measure(site, output)
        return output
    if site.role.residual or site.role.needs_inputs or site.activation is not None:
        inputs = [x.detach() for x in args if isinstance(x, Tensor)] if site.role.needs_inputs else []
        with torch.no_grad():
            observe(site.graph_handle, [*inputs, out.detach()])
    if (site.role.writer or site.role.residual) and out.requires_grad:
        return _with_gradient(site, args, output, out)
    return output


def _with_gradient(site: Site, args: Any, output: Any, out: Tensor) -> Any:
    """The output, whose first tensor is `out`, with an operator in its backward."""
    first = first_tensor(args) if site.role.writer else None
    inputs = () if first is None or first.dim() != 3 else (first,)
    if isinstance(output, Tensor):
        return _ObservedGradient.apply(out, site.gradient_handle, *inputs)  # type: ignore[no-untyped-call]
    if type(output) is tuple and output[0] is out:
        return _ObservedGradient.apply(out, site.gradient_handle, *inputs), *output[1:]  # type: ignore[no-untyped-call]
    return output


@torch.no_grad()
def tap_attention(
    site: Site, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> None:
    """The same for an attention call."""
    if site.graph_handle is not None:
        hidden = None if mask is None else mask.detach()
        observe_attention(site.graph_handle, query.detach(), key.detach(), hidden, causal, scale)


@torch.no_grad()
def tap_logits(site: Site, logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smooth: float) -> None:
    """The same for a call of `cross_entropy`."""
    if site.graph_handle is not None:
        weight = None if weight is None else weight.detach()
        observe_logits(site.graph_handle, logits.detach(), target.detach(), weight, ignored, smooth)

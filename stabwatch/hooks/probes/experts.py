"""Mixtures of experts: what the router would send where, and what experts that lie in one module give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.roles import Choice, Role
from stabwatch.hooks.base.side_effects import restore_side_effects
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.kernels.router import beyond, expert_moments, grouped, loads, router
from stabwatch.runlog import Accumulator

TOKENS = 1024
"""Tokens of a call that the router is asked about again, evenly spread."""
EACH = 8
"""Tokens that each expert of a stack is asked about again, of those that were sent to it."""
MOST = 64
"""Experts of a layer that have series of their own."""
OVERFLOW = 1.25
"""Capacity factor of Switch Transformers, for layers that state none."""
NO_CAPACITY = "it states no `capacity_factor`; if it drops tokens, stabwatch cannot tell"
MANY = f"more than {MOST} experts: their loads are seen together, in `router_max_violation`"
SHARDED = "its experts are sharded over ranks"
CALL = "its experts are not called with (tokens, experts of each, weights)"


def cells(site: Site, role: Role) -> Iterator[Accumulator]:
    """The cells of a router or of a stack of experts."""
    if role.top_k:
        yield Accumulator("router", site.name, "router")
        yield Accumulator("router", site.name, "capacity")
        if role.capacity:
            yield Accumulator("router", site.name, "dropped")
        yield from _each(_experts_of(site.name), role.experts, "load")
    yield from _each(site.name, role.stack, "expert")


def _each(experts: str, count: int, reduction: str) -> Iterator[Accumulator]:
    return (Accumulator("expert", f"{experts}.{i}", reduction) for i in range(count if count <= MOST else 0))


def _experts_of(router: str) -> str:
    """`layers.0.mlp.gate` and `layers.0.mlp.gate.wg` route to `layers.0.mlp.experts`."""
    owner, _, name = router.rpartition(".")
    if not any(word in name for word in ("gate", "router", "gating")):
        owner = owner.rpartition(".")[0]
    return f"{owner}.experts".strip(".")


@torch.no_grad()
def route(site: Site, weight: Tensor, bias: Tensor | None, inputs: Tensor) -> None:
    """A router's logits, from its input and weights: what it returns differs between libraries."""
    rows = inputs.detach().flatten(0, -2)
    rows = rows[:: max(1, -(-len(rows) // TOKENS))]
    kind = torch.promote_types(rows.dtype, weight.dtype)  # routers that are kept in float32 compute in it
    bias = None if bias is None else bias.detach().to(kind)
    logits = nn.functional.linear(rows.to(kind), weight.detach().to(kind), bias).float()
    store, role = site.watch.deep.store, site.role
    wanted = logits if role.choice is None else _wanted(role.choice, logits)
    load = loads(wanted, role.top_k)
    store.update("router", site.name, "router", router(logits, role.top_k, wanted))
    store.update("router", site.name, "capacity", beyond(load, OVERFLOW))
    if role.capacity:
        store.update("router", site.name, "dropped", beyond(load, role.capacity))
    else:
        site.watch.unmeasured("dropped", site.name, NO_CAPACITY)
    if role.experts > MOST:
        site.watch.unmeasured("expert", _experts_of(site.name), MANY)
    else:
        first = Accumulator("expert", f"{_experts_of(site.name)}.0", "load")
        store.update_all(first, torch.stack((load.sum().expand_as(load), load), dim=1))


def _wanted(choice: Choice, logits: Tensor) -> Tensor:
    """What the experts with the largest numbers are chosen by."""
    scores = logits.softmax(dim=-1) if choice.softmax else logits.sigmoid()
    correction: Tensor = getattr(choice.holder, choice.correction)
    return grouped(scores + correction.detach().float().flatten(), choice.groups, choice.kept)


def routed(site: Site, module: nn.Module, args: Any) -> None:
    """A router was called."""
    inputs, weight, bias = first_tensor(args), module.weight, getattr(module, "bias", None)
    if inputs is not None and isinstance(weight, Tensor) and inputs.shape[-1] == weight.shape[-1]:
        route(site, weight, bias if isinstance(bias, Tensor) else None, inputs)


@torch.no_grad()
def stacked(site: Site, module: nn.Module, args: Any) -> None:
    """Ask each expert of a stack about some of the tokens that it was given, with a weight of one.

    By `forward` itself and not by a call of the module: no hook of anybody sees it.
    """
    if any(hasattr(p, "_local_tensor") for p in module.parameters()):
        site.watch.unmeasured("expert", site.name, SHARDED)
        return
    if len(args) < 3 or not _fits(*args[:3]) or site.role.stack > MOST:
        site.watch.unmeasured("expert", site.name, CALL)
        return
    tokens, chosen = args[0].detach(), args[1]
    each = min(EACH, len(tokens))
    experts = torch.arange(site.role.stack, device=tokens.device)
    sent = (chosen[:, :, None] == experts).any(dim=1).T.float()  # (experts, tokens)
    kept, rows = sent.topk(each, dim=1)
    asked = experts.repeat_interleave(each)
    ones = torch.ones(len(asked), 1, dtype=args[2].dtype, device=tokens.device)
    with restore_side_effects(module, tokens, evaluating=True):
        out = module.forward(tokens[rows.flatten()], asked[:, None], ones)
    found = expert_moments(out, asked, kept.flatten() > 0, site.role.stack)
    site.watch.deep.store.update_all(Accumulator("expert", f"{site.name}.0", "expert"), found)


def _fits(tokens: Any, chosen: Any, weights: Any) -> bool:
    if not all(isinstance(x, Tensor) and x.dim() == 2 for x in (tokens, chosen, weights)):
        return False
    return not chosen.is_floating_point() and weights.is_floating_point() and len(tokens) == len(chosen)

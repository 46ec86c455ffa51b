"""Mixtures of experts: where the router sends tokens, and what each expert of a module that contains them returns."""

from __future__ import annotations

import torch
from torch import Tensor

from stabwatch.hooks.base.expert_views import MOST_EXPERTS, ExpertLoads, ExpertsCall, RouterCall, experts_of
from stabwatch.hooks.base.probe import PROBES, Need, Probe, on
from stabwatch.hooks.base.side_effects import restore_side_effects
from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.router import beyond, choice, combined, expert_moments, router
from stabwatch.signals.reductions import CAPACITY, COMBINE, DROPPED, EXPERT, LOAD, ROUTER, ROUTER_CHOICE

TOKENS_COMBINED = 32
"""Tokens of which each expert's part is computed again."""
TOKENS_EACH = 8
"""Tokens with which each expert of a module is called again, of those that were sent to it."""
OVERFLOW = 1.25
"""Capacity factor of Switch Transformers, for layers that state none."""
NO_CAPACITY = "it states no `capacity_factor`; if it drops tokens, stabwatch cannot tell"
MANY = f"it has more than {MOST_EXPERTS} experts, too many for series of their own; see `router_max_violation`"
SHARDED = "its experts are sharded over ranks"
CALL = "its experts are not called with (tokens, experts of each, weights)"


def _router(x: RouterCall) -> Aggregates:
    return router(x.logits, x.site.role.top_k, x.scores)


def _dropped(x: RouterCall) -> Aggregates:
    assert x.capacity is not None
    return beyond(x.loads, x.capacity)


def _loads(x: ExpertLoads) -> Aggregates:
    """float32 (E, 2): all assignments, and those to each expert."""
    loads = x.call.loads
    return torch.stack((loads.sum().expand_as(loads), loads), dim=1)


def _outputs(x: ExpertsCall) -> Aggregates:
    """float32 (E, 2): moments of what each expert returns for some of the tokens that were sent to it, with weight one.

    The module's `forward` is called and not the module, so that nobody's hooks see the call.
    """
    assert x.routed is not None
    tokens, chosen, weights = x.routed
    tokens = tokens.detach()
    count = x.site.role.stack
    each = min(TOKENS_EACH, len(tokens))
    experts = torch.arange(count, device=tokens.device)
    sent = (chosen[:, :, None] == experts).any(dim=1).T.float()  # (experts, tokens)
    kept, rows = sent.topk(each, dim=1)
    expert = experts.repeat_interleave(each)
    ones = torch.ones(len(expert), 1, dtype=weights.dtype, device=tokens.device)
    with restore_side_effects(x.module, tokens, evaluating=True):
        out: Tensor = x.module.forward(tokens[rows.flatten()], expert[:, None], ones)
    return expert_moments(out, expert, kept.flatten() > 0, count)


def _choice(x: RouterCall) -> Aggregates:
    return choice(x.logits, x.weight[: x.site.role.experts], x.site.role.top_k, x.scores)


def _combined(x: ExpertsCall) -> Aggregates | None:
    """Of some tokens: what each of their experts adds, one by one, and the sum. The module's `forward` is called."""
    assert x.routed is not None
    tokens, chosen, weights = (y.detach() for y in x.routed)
    if not len(tokens):
        return None
    rows = slice(None, None, max(1, len(tokens) // TOKENS_COMBINED))
    tokens, chosen, weights = tokens[rows], chosen[rows], weights[rows]
    with restore_side_effects(x.module, tokens, evaluating=True):
        parts = [x.module.forward(tokens, chosen[:, k : k + 1], weights[:, k : k + 1]) for k in range(chosen.shape[1])]
    return combined(torch.stack(parts))


def _names(experts: str, count: int) -> tuple[str, ...]:
    return tuple(f"{experts}.{i}" for i in range(count if count <= MOST_EXPERTS else 0))


PROBES.register(Probe(name="router", tap="router", reduction=ROUTER, tier="sampled", compute=on(RouterCall, _router)))
PROBES.register(
    Probe(
        name="capacity", tap="router", reduction=CAPACITY, tier="sampled",
        compute=on(RouterCall, lambda x: beyond(x.loads, OVERFLOW)),
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="dropped", tap="router", reduction=DROPPED, tier="sampled", compute=on(RouterCall, _dropped),
        needs=(Need("capacity", NO_CAPACITY),), places=lambda site: (site.name,) if site.role.capacity else (),
        optional=True,
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="load", tap="expert", reduction=LOAD, tier="sampled", compute=on(ExpertLoads, _loads),
        needs=(Need("few", MANY),), places=lambda site: _names(experts_of(site.name), site.role.experts),
        optional=True, reported_as="expert",
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="expert", tap="expert", reduction=EXPERT, tier="deep", compute=on(ExpertsCall, _outputs),
        needs=(Need("whole", SHARDED), Need("few", MANY), Need("routed", CALL)),
        places=lambda site: _names(site.name, site.role.stack), round_robin=True, optional=True,
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="router_choice", tap="router", reduction=ROUTER_CHOICE, tier="deep", compute=on(RouterCall, _choice),
        round_robin=True,
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="combine", tap="combine", reduction=COMBINE, tier="deep", compute=on(ExpertsCall, _combined),
        needs=(Need("whole", SHARDED), Need("routed", CALL)), round_robin=True, optional=True,
    )
)  # fmt: skip

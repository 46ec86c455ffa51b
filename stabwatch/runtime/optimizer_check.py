"""What is wrong with the optimizer that a user attaches, if anything."""

from __future__ import annotations

from typing import Any

from torch import nn

from stabwatch.runtime.step_clock import chain

NAMED = 3
"""Parameters that a sentence names."""


def optimizer_problems(model: nn.Module, optimizer: Any) -> list[str]:
    """One sentence for each thing that keeps this optimizer from training this model; [] if all is well."""
    named = dict(model.named_parameters())
    if not named:
        return ["the model has no parameters, so there are no gradients and no updates to measure"]
    if all(p.device.type == "meta" for p in named.values()):
        return ["all parameters are on the device `meta` and hold no numbers: nothing of them can be measured"]
    trained = {name: p for name, p in named.items() if p.requires_grad}
    if not trained:
        return [f"all {len(named)} parameters of the model are frozen (requires_grad is False): nothing is trained"]
    held = _held(optimizer)
    if held is None:
        return []
    mine = [p for p in named.values() if id(p) in held]
    if not mine:
        return ["the optimizer holds no parameter of this model: its steps are not steps of this run"]
    out = []
    if not any(p.requires_grad for p in mine):
        out.append(f"all {len(mine)} parameters of the model that the optimizer holds are frozen: it trains nothing")
    left = [name for name, p in trained.items() if id(p) not in held]
    if left:
        names = ", ".join(f"`{name}`" for name in left[:NAMED]) + (", ..." if len(left) > NAMED else "")
        out.append(f"{len(left)} of {len(trained)} trainable parameters are in no optimizer that was given: {names}")
    return out


def _held(optimizer: Any) -> set[int] | None:
    """Ids of the parameters in what was given; None if that is not known."""
    given = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    groups = [getattr(o, "param_groups", None) for one in given for o in chain(one)]
    known = [g for g in groups if isinstance(g, list) and all(isinstance(x, dict) and "params" in x for x in g)]
    return {id(p) for g in known for group in g for p in group["params"]} if known else None

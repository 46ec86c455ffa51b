"""What is wrong with the optimizer that a user attaches, if anything."""

from __future__ import annotations

from typing import Any

from torch import nn

from stabwatch.runtime.step_clock import chain

NAMED = 3
"""Parameters that a sentence names."""
ZERO = (
    "ZeRO averages gradients in buffers of its own: those that are measured are of one rank's batches, before the "
    "average and before clipping"
)
IN_PARTS = "ZeRO's third stage keeps the parameters in parts: weights, gradients and updates are not measured"
DEPTH = 3
"""Lists in each other in which an optimizer may keep parameters (groups of partitions of parameters)."""


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


def steps(model: nn.Module, optimizer: Any) -> bool:
    """Are the steps of this optimizer steps of the model, as far as is known?"""
    held = _held(optimizer)
    return held is None or not held.isdisjoint(map(id, model.parameters()))


def steps_copies(model: nn.Module, optimizer: Any) -> bool:
    """Does the optimizer step copies of the parameters: master weights (Apex, Megatron), flat partitions (ZeRO)?

    Then its groups hold no parameter of the model, but it keeps some of them elsewhere, to write the copies back.
    """
    known = set(map(id, model.parameters()))
    held = _held(optimizer)
    if held is None or held & known:
        return False
    given = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    kept = [v for one in given for o in chain(one) if hasattr(o, "__dict__") for v in list(vars(o).values())]
    return any(_keeps(value, known, DEPTH) for value in kept)


def zero_note(model: nn.Module, optimizer: Any, ranks: int) -> str:
    """What is not as usual with an optimizer of DeepSpeed's; '' if nothing is."""
    if any(hasattr(p, "ds_tensor") for p in model.parameters()):
        return IN_PARTS
    given = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    modules = [type(o).__module__ for one in given for o in chain(one)]
    return ZERO if ranks > 1 and any(module.startswith("deepspeed.runtime.zero") for module in modules) else ""


def _keeps(value: Any, known: set[int], depth: int) -> bool:
    if id(value) in known:
        return True
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return depth > 0 and any(_keeps(x, known, depth - 1) for x in list(inside))


def _held(optimizer: Any) -> set[int] | None:
    """Ids of the parameters in what was given; None if that is not known."""
    given = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    groups = [getattr(o, "param_groups", None) for one in given for o in chain(one)]
    known = [g for g in groups if isinstance(g, list) and all(isinstance(x, dict) and "params" in x for x in g)]
    return {id(p) for g in known for group in g for p in group["params"]} if known else None

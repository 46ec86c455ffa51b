"""What a training script says of its steps, beside what the hooks see of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.policy_accumulators import PolicyBatch
from stabwatch.hooks.probes.quantised import OwnQuantiser
from stabwatch.runtime.taps import Taps

_logger = logging.getLogger("stabwatch")


class ScriptInputs:
    """Takes numbers, batches and groups of tokens of an open run. What fails in it is caught and counted."""

    def __init__(self, context: TapContext, taps: Taps) -> None:
        self._context, self._taps = context, taps
        self._isolate = context.isolation.run
        self._told: set[str] = set()

    def log(self, scalars: Mapping[str, float | Tensor]) -> None:
        """See Watch.log."""
        self._isolate("log", "always", self._log, scalars)

    def _log(self, scalars: Mapping[str, Any]) -> None:
        wrong = {name: what for name, value in scalars.items() if (what := _no_number(value))}
        for name in wrong.keys() - self._told:
            self._told.add(name)
            reason = f"`watch.log` takes one number for each name, and got {wrong[name]}: it is left out"
            self._context.unmeasured("note", name, reason)
            _logger.warning("stabwatch: %s: %s.", name, reason)
        self._context.run.update_scalars({name: value for name, value in scalars.items() if name not in wrong})

    def log_policy(self, logp: Tensor, given: Mapping[str, Any]) -> None:
        """See Watch.log_policy. given: the other fields of a PolicyBatch."""
        policy = self._context.run.policy
        self._isolate("policy", "always", lambda: policy.update(logp, PolicyBatch(**given)))

    def log_batch(self, indices: Any, facts: dict[str, Any]) -> None:
        """See Watch.log_batch."""
        self._isolate("batch", "always", self._taps.batches.send, self._context.step, indices, facts)

    def token_groups(self, masks: Mapping[str, Tensor]) -> None:
        """See Watch.token_groups."""
        self._isolate("token_groups", "always", self._context.token_groups.send, masks)

    def probe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See Watch.probe."""
        self._isolate("drift", "deep", self._taps.now.steps.tracked_batch.start, args, kwargs)

    def quantised(self, weight: nn.Parameter, given: Mapping[str, Any]) -> None:
        """See Watch.quantised. given: the fields of an OwnQuantiser."""
        describe = self._taps.now.steps.quantised.describe
        self._isolate("quantised", "deep", lambda: describe(weight, OwnQuantiser(**given)))


def _no_number(value: Any) -> str:
    """What a value is that is no single number; '' for one."""
    if isinstance(value, Tensor):
        fits = value.numel() == 1 and not value.is_complex()
        return "" if fits else f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    try:
        float(value)
    except Exception:
        return f"an object of type {type(value).__name__}"
    return ""

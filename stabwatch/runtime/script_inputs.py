"""What a training script says of its steps, beside what the hooks see of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.policy_accumulators import PolicyBatch
from stabwatch.hooks.probes.quantised import OwnQuantiser
from stabwatch.runtime.taps import Taps


class ScriptInputs:
    """Takes numbers, batches and groups of tokens of an open run. What fails in it is caught and counted."""

    def __init__(self, context: TapContext, taps: Taps) -> None:
        self._context, self._taps = context, taps
        self._isolate = context.isolation.run

    def log(self, scalars: Mapping[str, float | Tensor]) -> None:
        """See Watch.log."""
        self._isolate("log", "always", self._context.run.update_scalars, scalars)

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

"""Numbers into sentences: the description of an alert."""

from __future__ import annotations

import math
from collections import defaultdict

from stabwatch.alerts.rule import Rule


def describe(rule: Rule, signal: str, layer: str, step: int, numbers: dict[str, float]) -> str:
    """The description of one alert, from the rule's template and the gauges at firing, each by its own name.

    Besides: {where}, {signal}, {step}, and {growth}, the attention logits' in words.
    """
    fields: dict[str, float | str] = defaultdict(lambda: math.nan, numbers)
    fields |= {"where": layer or "the run", "signal": signal, "step": step}
    fields["growth"] = growth_in_words(numbers.get("attention_logit_growth", math.nan))
    return rule.description.format_map(fields)


def growth_in_words(slope: float) -> str:
    """'doubles every 12 steps', from the slope of a logarithm per step."""
    if math.isnan(slope):
        return "too new to have a trend"
    if slope > 1e-6 and math.log(2) / slope < 1e5:
        steps = math.log(2) / slope
        return f"doubles every {steps:.3g} steps"
    return "no longer grows" if slope <= 1e-6 else "grows slowly"

"""Numbers into sentences: the description of an alert."""

from __future__ import annotations

import math

from stabwatch.alerts.rule import Rule


def describe(rule: Rule, signal: str, layer: str, step: int, numbers: dict[str, float]) -> str:
    """The description of one alert, from the rule's template and the gauges at firing."""
    fields: dict[str, float | str] = {
        "where": layer or "the run",
        "signal": signal,
        "step": step,
        "limit": 100.0,
        "count": numbers.get("nonfinite", math.nan),
        "growth": growth_in_words(numbers.get("attention_logit_growth", math.nan)),
        "drift": numbers.get("output_logit_drift", math.nan),
        "z": numbers.get("loss_robust_z", math.nan),
        "best": numbers.get("loss_best", math.nan),
        "first": numbers.get("loss_first", math.nan),
        "ratio": _first_of(numbers, "activation_growth_ratio", "gradient_norm_to_median_ratio", "loss_to_median_ratio"),
        "value": _first_of(
            numbers, "attention_logit_bound", "output_logit_logsumexp", "activation_abs_max", "gradient_norm", "loss"
        ),
    }
    return rule.description.format_map(fields)


def _first_of(numbers: dict[str, float], *names: str) -> float:
    return next((numbers[name] for name in names if name in numbers), math.nan)


def growth_in_words(slope: float) -> str:
    """'doubles every 12 steps', from the slope of a logarithm per step."""
    if math.isnan(slope):
        return "too new to have a trend"
    if slope > 1e-6 and math.log(2) / slope < 1e5:
        steps = math.log(2) / slope
        return f"doubles every {steps:.3g} steps"
    return "no longer grows" if slope <= 1e-6 else "grows slowly"

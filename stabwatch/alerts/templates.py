"""Sentences from numbers: descriptions of alerts, batches and guard actions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from stabwatch.alerts.roles import ROLES
from stabwatch.alerts.rule import Rule


def describe(rule: Rule, signal: str, layer: str, step: int, numbers: dict[str, float]) -> str:
    """The description of one alert, from the rule's template and the gauges when it fired, each by its name.

    More fields: {where}, {signal}, {step}; {growth}, of the attention logits, in words; {rank}, whose replica differs,
    and how far, {apart}; {which} of several quantities is furthest from its limit.
    """
    fields: dict[str, float | str] = defaultdict(lambda: math.nan, numbers)
    fields |= {"where": layer or "the run", "signal": signal, "step": step}
    fields["growth"] = format_growth(numbers.get("attention_logit_growth", math.nan))
    fields["which"] = format_which(numbers.get("which", math.nan))
    fields["rank"] = format_rank(numbers.get("replica_difference_rank", math.nan))
    fields["apart"] = format_apart(numbers.get("replica_difference_ratio", math.nan))
    return rule.description.format_map(fields)


def format_rank(rank: float) -> str:
    """'rank 3'; where it is not known which, 'one or more ranks'."""
    return f"rank {rank:.0f}" if rank >= 0 else "one or more ranks"


def format_apart(ratio: float) -> str:
    """How far a replica is from the others, relative to their sum of squares; 2^-24 where that does not show it."""
    return "in bits that no sum of squares shows" if ratio <= 1e-7 else f"by {ratio:.2g} of its sum of squares"


def format_which(role: float) -> str:
    """What a logged number is, from its place in the table of roles."""
    return ROLES[int(role)].words if role >= 0 else "it"


def format_growth(slope: float) -> str:
    """'doubles every 12 steps', from the slope of a logarithm per step."""
    if math.isnan(slope):
        return "too new to have a trend"
    if slope > 1e-6 and math.log(2) / slope < 1e5:
        steps = math.log(2) / slope
        return f"doubles every {steps:.3g} steps"
    return "no longer grows" if slope <= 1e-6 else "grows slowly"


_SHOWN = 8
_OWN = ("step", "indices", "fingerprint", "first", "shape", "dtype")


def format_batch(entry: Mapping[str, Any]) -> str:
    """Description of one batch, from an entry of a 'flight' event."""
    parts = [f"{name} {value}" for name, value in entry.items() if name not in _OWN]
    if "indices" in entry:
        parts.insert(0, f"samples {_some(entry['indices'])}")
    if "fingerprint" in entry:
        shape = " x ".join(str(n) for n in _list(entry.get("shape")))
        parts.append(f"input of {shape or 'unknown shape'} ({entry.get('dtype')}), fingerprint {entry['fingerprint']}")
    if "first" in entry:
        parts.append(f"first numbers {_some(entry['first'])}")
    return "; ".join(parts) or "nothing is known about it"


def group_names(names: Sequence[str], most: int = 6) -> list[str]:
    """Names that differ in one number are one: `layers.{9, 30, 63}.attn`, in the order of their first one.

    most: numbers that are listed; the rest of a group is counted.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(names):
        part = name.split(".")
        place = next((i for i, word in enumerate(part) if word.isdecimal()), None)
        shape = (name, "") if place is None else (".".join([*part[:place], ""]), ".".join(["", *part[place + 1 :]]))
        groups.setdefault(shape, []).append("" if place is None else part[place])
    out = []
    for (before, after), numbers in groups.items():
        listed = ", ".join(numbers[:most]) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
        out.append(f"{before}{{{listed}}}{after}" if len(numbers) > 1 else f"{before}{numbers[0]}{after}")
    return out


def format_guard(data: Mapping[str, Any]) -> str:
    """Description of a guard's action, from a 'guard' event."""
    more = [f"{name.replace('_', ' ')} {data[name]}" for name in ("to_step", "scale") if name in data]
    return f"{data.get('guard')}: {data.get('did')}" + (f" ({', '.join(more)})" if more else "")


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _some(value: object) -> str:
    numbers = _list(value)
    rest = len(numbers) - _SHOWN
    return ", ".join(str(n) for n in numbers[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def format_seconds(amount: float) -> str:
    """'45 s', '12 min', '3.5 h'."""
    if amount < 120:
        return f"{amount:.3g} s"
    return f"{amount / 60:.0f} min" if amount < 7200 else f"{amount / 3600:.1f} h"

"""Custom rules from a YAML file: built-in rules with other thresholds or muted, and new rules on any signal.

rules:
  LossSpike:                       # a built-in rule
    for_points: 5                  # of every severity
    thresholds: {loss_robust_z: 7} # by gauge, in every severity that compares it
  ActivationOutlierGrowth:
    muted: ["lm_head*"]           # on these layers; `muted: true` everywhere
  RankFalls:                       # a new rule
    signal: stable_rank            # a signal, or a derived gauge
    below: 2                       # and/or above
    for_points: 3
    severity: warning
    summary: The stable rank of a layer falls.
    remedy: Look at its weight decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from stabwatch.alerts.catalogue import RULES, features
from stabwatch.alerts.rule import SEVERITIES, Condition, Rule, Threshold
from stabwatch.alerts.yaml_lines import Entry, as_mapping, read
from stabwatch.signals import CATALOGUE

_CHANGES = ("for_points", "thresholds", "resolve_after", "muted")
_OWN = ("signal", "above", "below", "for_points", "severity", "summary", "remedy", "resolve_after", "muted")


def load_rules(path: str | Path, rules: Sequence[Rule] = RULES) -> tuple[Rule, ...]:
    """The rules with the changes of a file. Raises RuleError with the line of the mistake."""
    found = {rule.name: rule for rule in rules}
    for name, entry in _entries(Path(path)):
        if name in found:
            changed = _changed(found[name], entry)
            if changed is None:
                del found[name]
            else:
                found[name] = changed
        else:
            found[name] = _own(name, entry)
    return tuple(found.values())


def _entries(path: Path) -> Iterator[tuple[str, Entry]]:
    top = read(path, "the file has `rules:`, and below it rules by name")
    if top is None:
        return
    top.only(("rules",))
    inner = top.nodes.get("rules")
    if inner is None or inner.value == "":
        return
    if not isinstance(inner, yaml.MappingNode):
        raise top.fail("`rules` must be a mapping of rules by name.", "rules")
    for key, value in inner.value:
        yield (
            str(key.value),
            as_mapping(path, value, f"`{key.value}` must be a mapping of settings by name", key.start_mark.line + 1),
        )


def _changed(rule: Rule, entry: Entry) -> Rule | None:
    """A built-in rule with changes; None if it is muted everywhere."""
    entry.only(_CHANGES)
    muted = _muted(entry)
    if muted is None:
        return None
    thresholds = rule.thresholds
    if "for_points" in entry.values:
        for_points = int(entry.number("for_points", entry.values["for_points"], 1))
        thresholds = tuple(replace(threshold, for_points=for_points) for threshold in thresholds)
    limits = entry.values.get("thresholds") or {}
    if not isinstance(limits, dict):
        raise entry.fail("`thresholds` must be a mapping of numbers by gauge.", "thresholds")
    for gauge, value in limits.items():
        compared = sorted({c.gauge for threshold in rule.thresholds for c in threshold.when})
        if gauge not in compared:
            raise entry.fail(f"{rule.name} compares {', '.join(compared)}, not `{gauge}`.", "thresholds")
        number = entry.number("thresholds", value)
        thresholds = tuple(replace(lv, when=tuple(_moved(c, gauge, number) for c in lv.when)) for lv in thresholds)
    abnormal = tuple(_widened(c, thresholds) for c in rule.abnormal)
    resolve_after = int(entry.number("resolve_after", entry.values.get("resolve_after", rule.resolve_after), 1))
    return replace(rule, thresholds=thresholds, abnormal=abnormal, resolve_after=resolve_after, muted=muted)


def _moved(condition: Condition, gauge: str, number: float) -> Condition:
    if condition.gauge != gauge:
        return condition
    return replace(condition, above=number) if condition.above is not None else replace(condition, below=number)


def _widened(condition: Condition, thresholds: Sequence[Threshold]) -> Condition:
    """Move the limits of the normal range so that every threshold is outside it."""
    met = [c for threshold in thresholds for c in threshold.when if c.gauge == condition.gauge]
    above = min([c.above for c in met if c.above is not None] + [condition.above or 0.0], default=None)
    below = max([c.below for c in met if c.below is not None] + [condition.below or 0.0], default=None)
    return replace(
        condition,
        above=None if condition.above is None else above,
        below=None if condition.below is None else below,
    )


def _own(name: str, entry: Entry) -> Rule:
    """A new rule on a signal or a derived gauge."""
    entry.only(_OWN)
    if "signal" not in entry.values:
        known = ", ".join(rule.name for rule in RULES)
        raise entry.fail(f"`{name}` is not a built-in rule ({known}). A new rule needs a `signal`.")
    signal = str(entry.values["signal"])
    limits = {k: entry.number(k, entry.values[k]) for k in ("above", "below") if entry.values.get(k) is not None}
    if not limits:
        raise entry.fail("A rule needs `above` or `below`.")
    severity = str(entry.values.get("severity", "warning"))
    if severity not in SEVERITIES:
        raise entry.fail(f"`severity` must be one of {', '.join(SEVERITIES)}, not {severity!r}.", "severity")
    condition = Condition(signal, **limits)
    remedy = entry.values.get("remedy", ())
    for_points = int(entry.number("for_points", entry.values.get("for_points", 1), 1))
    return Rule(
        name=name,
        title=name,
        family=_family(signal, entry),
        summary=str(entry.values.get("summary", f"{condition}.")),
        description=f"{signal} of {{where}} is {{{signal}:.4g}}.",
        remedy=(remedy,) if isinstance(remedy, str) else tuple(map(str, remedy)),
        source=f"{entry.path}:{entry.line}",
        thresholds=(Threshold(severity=severity, when=(condition,), for_points=for_points),),
        abnormal=(condition,),
        resolve_after=int(entry.number("resolve_after", entry.values.get("resolve_after", 5), 1)),
        muted=_muted(entry) or (),
    )  # fmt: skip


def _family(signal: str, entry: Entry) -> str:
    """The feature with a derived gauge; a signal is a feature with one gauge."""
    for family in features():
        if signal in {gauge.name for gauge in family.gauges}:
            return family.name
    if signal not in CATALOGUE:
        raise entry.fail(
            f"No signal and no derived gauge is called `{signal}`; `stabwatch signals` lists them.", "signal"
        )
    return f"signal:{signal}"


def _muted(entry: Entry) -> tuple[str, ...] | None:
    """Layer patterns; None for everywhere."""
    value = entry.values.get("muted", ())
    if value is True:
        return None
    if value is False:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise entry.fail("`muted` must be true or a list of layer patterns.", "muted")
    return tuple(map(str, value))

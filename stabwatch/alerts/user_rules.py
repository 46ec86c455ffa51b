"""Rules of the user's: ours with other thresholds, ours silenced, and new ones on any signal, from a YAML file.

rules:
  LossSpike:                       # one of ours
    hold: 5                        # of every level
    thresholds: {loss_robust_z: 7} # by gauge, in every level that compares it
  ActivationOutlierGrowth:
    silent: ["lm_head*"]           # on these layers; `silent: true` everywhere
  RankFalls:                       # one of your own
    signal: stable_rank            # a signal, or a derived gauge
    below: 2                       # and/or above
    hold: 3
    severity: warning
    summary: The stable rank of a layer falls.
    remedy: Look at its weight decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from stabwatch.alerts.catalogue import RULES, families
from stabwatch.alerts.rule import SEVERITIES, Condition, Level, Rule
from stabwatch.alerts.yaml_lines import Entry, as_mapping, read
from stabwatch.signals import CATALOGUE

_CHANGES = ("hold", "thresholds", "recover", "silent")
_OWN = ("signal", "above", "below", "hold", "severity", "summary", "remedy", "recover", "silent")


def load_rules(path: str | Path, rules: Sequence[Rule] = RULES) -> tuple[Rule, ...]:
    """The rules with a file's changes. Raises RuleError, with the line of what is wrong."""
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
    top = read(path, "the file holds `rules:` and below it rules by name")
    if top is None:
        return
    top.only(("rules",))
    inner = top.nodes.get("rules")
    if inner is None or inner.value == "":
        return
    if not isinstance(inner, yaml.MappingNode):
        raise top.fail("`rules` holds rules by name.", "rules")
    for key, value in inner.value:
        yield str(key.value), as_mapping(path, value, f"`{key.value}` holds settings by name", key.start_mark.line + 1)


def _changed(rule: Rule, entry: Entry) -> Rule | None:
    """A rule of ours, changed; None if it is silent everywhere."""
    entry.only(_CHANGES)
    silent = _silent(entry)
    if silent is None:
        return None
    levels = rule.levels
    if "hold" in entry.values:
        hold = int(entry.number("hold", entry.values["hold"], 1))
        levels = tuple(replace(level, hold=hold) for level in levels)
    thresholds = entry.values.get("thresholds") or {}
    if not isinstance(thresholds, dict):
        raise entry.fail("`thresholds` holds numbers by gauge.", "thresholds")
    for gauge, value in thresholds.items():
        compared = sorted({c.gauge for level in rule.levels for c in level.when})
        if gauge not in compared:
            raise entry.fail(f"{rule.name} compares {', '.join(compared)}, not `{gauge}`.", "thresholds")
        number = entry.number("thresholds", value)
        levels = tuple(replace(lv, when=tuple(_moved(c, gauge, number) for c in lv.when)) for lv in levels)
    outside = tuple(_widened(c, levels) for c in rule.outside)
    recover = int(entry.number("recover", entry.values.get("recover", rule.recover), 1))
    return replace(rule, levels=levels, outside=outside, recover=recover, silent=silent)


def _moved(condition: Condition, gauge: str, number: float) -> Condition:
    if condition.gauge != gauge:
        return condition
    return replace(condition, above=number) if condition.above is not None else replace(condition, below=number)


def _widened(condition: Condition, levels: Sequence[Level]) -> Condition:
    """The normal range ends where the first level begins, at the latest."""
    met = [c for level in levels for c in level.when if c.gauge == condition.gauge]
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
        raise entry.fail(f"`{name}` is none of our rules ({known}); one of your own names its `signal`.")
    signal = str(entry.values["signal"])
    limits = {k: entry.number(k, entry.values[k]) for k in ("above", "below") if entry.values.get(k) is not None}
    if not limits:
        raise entry.fail("A rule compares: give `above` or `below`.")
    severity = str(entry.values.get("severity", "warning"))
    if severity not in SEVERITIES:
        raise entry.fail(f"`severity` is one of {', '.join(SEVERITIES)}, not {severity!r}.", "severity")
    condition = Condition(signal, **limits)
    remedy = entry.values.get("remedy", ())
    hold = int(entry.number("hold", entry.values.get("hold", 1), 1))
    return Rule(
        name=name,
        title=name,
        family=_family(signal, entry),
        summary=str(entry.values.get("summary", f"{condition}.")),
        description=f"{signal} of {{where}} is {{{signal}:.4g}}.",
        remedy=(remedy,) if isinstance(remedy, str) else tuple(map(str, remedy)),
        source=f"{entry.path}:{entry.line}",
        levels=(Level(severity=severity, when=(condition,), hold=hold),),
        outside=(condition,),
        recover=int(entry.number("recover", entry.values.get("recover", 5), 1)),
        silent=_silent(entry) or (),
    )  # fmt: skip


def _family(signal: str, entry: Entry) -> str:
    """The family that has a derived gauge; a signal is a family of its own."""
    for family in families():
        if signal in {gauge.name for gauge in family.gauges}:
            return family.name
    if signal not in CATALOGUE:
        raise entry.fail(
            f"No signal and no derived gauge is called `{signal}`; `stabwatch signals` lists them.", "signal"
        )
    return f"signal:{signal}"


def _silent(entry: Entry) -> tuple[str, ...] | None:
    """Layer patterns; None for everywhere."""
    value = entry.values.get("silent", ())
    if value is True:
        return None
    if value is False:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise entry.fail("`silent` is true, or a list of layer patterns.", "silent")
    return tuple(map(str, value))

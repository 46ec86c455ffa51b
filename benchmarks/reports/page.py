"""The lines that the benchmark prints, and docs/reports.md."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Literal

from benchmarks.report import machine, table
from benchmarks.reports.case import MISSING
from benchmarks.reports.first_readings import first_readings
from benchmarks.reports.verdicts import HealthyResult, Result

Mode = Literal["default", "every step"]
Results = Mapping[Mode, Sequence[Result]]
Calm = Mapping[Mode, Sequence[HealthyResult]]


def line_of(result: Result | HealthyResult, mode: Mode) -> str:
    """One line of progress."""
    if isinstance(result, HealthyResult):
        fired = ", ".join(dict.fromkeys(f"{a.name}@{a.step}" for a in result.said.loud)) or "silent"
        note = "" if result.learned else " (DOES NOT LEARN)"
        return f"{mode:10} {result.name:26} healthy, {result.false} false: {fired}{note}"
    found = f"{result.found.name}@{result.found.step}" if result.found else "nothing"
    note = "" if result.shown else " (FAULT DOES NOT SHOW)"
    right = "right" if result.right else f"first cause {result.said.cause or 'none'}"
    return (
        f"{mode:10} {result.case.name:26} found {found}, {right}, lead {result.lead}, twin {result.false} false{note}"
    )


def _rate(false: int, steps: int) -> str:
    return f"{1e4 * false / steps:.1f} ({false} in {steps:,})" if steps else "not run"


def _row(mode: Mode, results: Sequence[Result], calm: Sequence[HealthyResult]) -> tuple[object, ...]:
    placed = [r.where_right for r in results if r.where_right is not None]
    leads = sorted(r.lead for r in results if r.lead is not None)
    return (
        mode,
        f"{sum(r.found is not None for r in results)} / {len(results)}",
        f"{sum(r.right for r in results)} / {len(results)}",
        f"{sum(placed)} / {len(placed)}",
        f"{leads[len(leads) // 2]}" if leads else "none",
        _rate(sum(h.false for h in calm), sum(h.steps for h in calm)),
        _rate(sum(r.false for r in results), sum(r.healthy_steps for r in results)),
    )


def totals(results: Results, calm: Calm) -> str:
    """One row for each way of measuring."""
    head = (
        "measured",
        "found",
        "first cause right",
        "where right",
        "median lead",
        "false alarms per 10,000 steps, workloads",
        "in the twins",
    )
    return table(head, (_row(mode, results[mode], calm[mode]) for mode in results))


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _cases_table(results: Sequence[Result]) -> str:
    def row(r: Result) -> tuple[object, ...]:
        found = f"{r.found.name}, step {r.found.step}" if r.found else "nothing"
        return (
            r.case.name,
            r.case.fault,
            "never" if r.hurt is None else r.hurt,
            found,
            r.said.cause or "none",
            _yes(r.right),
            _yes(r.where_right),
            "" if r.lead is None else r.lead,
            r.false or "",
        )

    head = (
        "case", "fault at", "loss hurt at", "found", "first cause", "right", "where right", "lead",
        "false alarms in the twin",
    )  # fmt: skip
    return table(head, map(row, results))


def _healthy_table(calm: Calm) -> str:
    modes = list(calm)
    by_name = {mode: {h.name: h for h in calm[mode]} for mode in modes}
    rows = []
    for name, one in by_name[modes[0]].items():
        said = [
            "; ".join(dict.fromkeys(f"{a.name} {a.layer} (step {a.step})".replace("  ", " ") for a in h.said.loud))
            for h in (by_name[mode].get(name) for mode in modes)
            if h is not None
        ]
        rows.append((name, one.about, one.steps, one.said.records, *said))
    return table(("workload", "what", "steps", f"recorded, {modes[0]}", *(f"alarms, {mode}" for mode in modes)), rows)


def _said(mode: Mode, r: Result) -> str:
    where = f", first in `{r.said.layers[0]}`" if r.said.layers else ""
    verdict = f"first cause {r.said.cause}{where}" if r.said.cause else "no cause"
    how = "right" if r.right else "not the cause" if r.found else "**missed**"
    found = f"{r.found.name} at step {r.found.step}, " if r.found else ""
    fired = ", ".join(dict.fromkeys(a.name for a in r.said.loud))
    others = f" All alarms: {fired}." if fired else ""
    return (
        f"- {mode} ({r.said.records} of {r.steps} steps recorded): {found}{verdict}: {how}. “{r.said.sentence}”{others}"
    )


def _section(name: str, each: dict[Mode, Result]) -> str:
    one = next(iter(each.values()))
    case = one.case
    missing = [f"{cause} ({MISSING[cause]})" for cause in case.causes if cause in MISSING]
    known = [cause for cause in case.causes if cause not in MISSING]
    accepted = "; ".join(
        ["existing: " + ", ".join(known)] * bool(known) + ["no rule today: " + ", ".join(missing)] * bool(missing)
    )
    hurt = "the loss never shows it" if one.hurt is None else f"the loss shows it from step {one.hurt}"
    where = f" Where: {', '.join(f'`{p}`' for p in case.where if p)}." if case.where and any(case.where) else ""
    notes = sorted({note for r in each.values() for note in r.said.notes})
    coverage = f"\n- stabwatch says it could not measure: {'; '.join(notes[:3])}" if notes else ""
    said = "\n".join(_said(mode, r) for mode, r in each.items())
    return f"""### {name}

{case.mechanism} Source: {case.source}.{where}
Fault from step {case.fault} of {case.steps}; {hurt}.

- Accepted causes: {accepted}.
{said}
- What shows it: {case.shown_by}.{coverage}
"""


def _by_name(results: Results) -> dict[str, dict[Mode, Result]]:
    out: dict[str, dict[Mode, Result]] = {}
    for mode, some in results.items():
        for r in some:
            out.setdefault(r.case.name, {})[mode] = r
    return out


def _recorded(results: Results, calm: Calm) -> str:
    """How many steps were looked at, which bounds what can be found."""
    lines = [
        f"{mode}: {sum(h.said.records for h in some):,} of {sum(h.steps for h in some):,} healthy steps"
        for mode, some in calm.items()
        if some
    ]
    for mode, some in results.items():
        shares = sorted(r.said.records / r.steps for r in some if r.steps)
        if shares:
            lines.append(f"{mode}: {shares[len(shares) // 2]:.0%} of the steps of the median broken run were recorded")
    return "; ".join(lines)


def _missed(results: Results) -> str:
    """Lists of names: found by no way of measuring; found with everything measured alone; found and misnamed."""
    each = _by_name(results)
    none = [n for n, r in each.items() if not any(x.found for x in r.values())]
    late = [
        n for n, r in each.items() if "default" in r and not r["default"].found and any(x.found for x in r.values())
    ]
    wrong = [n for n, r in each.items() if any(x.found for x in r.values()) and not any(x.right for x in r.values())]
    lines = [
        f"- Found by nothing ({len(none)}): {', '.join(none) or 'none'}.",
        f"- Found, and never with the right first cause ({len(wrong)}): {', '.join(wrong) or 'none'}.",
    ]
    if len(results) > 1:
        lines.insert(1, f"- Found only with everything measured ({len(late)}): {', '.join(late) or 'none'}.")
    return "\n".join(lines)


def _wanted(results: Results) -> str:
    """Conditions that do not exist, with the cases that each would name."""
    wanted: dict[str, list[str]] = {}
    for name, each in _by_name(results).items():
        case = next(iter(each.values())).case
        if not any(r.right for r in each.values()):
            for cause in case.causes:
                if cause in MISSING:
                    wanted.setdefault(cause, []).append(name)
    rows = sorted(wanted.items(), key=lambda item: (-len(item[1]), item[0]))
    return table(("condition", "what it says", "cases"), ((c, MISSING[c], ", ".join(n)) for c, n in rows))


def _reliability(results: Results) -> str:
    """How often the first cause is right, by the confidence that it is given with."""
    said = [r for some in results.values() for r in some if r.said.cause]
    rows = []
    for word in ("certain", "likely", "possible"):
        mine = [r for r in said if r.said.confidence == word]
        right = sum(r.said.cause in r.case.causes for r in mine)
        second = sum(r.said.cause not in r.case.causes and r.said.second in r.case.causes for r in mine)
        share = f"{right / len(mine):.0%}" if mine else ""
        rows.append((word, len(mine), right, share, second))
    return table(("confidence", "first causes", "right", "share", "second cause right instead"), rows)


def page(command: str, results: Results, calm: Calm, took: float, kept: bool = False) -> str:
    """docs/reports.md."""
    tables = "\n\n".join(f"### {mode}\n\n{_cases_table(some)}" for mode, some in results.items() if some)
    sections = "\n".join(_section(name, each) for name, each in _by_name(results).items())
    healthy = _healthy_table(calm) if any(calm.values()) else "Not run."
    how = "runs that were kept, judged in " if kept else ""
    return f"""# What users report, and what of it is found

`{command}`, {datetime.date.today()}, {machine()}, one thread, {how}{took:.0f} s.

Public reports of failed PyTorch trainings, each written again as a small training with a healthy twin that differs in
one line (`benchmarks/reports/cases/`), and healthy workloads in the manner of classic examples
(`benchmarks/reports/healthy/`). Rules were written and fixed with these cases at hand: reports that are kept apart may
come out worse. How much worse shows what came out at the first reading of each set, which was written when the rules
for those before it were there. Causes were noted before a run was seen (from `later` on), and a case that did not show
its fault was changed before it was read. Siblings are other guises of what was fixed just before.

{first_readings()}

Afterwards rules were fixed and added; older cases accept the names of new rules where they say the same. An alarm that
was true of a twin or a workload was fixed there.

Found: a warning or a critical alarm begins at or after the fault, and the twin does not raise the same within 20 steps.
First cause right: the diagnosis names first what the report was about, by a name that the case accepts; many cases
accept only names of conditions that do not exist yet. Where right: it names the layer first. Lead: steps from the alarm
to the step from which the loss is a tenth of the twin's progress above the twin's, or to the end of the run where the
loss never shows it. False alarms that are less than 20 steps apart are one. Each fault is checked in what the loop
itself prints, and each healthy workload must learn.

{totals(results, calm)}

Steps recorded: {_recorded(results, calm)}.

## What is missed

{_missed(results)}

Conditions that no rule names today, with the cases whose cause they are:

{_wanted(results)}

## What confidence means

A first cause is given with a word: *certain* for a fact of the set-up or of the loop, *possible* where the loss or a
value that is not finite tells that something went wrong, and *likely* between. How often first causes of each word are
right:

{_reliability(results)}

## All cases

{tables}

## Healthy workloads

{healthy}

## Case by case

{sections}"""

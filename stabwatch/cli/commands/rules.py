"""`stabwatch rules`: the rules there are, whether a file of one's own is right, whether they do what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabwatch.cli.arguments import Exit, RulesOption, chosen


def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with rules.")]) -> None:
    """Say what a file of rules changes. Exit code 2, with the line, if something in it is wrong."""
    from stabwatch.alerts import RULES

    ours = {rule.name: rule for rule in RULES}
    theirs = {rule.name: rule for rule in chosen(file)}
    for name, rule in theirs.items():
        if name not in ours:
            print(f"new       {name}")
        elif rule != ours[name]:
            print(f"changed   {name}")
    for name in ours.keys() - theirs.keys():
        print(f"silenced  {name}")


def test(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files with tests (docs/alerts.md).")],
) -> None:
    """Run tests of rules: series or recorded runs in, alerts out. Exit code 1 if a test fails, 2 if a file is wrong."""
    from stabwatch.analysis.rule_tests import run_tests

    failed = passed = 0
    for file in files:
        for outcome in run_tests(file):
            failed, passed = failed + (not outcome.passed), passed + outcome.passed
            print(f"{'ok  ' if outcome.passed else 'FAIL'}  {file}:{outcome.line}  {outcome.name}")
            for sign, lines in (("-", outcome.missing), ("+", outcome.extra)):
                for line in lines:
                    print(f"      {sign} {line}")
    print(f"{passed} passed, {failed} failed" + ("; - expected, + fired" if failed else ""))
    raise typer.Exit(Exit.FIRED if failed else Exit.CALM)


def show(
    name: Annotated[str, typer.Argument(help="One rule, in full. Default: all, a line each.")] = "",
    rules: RulesOption = None,
) -> None:
    """The rules, or one of them with its thresholds, their source and what to do."""
    from stabwatch.errors import RuleError

    found = {rule.name: rule for rule in chosen(rules)}
    if name and name.removeprefix("Stabwatch") not in found:
        raise RuleError(f"No rule is called `{name}`. Rules: {', '.join(found)}.")
    for rule in found.values():
        if not name:
            print(f"{rule.name:28}{rule.severity:10}{rule.summary}")
        elif rule.name == name.removeprefix("Stabwatch"):
            print(rule.alert, rule.summary, sep="\n")
            for level in rule.thresholds:
                hold = f", {level.for_points} points in a row" if level.for_points > 1 else ""
                print(f"  {level.severity}: {' and '.join(map(str, level.when))}{hold}")
            print(
                f"  from: {rule.source}", *(f"  do: {step}" for step in rule.remedy), f"  {rule.runbook_url}", sep="\n"
            )

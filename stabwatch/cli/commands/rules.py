"""`stabwatch rules`: show the rules, check a file of rules, run tests of rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabwatch.cli.arguments import Exit, RulesOption, chosen


def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with rules.")]) -> None:
    """List what a file of rules changes. Exit code 2, with the line, if the file has an error."""
    from stabwatch.alerts import RULES

    built_in = {rule.name: rule for rule in RULES}
    changed = {rule.name: rule for rule in chosen(file)}
    for name, rule in changed.items():
        if name not in built_in:
            print(f"new       {name}")
        elif rule != built_in[name]:
            print(f"changed   {name}")
    for name in built_in.keys() - changed.keys():
        print(f"muted     {name}")


def test(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files with tests (docs/alerts.md).")],
) -> None:
    """Test rules on synthetic series or recorded runs.

    Exit code 1 if a test fails, 2 if a file has an error.
    """
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
    name: Annotated[str, typer.Argument(help="A rule to show in full. Default: one line per rule.")] = "",
    rules: RulesOption = None,
) -> None:
    """List the rules, or show one with its thresholds and remedies."""
    from stabwatch.errors import RuleError

    found = {rule.name: rule for rule in chosen(rules)}
    if name and name.removeprefix("Stabwatch") not in found:
        raise RuleError(f"No rule is called `{name}`. Rules: {', '.join(found)}.")
    for rule in found.values():
        if not name:
            print(f"{rule.name:28}{rule.severity:10}{rule.summary}")
        elif rule.name == name.removeprefix("Stabwatch"):
            print(rule.alert, rule.summary, sep="\n")
            for threshold in rule.thresholds:
                in_a_row = f", {threshold.for_points} points in a row" if threshold.for_points > 1 else ""
                print(f"  {threshold.severity}: {' and '.join(map(str, threshold.when))}{in_a_row}")
            print(
                f"  from: {rule.source}", *(f"  do: {step}" for step in rule.remedy), f"  {rule.runbook_url}", sep="\n"
            )

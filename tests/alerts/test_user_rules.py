"""A file of one's own rules: ours changed, ours silenced, new ones; every mistake is told with its line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from stabwatch.alerts import RULES, Engine
from stabwatch.alerts.user_rules import load_rules
from stabwatch.cli.app import app
from stabwatch.errors import RuleError
from tests.alerts.scenarios import block, wave

FILE = """
rules:
  LossSpike:
    for_points: 6
    thresholds: {loss_robust_z: 4}
  ActivationOutlierGrowth:
    muted: ["head*"]
  LossDivergence: {muted: true}
  Tokens:
    signal: token_similarity
    above: 0.9
    for_points: 2
    severity: critical
  Bound:
    signal: attention_logit_bound
    above: 20
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def _fired(rules, series):
    engine = Engine(rules)
    engine.observe(block(series))
    return [(a.rule, a.severity, a.layer, a.step) for a in engine.history if a.state == "firing"]


def test_thresholds_and_holds_are_changed(write):
    rules = load_rules(write(FILE))
    spike = {"loss": [*wave(100), *([6.0] * 5), *wave(40)]}
    assert [r for r, *_ in _fired(RULES, spike)] == ["LossSpike"]
    assert _fired(rules, spike) == [], "six in a row"
    longer = {"loss": [*wave(100), *([6.0] * 7), *wave(40)]}
    assert ("LossSpike", 105) in [(r, step) for r, _, _, step in _fired(rules, longer)]


def test_silence_holds_for_a_layer_or_everywhere(write):
    rules = load_rules(write(FILE))
    assert "LossDivergence" not in {r.name for r in rules}
    grown = [*wave(100, 10.0), *([3000.0] * 4)]
    found = _fired(rules, {"activation head": grown, "activation a": grown})
    assert {layer for _, _, layer, _ in found} == {"a"}


def test_rules_on_any_signal_and_on_derived_gauges(write):
    rules = load_rules(write(FILE))
    assert _fired(rules, {"tokens a": [0.5] * 20 + [0.95] * 5}) == [("Tokens", "critical", "a", 21)]
    found = _fired(rules, {"lower a": [10.0] * 20 + [25.0] * 5})
    assert ("Bound", "warning", "a", 20) in found


def test_the_diagnosis_knows_them(write):
    from stabwatch.alerts import diagnose

    engine = Engine(load_rules(write(FILE)))
    engine.observe(block({"tokens a": [0.5] * 20 + [0.95] * 5}))
    assert diagnose(engine).causes[0].name == "Tokens"


MISTAKES = {
    "rules:\n  LossSpike:\n    holds: 3": (3, "`holds` is unknown. Known keys: "),
    "rules:\n  LossSpike:\n    for_points: many": (3, "`for_points` must be a number of 1 or more"),
    "rules:\n  LossSpike:\n    thresholds: {los: 3}": (
        3,
        "compares loss_comparable, loss_data_changed, loss_rise_ratio",
    ),
    "rules:\n  Mine:\n    above: 3": (2, "A new rule needs a `signal`"),
    "rules:\n  Mine:\n    signal: loss": (2, "A rule needs `above` or `below`"),
    "rules:\n  Mine:\n    signal: los\n    above: 3": (3, "No signal and no derived gauge"),
    "rules:\n  Mine:\n    signal: loss\n    above: 3\n    severity: loud": (5, "`severity` must be one of"),
    "rule:\n  Mine: 3": (1, "`rule` is unknown. Known keys: rules"),
    "rules:\n  - a": (1, "rules by name"),
    "rules: [": (1, "not valid YAML"),
    "7": (1, "the file has `rules:`"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_told_with_its_line(text, write):
    line, message = MISTAKES[text]
    path = write(text)
    with pytest.raises(RuleError) as error:
        load_rules(path)
    assert str(error.value).startswith(f"{path}:{line}: ") and message in str(error.value)


def test_an_empty_file_changes_nothing_and_a_missing_one_says_so(write, tmp_path):
    assert load_rules(write("")) == RULES == load_rules(write("rules:\n"))
    with pytest.raises(RuleError, match="cannot be read"):
        load_rules(tmp_path / "none.yaml")


def test_the_commands(write):
    path = write(FILE)
    out = CliRunner().invoke(app, ["rules", "check", str(path)]).output
    assert "changed   LossSpike" in out and "new       Tokens" in out and "muted     LossDivergence" in out
    assert "6 points in a row" in CliRunner().invoke(app, ["rules", "show", "LossSpike", "--rules", str(path)]).output
    assert "AttentionLogitGrowth" in CliRunner().invoke(app, ["rules", "show"]).output
    wrong = CliRunner().invoke(app, ["rules", "check", str(write("rules:\n  Mine: {}"))])
    assert wrong.exit_code == 2

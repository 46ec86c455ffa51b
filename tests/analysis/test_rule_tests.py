"""Tests of rules: what fires is compared with what should, and a mistake in the file is told with its line."""

from __future__ import annotations

import textwrap

import pytest

from stabwatch.analysis.rule_tests import run_tests
from stabwatch.errors import RuleError

RULES = """
rules:
  RankFalls: {signal: stable_rank, below: 2, for_points: 3, severity: warning, summary: It falls.}
"""
FALLS = """\
  input_series:
    - series: stable_rank{layer="blocks.0"}
      values: 40x50 1.5x9 _x3 NaNx2 40x9
    - {series: 'stabwatch_stable_rank{layer="blocks.1"}', values: 40-0x70}
"""


@pytest.fixture
def judge(tmp_path):
    """The outcomes of tests, written below `tests:`."""

    def run(text, head="rules: mine.yaml\n"):
        (tmp_path / "mine.yaml").write_text(RULES)
        path = tmp_path / "tests.yaml"
        path.write_text(f"{head}tests:\n{textwrap.indent(textwrap.dedent(text), '  ')}")
        return run_tests(path)

    return run


@pytest.mark.parametrize(
    ("alerts", "missing", "extra"),
    [
        ("[{rule: RankFalls}]", 0, 0),
        ("[{rule: StabwatchRankFalls, severity: warning, layer: blocks.0, onset: 51, step: 53}]", 0, 0),
        ("[{rule: RankFalls, onset: [50, 52], step: [0, 60], signal: stable_rank}]", 0, 0),
        ("[{rule: RankFalls, onset: 50}]", 1, 1),
        ("[{rule: RankFalls, layer: blocks.1}]", 1, 1),
        ("[{rule: RankFalls, severity: critical}]", 1, 1),
        ("[{rule: RankFalls}, {rule: LossSpike}]", 1, 0),
        ("[]", 0, 1),
    ],
)
def test_what_fires_is_compared_with_what_should(judge, alerts, missing, extra):
    [outcome] = judge(f"- name: it falls\n{FALLS}  alerts: {alerts}\n")
    assert (len(outcome.missing), len(outcome.extra)) == (missing, extra)
    assert outcome.passed is not (missing or extra) and outcome.name == "it falls" and outcome.line == 3


def test_series_are_in_promtool_s_notation(judge):
    """1, 3, 5, then two steps that were not measured, and eleven ones: the last below 2 for three points."""
    text = """
        - input_series: [{series: stable_rank, values: "1+2x2 _x2 1x10 -5 1e-3"}]
          alerts: [{rule: RankFalls, onset: 5, step: 7}]
        - input_series: [{series: stable_rank, values: "1 1 5 1 1 _ 5"}]
          alerts: []
    """
    assert all(outcome.passed for outcome in judge(text))


def test_a_recorded_run_is_judged(judge, tmp_path):
    lines = [f"step {i} | loss {3 + 0.01 * (i % 7):.4f}" for i in range(200)]
    lines[150] = "step 150 | loss 60.0000"
    lines[151] = "step 151 | loss 55.0000"
    lines[152] = "step 152 | loss 50.0000"
    (tmp_path / "night.log").write_text("\n".join(lines))
    [good, bad] = judge("""
        - run: night.log
          only: LossSpike
          alerts: [{rule: LossSpike, onset: 150}]
        - run: night.log
          only: [RankFalls]
          alerts: [{rule: LossSpike}]
    """)
    assert good.passed and not bad.passed


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("- input_series: []\n", 3, "must list the `alerts` that fire"),
        ("- alerts: []\n", 3, "either `input_series` or `run`"),
        ("- run: x\n  input_series: []\n  alerts: []\n", 3, "either"),
        ("- input_series: []\n  alerts: [{rule: Nothing}]\n", 4, "No rule is called `Nothing`"),
        (
            "- input_series: []\n  alerts:\n  - {rule: RankFalls, at: 3}\n",
            5,
            "`at` is unknown. Known keys: rule, severity",
        ),
        ("- input_series: []\n  alerts: [{rule: RankFalls, step: soon}]\n", 4, "`step` must be a step or"),
        ("- input_series: []\n  alerts: [{rule: RankFalls, severity: loud}]\n", 4, "`severity` must be one of"),
        ("- input_series:\n  - series: losss\n    values: 1\n  alerts: []\n", 4, "No signal is called `losss`"),
        ("- input_series:\n  - series: loss{rank=1}\n    values: 1\n  alerts: []\n", 4, "`series` must be a signal"),
        ("- input_series:\n  - series: loss\n    values: 1..2\n  alerts: []\n", 5, "`1..2` is not a value"),
        ("- input_series:\n  - series: loss\n    values: 1x99999999999\n  alerts: []\n", 5, "at most"),
        ("- input_series: {}\n  alerts: []\n", 3, "`input_series` must be a list"),
        ("- 7\n", 3, "a test has a name"),
        ("- input_series: []\n  only: Nothing\n  alerts: []\n", 4, "No rule is called `Nothing`"),
    ],
)
def test_a_mistake_is_told_with_its_line(judge, text, line, said):
    with pytest.raises(RuleError, match=rf"tests\.yaml:{line}: .*{said}"):
        judge(text)


def test_a_file_that_is_no_yaml(tmp_path):
    for content, said in (("tests: [", r":\d+: not valid YAML"), ("\x00", "not valid YAML"), ("- 1", ":1: the file")):
        (tmp_path / "x.yaml").write_text(content)
        with pytest.raises(RuleError, match=said):
            run_tests(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleError):
        run_tests(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("")
    assert run_tests(tmp_path / "x.yaml") == []

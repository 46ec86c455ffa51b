"""Alert transitions grouped into spans, and the bar that shows one."""

from __future__ import annotations

from stabwatch.alerts import Alert
from stabwatch.alerts.incidents import alert_spans, rank, rule_incidents
from stabwatch.cli.render.analysis import timeline


def alert(step: int, severity: str = "warning", state: str = "firing", layer: str = "a", onset: int = 10) -> Alert:
    return Alert("R", severity, state, "loss", layer, step, onset, 0.0, float(step), 5.0, "", "")


def test_an_escalation_is_one_span():
    (one,) = alert_spans([alert(20), alert(30, "critical"), alert(50, "critical", "resolved")])
    assert (one.onset, one.fired, one.until, one.severity) == (10, {"warning": 20, "critical": 30}, 50, "critical")
    assert one.worst.value == 30


def test_a_second_time_is_a_second_span():
    first, second = alert_spans([alert(20), alert(25, state="resolved"), alert(40, onset=38)])
    assert (first.until, second.onset, second.until) == (25, 38, None)


def test_layers_are_apart_and_stand_by_onset():
    assert [s.layer for s in alert_spans([alert(20, onset=15), alert(21, layer="b", onset=12)])] == ["b", "a"]


def test_a_resolution_of_nothing_is_ignored():
    assert alert_spans([alert(20, state="resolved")]) == []


def test_rank():
    assert sorted(["new", "info", "critical", "warning"], key=rank) == ["critical", "warning", "info", "new"]


def test_the_bar():
    (one,) = rule_incidents([alert(50, onset=25), alert(75, state="resolved")])
    assert timeline(one, 0, 100, 20).plain == "─────━━━━━█████─────"
    assert timeline(one, 0, 100, 20, ascii_only=True).plain == "-----=====#####-----"
    for first, last in ((0, 0), (60, 70), (200, 300), (0, 26)):
        assert len(timeline(one, first, last, 20)) == 20

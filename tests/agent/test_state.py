"""The follower: what it makes of a run folder, and what it writes back."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from stabwatch.agent import outbox, state
from stabwatch.agent.state import Follower
from stabwatch.errors import RunLogError
from stabwatch.runlog import Event, append_event
from stabwatch.runlog.process import Gone, ProcessWatch
from tests.agent.conftest import events
from tests.agent.synthetic import meta


class Process(ProcessWatch):
    """A training process whose end the test decides."""

    def __init__(self) -> None:
        super().__init__(meta("any"))
        self.dead = False

    def gone(self, quiet_seconds: float) -> Gone | None:
        return Gone("it vanished") if self.dead else None


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(state, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(state, "HEAD_SECONDS", 0.0)


def firing(run, rule="AttentionLogitGrowth"):
    return [e for e in events(run, "alert") if e["rule"] == rule and e["state"] == "firing"]


@pytest.fixture
def follow():
    """A follower that has read what there is; lets go of its run with the test."""
    made = []

    def start(run, **more) -> Follower:
        made.append(Follower(run, process=Process(), **more))
        made[-1].poll()
        assert made[-1].errors == 0
        return made[-1]

    yield start
    for follower in made:
        follower.lease.release()


def test_the_sick_run_is_told_in_events_snapshot_and_page(new_log, follow):
    now = time.time()
    log = new_log("sick", now=lambda step: now + 0.1 * step - 30)
    log.write(range(300))
    follower = follow(log.path)
    alerts = firing(log.path)
    assert {e["layer"] for e in alerts} >= {"blocks.0.attn"}
    assert all(e["onset"] <= e["step"] < 300 for e in alerts)
    s = follower.snapshot
    assert (s.run, s.state, s.step) == ("sick", "running", 299)
    assert ("AttentionLogitGrowth", "blocks.0.attn") in {(rule, layer) for rule, _, layer in s.firing}
    assert follower.head["diagnosis"]["causes"]
    json.dumps(follower.head, allow_nan=False)
    assert follower.head["layers"][:4] == ["wte", "blocks.0.attn", "blocks.0.mlp", "blocks.0"]


def test_read_at_once_or_as_it_grows_gives_the_same_alerts(new_log, follow):
    runs = []
    for name, pieces in (("whole", [range(200)]), ("grown", [range(i, i + 8) for i in range(0, 200, 8)])):
        log = new_log(name)
        follower = follow(log.path)
        for steps in pieces:
            log.write(steps)
            follower.poll()
        log.end(200)
        follower.poll()
        assert follower.state == "finished"
        runs.append([(e["rule"], e["layer"], e["state"], e["step"], e["onset"]) for e in firing(log.path)])
    assert runs[0] == runs[1] != []


def test_a_restarted_agent_repeats_no_event(new_log, follow):
    log = new_log("r")
    log.write(range(250))
    first = follow(log.path)
    written = events(log.path, "alert")
    first.lease.release()
    log.write(range(250, 260))
    second = follow(log.path)
    identities = [(e["rule"], e["layer"], e["state"], e["step"]) for e in events(log.path, "alert")]
    assert len(identities) == len(set(identities))
    assert identities[: len(written)] == [(e["rule"], e["layer"], e["state"], e["step"]) for e in written]
    assert second.snapshot.step == 259


def test_a_second_agent_only_serves_until_the_first_is_gone(new_log, follow):
    log = new_log("r")
    first = follow(log.path)
    second = follow(log.path)
    log.write(range(250))
    second.poll()
    assert events(log.path, "alert") == []
    assert second.snapshot.firing
    first.lease.release()
    second.poll()
    assert firing(log.path)


def test_a_killed_process_gets_its_end_once(new_log, follow):
    log = new_log("r")
    log.write(range(10))
    follower = follow(log.path)
    follower._process.dead = True
    for _ in range(5):
        follower.poll()
    assert follower.state == "killed"
    (end,) = events(log.path, "end")
    assert (end["reason"], end["detail"], end["step"]) == ("killed", "it vanished", 9)
    assert follower.snapshot.state == "killed"
    assert [rule for rule, _, _ in follower.snapshot.firing] == ["TrainingStopped"]
    assert len(firing(log.path, "TrainingStopped")) == 1


def test_what_a_process_wrote_last_is_read_before_its_end_is_declared(new_log, follow):
    log = new_log("r")
    log.write(range(10))
    follower = follow(log.path)
    follower._process.dead = True
    follower.poll()
    log.write(range(10, 12))
    log.end(11)
    for _ in range(3):
        follower.poll()
    assert follower.state == "finished"
    assert len(events(log.path, "end")) == 1


def test_a_process_that_was_only_thought_dead_comes_back(new_log, follow):
    log = new_log("r", now=lambda step: time.time())
    log.write(range(10))
    follower = follow(log.path)
    follower._process.dead = True
    for _ in range(3):
        follower.poll()
    assert follower.state == "killed"
    follower._process.dead = False
    log.write(range(10, 12))
    follower.poll()
    assert follower.state == "running"
    follower.lease.release()
    assert follow(log.path).state == "running"


@pytest.mark.parametrize("reason", ["finished", "exception"])
def test_an_end_in_the_log_is_taken_as_it_stands(new_log, follow, reason):
    log = new_log("r")
    log.write(range(10))
    log.end(9, reason, error="ValueError: no")
    follower = follow(log.path)
    assert follower.state == reason
    assert follower.head["run"]["end"] == "ValueError: no"
    assert bool(firing(log.path, "TrainingStopped")) == (reason != "finished")


def test_what_was_not_seen_is_on_the_page_with_the_reason(new_log, follow):
    log = new_log("r")
    missing = [{"tap": "attention", "site": f"blocks.{i}.attn", "reason": "it never ran"} for i in range(9)]
    append_event(log.path, Event("coverage", 1.0, 3, {"missing": missing}))
    append_event(
        log.path, Event("error", 1.0, 3, {"probe": "activation", "message": "ValueError: no", "traceback": ""})
    )
    append_event(log.path, Event("coverage", 1.0, 4, {"missing": "nonsense"}))
    append_event(log.path, Event("coverage", 1.0, 5, {"missing": missing}))
    notices = follow(log.path).head["notices"]
    assert {"what": "Probe activation", "why": "ValueError: no"} in notices
    assert any(
        n["what"].endswith("blocks.{0, 1, 2, 3, 4, 5 and 3 more}.attn") and n["why"] == "it never ran" for n in notices
    )


def test_a_full_disk_costs_no_alert(new_log, follow, monkeypatch, capsys):
    log = new_log("r")
    follower = follow(log.path)
    write = outbox.append_event

    def full(run, event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outbox, "append_event", full)
    log.write(range(250))
    follower.poll()
    follower.poll()
    assert follower.snapshot.firing
    assert follower.errors > 0
    assert capsys.readouterr().err.count("stabwatch agent: events: OSError") == 1
    monkeypatch.setattr(outbox, "append_event", write)
    follower.poll()
    assert firing(log.path)


def test_alerts_that_are_written_are_told_though_the_next_cannot_be(new_log, follow, monkeypatch, capsys):
    log = new_log("r")
    follower, told, write = follow(log.path), [], outbox.append_event
    follower.tell.append(told.extend)

    def fills_up(run, event):
        if events(run, "alert"):
            raise OSError(28, "No space left on device")
        write(run, event)

    monkeypatch.setattr(outbox, "append_event", fills_up)
    log.write(range(250))
    follower.poll()
    assert len(told) == 1
    monkeypatch.setattr(outbox, "append_event", write)
    follower.poll()
    assert [e.data["rule"] for e in told] == [e["rule"] for e in events(log.path, "alert")] and len(told) > 1


def test_an_engine_that_raises_does_not_stop_the_agent(new_log, follow, monkeypatch, capsys):
    log = new_log("r")
    follower = follow(log.path)

    def broken(block):
        raise ZeroDivisionError("rule")

    monkeypatch.setattr(follower._engine, "observe", broken)
    log.write(range(5))
    follower.poll()
    assert follower.snapshot.step == 4
    assert follower.snapshot.agent_errors == 1
    assert "ZeroDivisionError: rule" in capsys.readouterr().err


def test_numbers_that_json_lacks_become_null_in_alert_events():
    from stabwatch.alerts import Alert

    alert = Alert(rule="NonFinite", severity="critical", state="firing", signal="loss", layer="", step=1, onset=1,
                  time=1.0, value=float("nan"), threshold=None, summary="s", description="d")  # fmt: skip
    line = json.loads(alert.to_event().to_json(), parse_constant=lambda name: pytest.fail(name))
    assert line["value"] is None
    assert line["step"] == 1


def test_not_a_run_folder(tmp_path):
    with pytest.raises(RunLogError, match="not a run folder"):
        Follower(tmp_path / "nothing", timeout=0.0)


def test_the_cap_is_kept_in_the_exposition(new_log, follow):
    from prometheus_client.parser import text_string_to_metric_families as parse

    from stabwatch.agent.server import App

    log = new_log("wide", layers=[f"blocks.{i}" for i in range(100)])
    log.write(range(220, 230))
    follower = follow(log.path, max_series=1500)
    assert follower.snapshot.series_dropped > 0
    body = b"".join(App(follower)(environ("/metrics"), lambda *_: None)).decode()
    assert sum(len(f.samples) for f in parse(body)) <= 1500
    assert f'stabwatch_series_dropped_total{{run="wide"}} {float(follower.snapshot.series_dropped)}' in body


def environ(path: str) -> dict[str, str]:
    return {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}


def test_the_rings_stay_small(new_log, follow):
    log = new_log("long", layers=["blocks.0"])
    row = log.row(0)
    for step in range(1000):
        log.folder.append(log.layout, step, float(step), row)
    follower = follow(log.path)
    assert len(follower.history._ids) <= 400
    assert len(follower._readings._buckets) <= 13
    assert np.isfinite(follower._readings.last).any()


def test_a_read_that_fails_once_loses_nothing(new_log, monkeypatch, capsys):
    log = new_log("r")
    log.write(range(10))
    follower, seen = Follower(log.path), []
    monkeypatch.setattr(follower.history, "observe", lambda block: seen.extend(block.steps.tolist()))
    poll, failures = follower.log.poll_events, [OSError(116, "Stale file handle")]

    def fails_once():
        if failures:
            raise failures.pop()
        return poll()

    monkeypatch.setattr(follower.log, "poll_events", fails_once)
    follower.poll()
    log.write(range(10, 20))
    follower.poll()
    assert seen == list(range(20)) and follower.errors == 1
    follower.lease.release()


def test_a_damaged_segment_hides_no_other_one(new_log, capsys):
    log = new_log("r")
    log.write(range(10))
    (log.path / "signals-005.arrows").mkdir()
    follower = Follower(log.path)
    for _ in range(3):
        follower.poll()
    assert follower.health.step == 9 and follower.errors == 1
    assert "signals-005.arrows is not a file. It is left out." in capsys.readouterr().err
    follower.lease.release()


def test_a_long_log_is_read_piece_by_piece(new_log, monkeypatch):
    log = new_log("r")
    log.write(range(400))
    monkeypatch.setattr("stabwatch.agent.state.READ_BYTES", 20_000)
    follower, sizes, seen = Follower(log.path), [], []
    observe = follower._readings.observe
    monkeypatch.setattr(
        follower._readings,
        "observe",
        lambda block, now: (sizes.append(len(block)), seen.extend(block.steps), observe(block, now)),
    )
    follower.poll()
    assert seen == list(range(400)) and max(sizes) < 200
    follower.lease.release()


def test_what_was_written_before_an_event_is_observed_before_it(new_log, follow, monkeypatch):
    """The end of a run may be written between a look at the records and one at the events."""
    log = new_log("r", now=lambda step: time.time())
    log.write(range(10))
    follower = follow(log.path)
    read = follower.log.poll_events

    def late():
        if follower.log.poll_events is late:
            monkeypatch.setattr(follower.log, "poll_events", read)
            log.write(range(10, 20))
            log.end(19, "exception", error="ValueError: no")
        return read()

    monkeypatch.setattr(follower.log, "poll_events", late)
    follower.poll()
    follower.poll()
    assert [e["state"] for e in events(log.path, "alert") if e["rule"] == "TrainingStopped"] == ["firing"]
    assert [rule for rule, _, _ in follower.snapshot.firing] == ["TrainingStopped"] and follower.snapshot.step == 19

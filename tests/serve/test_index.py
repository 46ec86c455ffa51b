"""The list of runs: what is found, what is known of each, and what a restart remembers."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time

import pytest

from stabwatch.runlog import Event, append_event
from stabwatch.runlog.glance import Glance
from stabwatch.runlog.labels import Labels, write_labels
from stabwatch.serve import cache, index
from stabwatch.serve.folders import identifier, run_folders
from stabwatch.serve.headline import Headline
from stabwatch.serve.index import Index
from tests.agent.synthetic import Log


def rows(found: Index) -> dict[str, dict]:
    return {row["folder"]: row for row in found.rows()}


def alert(rule: str, onset: int, layer: str = "", severity: str = "critical", state: str = "firing") -> Event:
    data = {"rule": rule, "severity": severity, "state": state, "signal": "s", "layer": layer, "onset": onset,
            "summary": f"{rule} happened."}  # fmt: skip
    return Event("alert", 1.0, onset + 3, data)


def dead() -> dict:
    """Facts of a process that is gone."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return {"pid": done.pid, "pid_started": time.time() - 3000}


def test_runs_are_found_at_any_depth_and_links_are_not_followed(runs, root):
    for name in ("a", "group/b", "group/deeper/c"):
        runs(name).write(range(2))
    (root / "empty").mkdir()
    (root / ".hidden").mkdir()
    runs(".hidden/d")
    os.symlink(root / "group", root / "link")
    os.symlink(root, root / "group" / "loop")
    assert {path.relative_to(root).as_posix() for path in run_folders(root)} == {"a", "group/b", "group/deeper/c"}


def test_a_row_says_what_is_known_of_a_run(runs, root):
    log = runs("group/going")
    log.write(range(20))
    runs("ended").end(0)
    failed = runs("failed")
    failed.write(range(5))
    failed.end(4, "exception", error="ValueError: no")
    runs("killed", **dead()).write(range(3))
    (root / "broken").mkdir()
    (root / "broken" / "meta.json").write_text("{")
    found = Index(root)
    found.poll()
    all_rows = rows(found)
    going = all_rows["group/going"]
    assert (going["state"], going["step"], going["name"], going["model"]) == ("running", 19, "going", "GPT")
    assert 2 < going["loss"] < 5
    assert (all_rows["failed"]["state"], all_rows["failed"]["end"]) == ("exception", "ValueError: no")
    assert all_rows["failed"]["severity"] == "critical" and "ValueError: no" in all_rows["failed"]["verdict"]
    assert (all_rows["killed"]["state"], all_rows["killed"]["first"]) == ("killed", "TrainingStopped")
    assert all_rows["broken"]["state"] == "unreadable" and "cannot be read" in all_rows["broken"]["verdict"]
    assert all_rows["ended"]["state"] == "finished" and "No rules have been evaluated" in all_rows["ended"]["verdict"]


def test_only_what_changed_is_sent_again(runs, root):
    log = runs("a")
    log.write(range(3))
    runs("b").end(0)
    found = Index(root)
    found.poll()
    first = found.since(-1)
    assert len(first["rows"]) == 2 and first["whole"]
    assert found.since(first["version"])["rows"] == []
    log.write(range(3, 5))
    found.poll()
    (changed,) = found.since(first["version"])["rows"]
    assert (changed["folder"], changed["step"]) == ("a", 4)


def test_new_and_deleted_folders_are_seen(runs, root, monkeypatch):
    monkeypatch.setattr(index, "FIND_SECONDS", 0.0)
    runs("a").end(0)
    found = Index(root)
    found.poll()
    runs("b").end(0)
    found.poll()
    assert set(rows(found)) == {"a", "b"}
    version = found.since(-1)["version"]
    shutil.rmtree(root / "a")
    found.poll()
    assert found.since(version)["gone"] == [identifier("a")]
    assert found.path(identifier("a")) is None and found.path(identifier("b")) == root / "b"


def test_an_ended_run_that_goes_on_is_seen(runs, root, monkeypatch):
    monkeypatch.setattr(index, "FIND_SECONDS", 0.0)
    log = runs("a")
    log.write(range(3))
    log.end(2)
    found = Index(root)
    found.poll()
    assert rows(found)["a"]["state"] == "finished"
    log.folder.event(Event("start", log.now(3), 3))
    log.write(range(3, 6))
    found.poll()
    assert (rows(found)["a"]["state"], rows(found)["a"]["step"]) == ("running", 5)


def test_the_list_is_there_before_the_logs_are_read(runs, root, monkeypatch):
    logs = {name: runs(name, **(dead() if name == "killed" else {})) for name in ("ended", "failed", "killed", "going")}
    for log in logs.values():
        log.write(range(3))
        append_event(log.path, alert("LossSpike", 1, severity="warning"))
    logs["ended"].end(2)
    logs["failed"].end(2, "exception", error="ValueError: no")
    monkeypatch.setattr(index, "READ_SECONDS", 0.0)
    monkeypatch.setattr(index, "READ_AT_LEAST", 0)
    found = Index(root)
    found.poll()
    seen = rows(found)
    assert {name: row["state"] for name, row in seen.items()} == {
        "ended": "finished", "failed": "exception", "killed": "killed", "going": "running"
    }  # fmt: skip
    assert found.complete and found.unread == 4 and found.live() == []
    assert (seen["ended"]["step"], seen["ended"]["verdict"]) == (2, "Its log has not been read yet.")
    assert "ValueError: no" in seen["failed"]["verdict"] and not seen["failed"]["read"]
    monkeypatch.setattr(index, "READ_AT_LEAST", 1)
    found.poll()
    assert [run.folder for run in found.live()] == ["going"]  # it comes first
    monkeypatch.setattr(index, "READ_AT_LEAST", 9)
    found.poll()
    assert found.unread == 0 and {row["first"] for row in rows(found).values()} == {"LossSpike"}
    assert all(row["read"] and row["loss"] for row in rows(found).values())


def test_labels_are_those_of_now(runs, root, monkeypatch):
    monkeypatch.setattr(index, "FIND_SECONDS", 0.0)
    going, ended = (
        runs(f, tags=["first", "old"], name="A name", config={"tags": "no tag"}) for f in ("going", "ended")
    )
    going.write(range(3))
    ended.write(range(3))
    ended.end(2)
    found = Index(root)
    found.poll()
    assert all((row["tags"], row["called"]) == (["first", "old"], "A name") for row in rows(found).values())
    found.judge("ended", {"severity": "warning", "verdict": "It was judged.", "first": "LossSpike", "active": 0})
    for name in ("going", "ended"):
        write_labels(root / name, Labels("Another", ("new",), "Some notes"))
    found.poll()
    for row in rows(found).values():
        assert (row["tags"], row["called"], row["notes"], row["name"]) == (
            ["new"],
            "Another",
            "Some notes",
            row["folder"],
        )
    assert rows(found)["ended"]["verdict"] == "It was judged."


def test_ended_runs_are_not_read_again_after_a_restart(runs, root, monkeypatch):
    log = runs("a")
    log.write(range(3))
    log.end(2)
    first = Index(root)
    first.poll()
    first.judge("a", {"severity": "warning", "verdict": "It was judged.", "first": "LossSpike", "active": 0})
    first.save()
    monkeypatch.setattr(index, "ListedRun", None)
    second = Index(root)
    second.poll()
    row = rows(second)["a"]
    assert (row["step"], row["verdict"], row["judged"]) == (2, "It was judged.", True)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}\n{', '{"version": 2}\n{"folder": 3}', '{"version": 7}\n'])
def test_a_damaged_file_of_ended_runs_is_as_none(root, runs, text):
    (root / cache.FILE).write_text(text)
    assert cache.load(root) == {}


def test_a_folder_that_may_not_be_written_is_served_all_the_same(runs, root, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "no")

    runs("a").end(0)
    monkeypatch.setattr(cache, "save", refuse)
    found = Index(root)
    found.poll()
    found.save()
    assert set(rows(found)) == {"a"}


def test_the_first_incident_is_that_of_the_diagnosis():
    seen = Headline()
    seen.observe(alert("TrainingStopped", 1))
    seen.observe(alert("LossSpike", 40, severity="warning"))
    seen.observe(alert("AttentionLogitGrowth", 38, "blocks.1"))
    seen.observe(alert("AttentionLogitGrowth", 39, "blocks.2"))
    seen.observe(alert("OverheadNote", 0, severity="info"))
    assert (seen.first, seen.severity, seen.active) == ("AttentionLogitGrowth", "critical", 4)
    assert seen.text == "AttentionLogitGrowth happened, first in layer blocks.1, since step 38. 2 layers are affected."
    seen.observe(alert("AttentionLogitGrowth", 38, "blocks.1", state="resolved"))
    seen.observe(alert("AttentionLogitGrowth", 39, "blocks.2", state="resolved"))
    assert seen.text.endswith("It has returned to normal since.")
    assert seen.active == 2


def test_a_loss_that_stays_up_is_not_said_to_be_back():
    seen = Headline()
    for rule in ("LossSpike", "LossLostAtRateJump"):
        seen.observe(alert(rule, 40, severity="warning"))
    seen.observe(alert("LossSpike", 40, severity="warning", state="resolved"))
    assert "returned" not in seen.text
    seen.observe(alert("LossLostAtRateJump", 40, severity="warning", state="resolved"))
    assert seen.text.endswith("It has returned to normal since.")


def test_the_events_of_an_agent_become_the_verdict(runs, root):
    log = runs("a")
    log.write(range(30))
    append_event(log.path, alert("AttentionLogitGrowth", 11, "blocks.3"))
    with open(log.path / "events.jsonl", "a") as file:
        file.write('{"kind": "alert", "time": "broken\n{"kind": "alert", "time": 1}\n{"kind": "al')
    found = Index(root)
    found.poll()
    row = rows(found)["a"]
    assert (row["first"], row["active"], row["severity"]) == ("AttentionLogitGrowth", 1, "critical")


def test_a_glance_reads_the_newest_records_and_the_shape_of_the_loss(new_log):
    log: Log = new_log("r")
    glance = Glance(log.path)
    assert not glance.poll() and glance.sample("loss", 10) == []
    log.write(range(100))
    assert glance.poll() and not glance.poll()
    assert glance.step == 99
    assert glance.values["learning_rate"] == pytest.approx(0.03)
    values = glance.sample("loss", 10)
    assert len(values) == 10 and values[0] > 3.5 and values[-1] < 2.9
    row = log.row(100)
    log.put(row, "loss", "", "mean", sum=math.nan)
    log.folder.append(log.layout, 100, log.now(100), row)
    assert glance.poll() and math.isnan(glance.values["loss"])


def test_a_glance_leaves_damaged_records_out(new_log):
    log: Log = new_log("r")
    log.write(range(50))
    (segment,) = log.path.glob("*.arrows")
    data = bytearray(segment.read_bytes())
    size = len(data) // 52
    data[-size * 3 : -size * 2] = b"x" * size
    segment.write_bytes(data)
    glance = Glance(log.path)
    assert glance.poll() and glance.step == 49
    assert 40 <= len(glance.sample("loss", 100)) < 50


def test_rows_are_json(runs, root):
    log = runs("a")
    log.write(range(2))
    found = Index(root)
    found.poll()
    json.dumps(found.since(-1), allow_nan=False)

"""The service: its addresses, who may ask, what it judges, and how it lives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stabwatch.agent.discovery import Lease, is_led
from stabwatch.agent.heartbeat import Heartbeat
from stabwatch.errors import AgentError
from stabwatch.runlog.mirror import Mirror
from stabwatch.serve import judges, opened, serve_folder
from stabwatch.serve.clusters import clusters
from tests.agent.conftest import events, get, until
from tests.serve.test_index import dead

ALONE = {"config": {"agent": False}}


def test_the_list_and_the_page_of_a_run(runs, root, serving):
    runs("group/a").write(range(40))
    service = serving(root)
    status, headers, body = get(service.url)
    assert status == 200 and b"Runs" in body and "default-src 'none'" in headers["Content-Security-Policy"]
    listed = json.loads(get(service.url + "api/runs.json")[2])
    (row,) = listed["rows"]
    page = f"{service.url}runs/{row['id']}/"
    assert get(page)[0] == 200 and get(page + "page.js")[0] == 200
    until(lambda: json.loads(get(page + "api/state.json")[2])["progress"]["step"] == 39)
    state = json.loads(get(page + "api/state.json")[2])
    assert state["run"]["name"] == "a" and state["above"] == "../../" and len(state["points"]["steps"]) == 40
    assert 'layer="blocks.1"' in get(page + "metrics")[2].decode()
    sparks = json.loads(get(f"{service.url}api/sparks.json?ids={row['id']},unknown")[2])
    assert len(sparks[row["id"]]) == 40 and list(sparks) == [row["id"]]
    assert not (root / "group/a/agent.lock").exists()


@pytest.mark.parametrize(
    "path", ["runs/", "runs/x/", "runs/../x", "runs/%2e%2e/", "nothing", "runs.py", "api/", "runs/x"]
)
def test_nothing_else_is_served(runs, root, serving, path):
    runs("a").write(range(2))
    assert get(serving(root).url + path)[0] == 404


def test_a_run_without_its_slash_is_redirected_within_the_service(runs, root, serving):
    runs("a").write(range(2))
    service = serving(root)
    import urllib.request

    with urllib.request.urlopen(f"{service.url}runs/{service.row('a')['id']}") as answer:
        assert answer.url.endswith("/")


def test_who_may_ask(runs, root, serving):
    runs("a").write(range(2))
    assert get(serving(root).url, headers={"Host": "evil.example"})[0] == 421
    locked = serving(root, token="me:secret")
    for path in ("", "api/runs.json", "metrics", "healthz", "sd", f"runs/{locked.row('a')['id']}/api/state.json"):
        assert get(locked.url + path)[0] == 401


def test_metrics_of_all_runs_have_the_names_of_an_agent(runs, root, serving):
    for name in ("x/a", "y/a", "b"):
        runs(name, **ALONE, sick=name == "b").write(range(150))
    service = serving(root)
    service.round()
    text = get(service.url + "metrics")[2].decode()
    names = set(re.findall(r'stabwatch_step\{run="([^"]+)"\}', text))
    assert len(names) == 3 and {"a", "b"} < names
    samples = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) == len(set(samples))
    assert 'stabwatch_loss{run="b"}' in text
    assert re.search(r'stabwatch_alerts_firing\{.*rule="AttentionLogitGrowth",run="b",severity="critical"\} 1.0', text)
    assert 'stabwatch_service_runs{state="running"} 3.0' in text
    beat = float(re.search(r"heartbeat_timestamp_seconds (\d\S+)", text)[1])
    assert abs(time.time() - beat) < 5


def test_discovery_names_the_runs_that_are_judged_here(runs, root, serving):
    runs("a", **ALONE).write(range(20))
    runs("with-agent").write(range(20))
    service = serving(root)
    (target,) = json.loads(get(service.url + "sd")[2])
    assert target["targets"] == [f"127.0.0.1:{service.server.port}"]
    assert target["labels"]["run"] == "a"
    text = get(service.url.rstrip("/") + target["labels"]["__metrics_path__"])[2].decode()
    assert 'stabwatch_step{run="a"} 19.0' in text and 'layer="blocks.1"' in text


def test_a_run_without_an_agent_is_judged_and_its_alerts_are_written(runs, root, serving):
    log = runs("a", **ALONE, sick=True)
    log.write(range(200))
    service = serving(root)
    assert {e["rule"] for e in events(log.path, "alert")} >= {"AttentionLogitGrowth"}
    service.round()
    assert (service.row("a")["first"], service.row("a")["judged"]) == ("AttentionLogitGrowth", True)


def test_a_run_with_an_agent_is_left_to_it(runs, root, serving, monkeypatch):
    log = runs("a", sick=True)
    log.write(range(200))
    service = serving(root)
    assert not service.judges.followers() and events(log.path, "alert") == []
    monkeypatch.setattr(judges, "GRACE_SECONDS", 0.0)  # it has been missing for long
    service.round()
    assert len(service.judges.followers()) == 1
    other = runs("b", **ALONE)
    lease = Lease(other.path)
    assert lease.held()
    other.write(range(20))
    monkeypatch.setattr("stabwatch.serve.index.FIND_SECONDS", 0.0)
    service.round()
    assert service.row("b")["state"] == "running" and len(service.judges.followers()) == 1
    lease.release()


def test_an_ended_run_is_followed_no_longer(runs, root, serving, monkeypatch):
    log = runs("a", **ALONE)
    log.write(range(20))
    service = serving(root)
    monkeypatch.setattr(judges, "LINGER_SECONDS", 0.0)
    log.end(19)
    for _ in range(3):
        service.round()
        time.sleep(0.01)
    assert not service.judges.followers()
    assert not is_led(log.path)


def test_ended_runs_that_nobody_judged_are_analysed(runs, root, serving):
    log = runs("a", sick=True)
    log.write(range(300))
    log.end(299)
    service = serving(root, analyse=True)

    def judged() -> bool:
        service.round()
        return service.row("a")["judged"]

    until(judged, timeout=60)
    assert service.row("a")["severity"] == "critical" and "ttention" in service.row("a")["verdict"]


def test_two_runs_are_compared(runs, root, serving):
    for name, sick in (("a", False), ("b", True)):
        log = runs(name, sick=sick, config={"batch": name, "agent": False})
        log.write(range(200))
        log.end(199)
    service = serving(root)
    ids = ",".join(service.row(name)["id"] for name in "ab")
    found = json.loads(get(f"{service.url}api/compare.json?runs={ids}", timeout=60)[2])
    assert found["runs"] == ["a", "b"] and found["ids"] == ids.split(",")
    assert {"name": "stabwatch.batch", "values": ["a", "b"]} in found["differences"]
    (pair,) = found["pairs"]
    assert pair["diverged"][0]["signal"].startswith("attention_")
    assert [c["signal"] for c in found["curves"] if c["signal"] == "loss"] == ["loss"]
    one = json.loads(get(f"{service.url}api/compare.json?runs={service.row('a')['id']},nothing")[2])
    assert "two or more" in one["error"]


def test_open_pages_are_closed_again(runs, root, serving, monkeypatch):
    monkeypatch.setattr(opened, "MOST", 2)
    monkeypatch.setattr(opened, "IDLE_SECONDS", 0.0)
    for name in "abc":
        runs(name).write(range(3))
    service = serving(root)
    for name in "abc":
        get(f"{service.url}runs/{service.row(name)['id']}/api/state.json")
        assert len(service.opened._open) <= 2
    until(lambda: not service.opened._open)


def test_clusters_share_what_others_do_not_have():
    rows = [{"id": f"{i}", "first": "LossSpike" if i < 4 else "", "judged": True} for i in range(10)]
    facts = {
        f"{i}": {"host": "bad" if i < 4 else f"h{i}", "model": "GPT", "lr": "1" if i % 2 else "2"} for i in range(10)
    }
    spikes, calm = clusters(rows, facts)
    assert (spikes.first, len(spikes.runs), spikes.title) == ("LossSpike", 4, "Loss spike")
    assert [(s.name, s.value, s.here, s.elsewhere) for s in spikes.shared] == [("host", "bad", 1.0, 0.0)]
    assert (calm.first, calm.shared) == ("", ())
    assert clusters([{"id": "1", "first": "", "judged": False}], {}) == []


def test_health(runs, root, serving, monkeypatch):
    runs("a").write(range(2))
    runs("b", **dead()).write(range(2))
    service = serving(root)
    status, _, body = get(service.url + "healthz")
    health = json.loads(body)
    assert (status, health["ok"], health["runs"]) == (200, True, {"running": 1, "killed": 1})
    monkeypatch.setattr("stabwatch.serve.app.HEALTHY_SECONDS", 0.0)
    assert get(service.url + "healthz")[0] == 503


def test_a_root_that_is_gone_is_told_and_recovers(runs, root, serving, monkeypatch, capsys):
    monkeypatch.setattr("stabwatch.serve.index.FIND_SECONDS", 0.0)
    runs("a").end(0)
    service = serving(root)
    root.rename(root.with_name("away"))
    service.round()
    service.round()
    health = json.loads(get(service.url + "healthz")[2])
    assert not health["ok"] and "cannot be read" in health["problem"]
    assert capsys.readouterr().err.count("stabwatch serve:") == 1
    root.with_name("away").rename(root)
    service.round()
    assert json.loads(get(service.url + "healthz")[2])["ok"]


def test_the_heartbeat_beats_only_while_the_service_is_alive(monkeypatch):
    sent: list[str] = []
    monkeypatch.setattr("stabwatch.agent.heartbeat.post", lambda url, data: sent.append(url))
    alive = [True]
    beat = Heartbeat("http://x", lambda: alive[0], seconds=0.01)
    until(lambda: len(sent) >= 2)
    alive[0] = False
    time.sleep(0.05)
    count = len(sent)
    time.sleep(0.1)
    assert len(sent) == count
    beat.close()


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(AgentError, match="is not a folder"):
        serve_folder(tmp_path / "nothing", port=0)


def test_runs_of_an_object_store_are_copied_and_nothing_is_written_beside_them(
    runs, root, tmp_path, monkeypatch, serving
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("stabwatch.serve.index.FIND_SECONDS", 0.0)
    log = runs("a", **ALONE, sick=True)
    log.write(range(120))
    mirror = Mirror(f"file://{root}")
    mirror.sync()
    service = serving(mirror.folder, mirror=mirror)
    assert (service.row("a")["state"], service.row("a")["step"]) == ("running", 119)
    log.write(range(120, 130))
    copying = threading.Thread(target=service.service.copy)
    copying.start()
    (written,) = log.path.glob("*.arrows")
    until(lambda: (mirror.folder / "a" / written.name).stat().st_size == written.stat().st_size)
    service.round()
    assert service.row("a")["step"] == 129 and not service.judges.followers()
    assert not any(p.name == "agent.lock" for p in mirror.folder.rglob("*"))
    service.service.stopping.set()
    root.rename(root.with_name("away"))
    monkeypatch.setattr("stabwatch.serve.service.MIRROR_SECONDS", 0.0)
    service.service.stopping.clear()
    copying.join(0.1)
    again = threading.Thread(target=service.service.copy)
    again.start()
    until(lambda: service.service.errors)
    service.service.stopping.set()
    service.service.poll()
    again.join(10)
    copying.join(10)
    assert "cannot be read" in json.loads(get(service.url + "healthz")[2])["problem"]
    assert service.row("a")["step"] == 129  # what was copied is still shown


def test_the_command(runs, root):
    runs("a", **ALONE, sick=True).write(range(120))
    command = [sys.executable, "-m", "stabwatch", "serve", str(root), "--port", "0", "--no-analyse"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
                               cwd=Path(__file__).parents[2])  # fmt: skip
    try:
        url = re.search(r"(http://\S+/) ", process.stdout.readline())[1]
        until(lambda: json.loads(get(url + "api/runs.json")[2])["rows"])
        until(lambda: json.loads(get(url + "api/runs.json")[2])["rows"][0]["first"] == "AttentionLogitGrowth")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not is_led(root / "a")
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()

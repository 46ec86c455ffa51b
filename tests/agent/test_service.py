"""The life of an agent, in processes of its own."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from stabwatch.agent import serve
from stabwatch.agent.__main__ import main
from stabwatch.errors import AgentError
from tests.agent.conftest import events, get, until


def test_kill_9_is_seen_told_and_outlived(tmp_path, start_training, start_agent):
    run = tmp_path / "victim"
    training = start_training(run)
    agent = start_agent(run, "--linger", "3")
    until(lambda: "stabwatch_step{" in agent.metrics())
    target = tmp_path / "targets" / "victim.json"
    assert json.loads(target.read_text()) == [
        {"targets": [agent.info()["url"].removeprefix("http://").rstrip("/")], "labels": {"run": "victim"}}
    ]
    training.send_signal(signal.SIGKILL)
    training.wait()
    (end,) = until(lambda: events(run, "end"), what="the end event")
    assert end["reason"] == "killed"
    text = until(lambda: 'rule="TrainingStopped"' in (m := agent.metrics()) and 'state="killed"} 1.0' in m and m)
    (line,) = [x for x in text.splitlines() if "alerts_firing{" in x and 'rule="TrainingStopped"' in x]
    assert line.endswith(" 1.0")
    assert agent.process.wait(60) == 0
    assert [e["rule"] for e in events(run, "alert") if e["rule"] == "TrainingStopped"] == ["TrainingStopped"]
    assert not target.exists()
    assert not (run / "agent.json").exists()


def test_every_record_before_the_kill_is_there(tmp_path, start_training, start_agent):
    from stabwatch.runlog import read_run

    run = tmp_path / "r"
    training = start_training(run)
    agent = start_agent(run, "--linger", "30")
    agent.info()
    until(lambda: len(read_run(run).steps))
    training.kill()
    training.wait()
    last = read_run(run).steps[-1]
    until(lambda: events(run, "end"))
    assert f'stabwatch_step{{run="r"}} {float(last)}' in agent.metrics()


def test_a_finished_run_lingers_and_goes(new_log, start_agent):
    log = new_log("done")
    log.write(range(20))
    agent = start_agent(log.path, "--linger", "1")
    assert 'state="running"} 1.0' in agent.metrics()
    log.end(19)
    assert agent.process.wait(60) == 0
    assert len(events(log.path, "end")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_go_it_goes_in_good_order(new_log, start_agent, number):
    log = new_log("r")
    log.write(range(5))
    agent = start_agent(log.path, "--file-sd", str(log.path / "sd"))
    agent.info()
    assert (log.path / "sd" / "r.json").exists()
    agent.process.send_signal(number)
    assert agent.process.wait(60) == 0
    assert not (log.path / "sd" / "r.json").exists()
    assert not (log.path / "agent.json").exists()
    assert events(log.path, "end") == []


def test_killed_and_restarted_it_repeats_nothing(new_log, start_agent):
    log = new_log("r")
    log.write(range(250))
    first = start_agent(log.path)
    until(lambda: 'stabwatch_step{run="r"} 249.0' in first.metrics())  # then its alerts are written too
    before = events(log.path, "alert")
    assert before
    first.process.kill()
    first.process.wait()
    second = start_agent(log.path)
    until(lambda: 'stabwatch_step{run="r"} 249.0' in second.metrics())
    assert events(log.path, "alert") == before


def test_two_agents_on_one_run(new_log, start_agent):
    log = new_log("r")
    first = start_agent(log.path)
    port = first.info()["port"]
    second = start_agent(log.path, port=port)
    url = until(lambda: [u for u in re.findall(r"run r: (\S+)", second.said()) if f":{port}/" not in u])[0]
    assert f"port {port} is taken, using" in second.said()
    assert "this one only serves" in second.said()
    assert get(url + "healthz")[0] == 200
    log.write(range(250))
    until(lambda: len(events(log.path, "alert")) and "stabwatch_step{" in get(url + "metrics")[2].decode())
    identities = [(e["rule"], e["layer"], e["step"], e["state"]) for e in events(log.path, "alert")]
    assert len(identities) == len(set(identities))
    assert first.info()["url"] != url
    first.process.terminate()
    first.process.wait(60)
    assert second.info()["url"] == url


def test_it_starts_before_the_folder_is_complete(tmp_path, start_agent, new_log):
    (tmp_path / "late").mkdir()
    agent = start_agent(tmp_path / "late")
    log = new_log("late")
    log.write(range(3))
    until(lambda: 'stabwatch_step{run="late"} 2.0' in agent.metrics())


def test_no_torch_and_little_memory(new_log, start_agent):
    log = new_log("r", layers=[f"blocks.{i}" for i in range(24)])
    log.write(range(50))
    agent = start_agent(log.path)
    agent.metrics()
    get(agent.info()["url"] + "api/state.json")
    with open(f"/proc/{agent.process.pid}/maps") as maps:
        assert "torch" not in maps.read()
    with open(f"/proc/{agent.process.pid}/status") as status:
        (rss,) = [int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS")]
    assert rss < 160, f"{rss:.0f} MiB"


def test_importing_the_agent_imports_no_torch():
    code = "import sys, stabwatch.agent; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--username", "me"], "needs a password"),
        (["--certfile", "x.pem"], "both a certificate and its key"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_bad_options_are_one_clear_line(new_log, capsys, options, message):
    log = new_log("r")
    assert main([str(log.path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_missing_run_is_one_clear_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "nothing").mkdir()
    monkeypatch.setattr("stabwatch.agent.service.WAIT_SECONDS", 0.0)
    assert main([str(tmp_path / "nothing")]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_login_from_the_environment(new_log, start_agent):
    log = new_log("r")
    agent = start_agent(log.path, "--username", "me", env={"STABWATCH_PASSWORD": "secret"})
    url = agent.info()["url"]
    assert get(url)[0] == 401
    assert get(url, headers={"Authorization": "Basic bWU6c2VjcmV0"})[0] == 200
    with open(f"/proc/{agent.process.pid}/cmdline") as command:
        assert "secret" not in command.read()


def test_a_password_alone_asks_for_a_login(new_log, start_agent):
    agent = start_agent(new_log("r").path, "--host", "0.0.0.0", env={"STABWATCH_PASSWORD": "secret"})
    port = agent.info()["port"]
    url = f"http://127.0.0.1:{port}/healthz"
    assert get(url)[0] == 401
    assert get(url, headers={"Authorization": "Basic " + base64.b64encode(b"stabwatch:secret").decode()})[0] == 200
    assert "without a password" not in agent.said()


def test_other_names_of_the_service_come_from_the_environment(new_log, start_agent):
    agent = start_agent(new_log("r").path, env={"STABWATCH_HOSTS": "runs.example.org, other"})
    url = agent.info()["url"] + "healthz"
    assert [get(url, headers={"Host": host})[0] for host in ("runs.example.org:80", "other", "evil.example.org")] == [
        200, 200, 421,
    ]  # fmt: skip


def test_open_to_the_network_only_when_asked(new_log, start_agent):
    log = new_log("r")
    agent = start_agent(log.path, "--host", "0.0.0.0")
    info = agent.info()
    assert info["host"] == "0.0.0.0"
    assert info["url"] == f"http://{socket.gethostname()}:{info['port']}/"
    assert "without a password" in until(agent.said)


def test_serve_in_a_thread_of_a_program(new_log):
    log = new_log("r")
    log.write(range(3))
    log.end(2)
    began = time.monotonic()
    assert serve(log.path, port=0, linger=0.0) == 0
    assert time.monotonic() - began < 30, "it does not linger"
    with pytest.raises(AgentError, match="colon"):
        serve(log.path, port=0, username="a:b", password="c")
    # the signal handlers of the program are its own again
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

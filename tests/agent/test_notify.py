"""Alerts to a webhook: grouped, told once, tried again, and the address is never shown."""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import pytest

from stabwatch.agent import notify, receivers
from stabwatch.agent.notify import Notifier
from stabwatch.agent.receivers import WEBHOOK, Command, Message, Refused, Webhook, address, post
from stabwatch.agent.where import Where
from stabwatch.alerts import RULES
from stabwatch.alerts.catalogue import BY_NAME
from stabwatch.errors import ConfigError
from stabwatch.runlog import Event
from tests.agent.conftest import until

SECRET = "/services/T000/B000/secret"


@pytest.fixture
def receiver(monkeypatch):
    monkeypatch.setattr(notify, "GROUP_SECONDS", 0.2)

    class Slack(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code = self.server.answers.pop(0) if self.server.answers else 200
            if code == 200:
                self.server.got.append(body["text"])
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Slack)
    server.got, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}{SECRET}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _alert(layer="blocks.0", rule="AttentionLogitGrowth", severity="critical", state="firing", step=40):
    data = {"rule": rule, "severity": severity, "state": state, "layer": layer, "onset": 12, "summary": "Logits grow."}
    return Event("alert", 1.0, step, data)


def test_layers_of_a_rule_are_one_line_and_told_once(receiver):
    notifier = Notifier(Webhook(receiver.url), Where("night"), RULES)
    notifier.tell([_alert(), _alert("blocks.1")])
    notifier.tell([_alert("blocks.2"), _alert(rule="LossSpike", severity="info")])
    until(lambda: receiver.got)
    notifier.tell([_alert("blocks.3")])
    notifier.close()
    (text,) = receiver.got
    assert text.startswith("CRITICAL night: Logits grow. First in blocks.0 and 2 more. Since step 12. https://")
    first, *more = text.splitlines()
    assert first.endswith("AttentionLogitGrowth.md")
    assert more == [f"  Do now: {' '.join(BY_NAME['AttentionLogitGrowth'].remedy)}"]


def test_what_is_over_is_told(receiver):
    notifier = Notifier(Webhook(receiver.url), Where("night"), RULES)
    notifier.tell([_alert(state="resolved", step=90)])
    notifier.close()
    assert receiver.got == ["night: over at step 90: Logits grow."]


def test_a_receiver_that_stumbles_is_tried_again_and_one_that_refuses_is_not(receiver, capfd):
    receiver.answers = [503, 429]
    failures = []
    notifier = Notifier(
        Webhook(receiver.url), Where("night"), RULES, lambda: failures.append(1), waits=(0.01, 0.01, 0.01)
    )
    notifier.tell([_alert()])
    until(lambda: receiver.got)
    receiver.answers = [404]
    notifier.tell([_alert(rule="NonFinite")])
    until(lambda: failures)
    notifier.close()
    said = capfd.readouterr().err
    assert "it answers 404" in said and SECRET not in said


def test_nobody_there_delays_nothing(capfd):
    failures = []
    notifier = Notifier(
        Webhook(f"http://127.0.0.1:9{SECRET}"), Where("night"), RULES, lambda: failures.append(1), waits=()
    )
    began = time.monotonic()
    notifier.tell([_alert()])
    assert time.monotonic() - began < 0.5
    notifier.close()
    assert failures == [1] and SECRET not in capfd.readouterr().err


def test_the_address_comes_from_the_environment_or_a_file(tmp_path):
    assert address(WEBHOOK, {}) is None
    assert address(WEBHOOK, {"STABWATCH_WEBHOOK": "https://x/y"}) == "https://x/y"
    (tmp_path / "hook").write_text("https://x/z\n")
    assert address(WEBHOOK, {"STABWATCH_WEBHOOK_FILE": str(tmp_path / "hook")}) == "https://x/z"
    with pytest.raises(ConfigError) as error:
        address(WEBHOOK, {"STABWATCH_WEBHOOK": "secret"})
    assert "secret" not in str(error.value)


def test_a_real_agent_tells_of_a_real_alert(receiver, new_log, start_agent, monkeypatch):
    monkeypatch.setenv("STABWATCH_WEBHOOK", receiver.url)
    now = time.time()
    log = new_log("sick", now=lambda step: now + 0.1 * step - 30)
    agent = start_agent(log.path)
    log.write(range(300))
    text = until(lambda: receiver.got and receiver.got[0], 60)
    assert "sick" in text and SECRET not in agent.metrics()


@pytest.fixture
def program(tmp_path):
    """A real program that appends what it is given to a file, and ends with the codes that stand in another."""
    code = (
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "codes = folder / 'codes'\n"
        "left = json.loads(codes.read_text()) if codes.exists() else []\n"
        "codes.write_text(json.dumps(left[1:]))\n"
        "(folder / 'got').open('a').write(sys.stdin.read() + chr(10))\n"
        "print('thank you')\n"
        "sys.exit(left[0] if left else 0)\n"
    )
    (tmp_path / "tell it.py").write_text(code)
    return Command(f"{sys.executable} '{tmp_path / 'tell it.py'}' '{tmp_path}'"), tmp_path


def test_a_command_gets_the_alerts_as_json(receiver, program, capfd):
    command, folder = program
    notifier = Notifier(command, Where("night"), RULES)
    notifier.tell([_alert(), _alert("blocks.1")])
    notifier.close()
    got = json.loads((folder / "got").read_text())
    assert got["run"] == "night" and got["text"].startswith("CRITICAL night: Logits grow.")
    [alert] = got["alerts"]
    assert (alert["rule"], alert["layers"], alert["onset"]) == ("AttentionLogitGrowth", ["blocks.0", "blocks.1"], 12)
    assert "thank you" in capfd.readouterr().err


def test_a_command_that_fails_for_now_is_tried_again_and_one_that_refuses_is_not(program, monkeypatch):
    command, folder = program
    (folder / "codes").write_text("[75, 3]")
    for again in (True, False):
        with pytest.raises(Refused) as refused:
            command.send(Message("night", "x", "x"))
        assert refused.value.again is again
    with pytest.raises(Refused, match="cannot be started"):
        Command("/no/such/program").send(Message("night", "x", "x"))
    monkeypatch.setattr(receivers, "COMMAND_TIMEOUT", 0.2)
    with pytest.raises(Refused, match="did not end"):
        Command("sleep 30").send(Message("night", "x", "x"))
    with pytest.raises(ConfigError, match="not a command line"):
        Command("say 'it")


def test_receivers_come_from_the_environment():
    found = receivers.receivers({"STABWATCH_WEBHOOK": "https://x/y", "STABWATCH_NOTIFY_COMMAND": "say"})
    assert [type(r) for r in found] == [Webhook, Command]
    assert receivers.receivers({}) == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_token_stays(code):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.server.server_port, self.command))
            self.send_response(code)
            self.send_header("Location", f"http://127.0.0.1:{other.server_port}/else")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args: object) -> None: ...

    first, other = (ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2))
    for server in (first, other):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(Refused, match=rf"redirects \({code}\).*final address") as refused:
            post(f"http://127.0.0.1:{first.server_port}/hook", [{}], "SECRET")
    finally:
        for server in (first, other):
            server.shutdown()
            server.server_close()
    assert refused.value.again and "SECRET" not in str(refused.value)
    assert asked == [(first.server_port, "POST")]

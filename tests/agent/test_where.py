"""Alerts say where: machine, folder, page, value, rank, batch, remedy; in a chat, by e-mail, and when a run ends."""

from __future__ import annotations

import json
import re
import socketserver
import threading
import time

import pytest

from stabwatch.agent import notify
from stabwatch.agent.email import Email
from stabwatch.agent.notify import Notifier
from stabwatch.agent.receivers import Message, Refused, escaped, receivers
from stabwatch.agent.state import Follower
from stabwatch.agent.summary import EndSummary
from stabwatch.agent.where import Where, rank_of
from stabwatch.alerts import RULES
from stabwatch.alerts.catalogue import BY_NAME
from stabwatch.alerts.runbooks import runbook, runbook_names
from stabwatch.errors import ConfigError, RuleError
from stabwatch.runlog import Event, append_event
from tests.agent.conftest import get, until

NIGHT = Where("night", "node-7", "/runs/night", "https://runs.example.org/night/")


class Kept:
    """A receiver that keeps its messages."""

    name = "test"

    def __init__(self) -> None:
        self.got: list[Message] = []

    def send(self, message: Message) -> None:
        self.got.append(message)


def alert(rule="ReplicasDiffer", layer="h.0", **data) -> Event:
    found = {"rule": rule, "severity": "critical", "state": "firing", "layer": layer, "onset": 41, "value": 0.0125,
             "threshold": 1e-3, "summary": "It differs.", "context": {"replica_difference_rank": 3.0},
             **data}  # fmt: skip
    return Event("alert", 1.0, 43, found)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(notify, "GROUP_SECONDS", 0.05)


def test_a_message_says_where_and_what_to_do():
    kept = Kept()
    notifier = Notifier(kept, NIGHT, RULES, batches=lambda step: [f"step {step}: samples 1, 2"])
    notifier.tell([alert()])
    notifier.close()
    (message,) = kept.got
    lines = message.text.splitlines()
    assert lines[0].endswith("Since step 41. https://runs.example.org/night/runbooks/ReplicasDiffer")
    assert [line.strip() for line in lines[1:]] == [
        "Value 0.0125 (limit 0.001). Rank 3.",
        "Batch: step 41: samples 1, 2",
        f"Do now: {' '.join(BY_NAME['ReplicasDiffer'].remedy)}",
        "Run folder: node-7:/runs/night",
        "Page: https://runs.example.org/night/",
    ]
    (entry,) = message.alerts
    assert (entry["host"], entry["rank"], entry["onset"], entry["value"]) == ("node-7", 3, 41, 0.0125)
    assert entry["remedy"] == list(BY_NAME["ReplicasDiffer"].remedy)
    json.dumps(message.alerts)


def test_what_is_not_known_is_left_out():
    kept = Kept()
    notifier = Notifier(kept, Where("night"), RULES)
    notifier.tell([alert("LossSpike", "", value=None, context={})])
    notifier.close()
    text = kept.got[0].text
    assert "None" not in text and "nan" not in text and "Rank" not in text and "Run folder" not in text


@pytest.mark.parametrize("rank", [-1.0, float("nan"), None, "3"])
def test_a_rank_that_is_not_known_is_not_named(rank):
    assert rank_of("ReplicasDiffer", {"replica_difference_rank": rank}) is None
    assert rank_of("LossSpike", {"replica_difference_rank": 2.0}) is None


def test_names_from_a_run_are_no_mark_up_of_a_chat():
    assert escaped("<!channel> <https://x|y> a & b") == "&lt;!channel&gt; &lt;https://x|y&gt; a &amp; b"
    assert "@channel" not in escaped("@channel look") and escaped("me@example.org") == "me@example.org"


def test_an_agent_exports_what_is_known(new_log):
    log = new_log("r")
    log.write(range(200))
    follower = Follower(log.path)
    follower.where = Where("r", "node-7", str(log.path), "http://node-7:9478/")
    follower.poll()
    first = next(a for a in follower.firing() if a.rule == "AttentionLogitGrowth")
    append_event(
        log.path, Event("flight", 1.0, 1, {"onset": first.onset, "batches": [{"step": first.onset, "indices": [5, 6]}]})
    )
    follower.poll()
    details = {(d.rule, d.layer): d for d in follower.snapshot.details}
    known = details[first.rule, first.layer]
    assert (known.onset, known.value, known.rank) == (first.onset, first.value, "")
    assert known.batch == f"step {first.onset}: samples 5, 6"
    assert dict(follower.snapshot.info)["page"] == "http://node-7:9478/"
    follower.lease.release()


class _Smtp(socketserver.StreamRequestHandler):
    """A mail server that keeps what it gets."""

    def handle(self) -> None:
        self.wfile.write(b"220 x\r\n")
        for raw in self.rfile:
            line = raw.decode().strip()
            self.server.said.append(line)
            if line.upper().startswith("EHLO"):
                self.wfile.write(b"250-x\r\n250 AUTH PLAIN\r\n")
            elif line.upper() == "DATA":
                self.wfile.write(b"354 go\r\n")
                body = []
                while (part := self.rfile.readline().decode().rstrip()) != ".":
                    body.append(part)
                self.server.mails.append("\n".join(body))
                self.wfile.write(b"250 ok\r\n")
            elif line.upper().startswith("RCPT"):
                self.wfile.write(self.server.rcpt)
            elif line.upper() == "QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"235 ok\r\n" if line.upper().startswith("AUTH") else b"250 ok\r\n")


@pytest.fixture
def mail_server():
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp)
    server.mails, server.said, server.rcpt = [], [], b"250 ok\r\n"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_e_mail_arrives(mail_server):
    port = mail_server.server_address[1]
    (mail,) = receivers({"STABWATCH_SMTP": f"smtp://me:se%20cret@127.0.0.1:{port}/?to=a@x.org,b@y.org&from=s@z.org"})
    mail.send(Message("night", "CRITICAL night:\nBcc: evil@x.org", "Line one.\n.\nLöwe"))
    (text,) = mail_server.mails
    head, _, body = text.partition("\n\n")
    assert "Subject: [stabwatch] CRITICAL night: Bcc: evil@x.org" in head
    assert "\nBcc:" not in head and "To: a@x.org, b@y.org" in head and "Line one." in body
    addresses = [line.partition(":")[2] for line in mail_server.said if line.upper().startswith("RCPT")]
    assert addresses == ["<a@x.org>", "<b@y.org>"]
    assert any(line.startswith("AUTH") for line in mail_server.said)


def test_a_mail_server_that_refuses(mail_server):
    mail_server.rcpt = b"550 no\r\n"
    mail = Email(f"smtp://127.0.0.1:{mail_server.server_address[1]}/?to=a@x.org")
    with pytest.raises(Refused, match="refuses the addresses") as error:
        mail.send(Message("n", "t", "x"))
    assert not error.value.again and "a@x.org" not in str(error.value)
    with pytest.raises(Refused) as error:
        Email("smtp://me:secret@127.0.0.1:9/?to=a@x.org").send(Message("n", "t", "x"))
    assert error.value.again and "secret" not in str(error.value)


def test_a_password_is_never_sent_in_the_open(mail_server, monkeypatch):
    mail = Email(f"smtp://me:secret@127.0.0.1:{mail_server.server_address[1]}/?to=a@x.org")
    monkeypatch.setattr("stabwatch.agent.email._LOCAL", ())
    with pytest.raises(Refused, match="no encryption"):
        mail.send(Message("n", "t", "x"))
    assert not any(line.startswith("AUTH") for line in mail_server.said)


@pytest.mark.parametrize(
    "address", ["x", "smtp://host", "http://host/?to=a@b", "smtp://host/?to=nobody", "smtp://h:x/?to=a@b"]
)
def test_an_address_of_a_mail_server_that_is_none(address):
    with pytest.raises(ConfigError):
        Email(address)


def test_the_end_of_a_run_is_told_once_and_only_if_it_is_news(new_log):
    log = new_log("r", now=lambda step: time.time())
    log.write(range(30))
    follower, kept = Follower(log.path), Kept()
    notifier = Notifier(kept, follower.where, RULES)
    telling = EndSummary(follower, [notifier])
    follower.poll()
    telling.check()
    log.folder.event(Event("end", time.time(), 29, {"reason": "exception", "error": "ValueError: no"}))
    for _ in range(2):
        follower.poll()
        telling.check()
    old = EndSummary(follower, [notifier])
    old._began += 100  # an agent that is started after the end
    old.check()
    notifier.close()
    (message,) = kept.got
    assert message.title == "r: exception at step 29"
    assert "Last loss" in message.text and "ValueError: no" in message.text and str(log.path) in message.text
    follower.lease.release()


def test_an_agent_links_to_the_address_that_others_use(new_log, start_agent, tmp_path, monkeypatch):
    out = tmp_path / "told.json"
    monkeypatch.setenv("STABWATCH_NOTIFY_COMMAND", f"cp /dev/stdin {out}")
    now = time.time()
    log = new_log("sick", now=lambda step: now + 0.1 * step - 30)
    start_agent(log.path, "--external-url", "https://runs.example.org/sick").info()
    log.write(range(200))
    until(lambda: out.exists() and out.stat().st_size, 60)
    told = json.loads(out.read_text())["alerts"][0]
    assert told["page_url"] == "https://runs.example.org/sick/" and told["folder"] == str(log.path)
    assert told["runbook_url"].startswith("https://runs.example.org/sick/runbooks/")


def test_every_rule_has_a_runbook_that_is_served(new_log, start_agent):
    assert set(runbook_names()) >= {rule.name for rule in RULES}
    assert runbook("StabwatchLossSpike") == runbook("lossspike")
    with pytest.raises(RuleError):
        runbook("../README")
    url = start_agent(new_log("r").path).info()["url"]
    status, headers, body = get(f"{url}runbooks/LossSpike")
    text = body.decode()
    assert status == 200 and "<h2>" in text and "default-src 'none'" in headers["Content-Security-Policy"]
    assert 'href="../page.css"' in text
    assert get(f"{url}runbooks/")[0] == 200
    for name in ("nothing", "../page.js", "%2e%2e/README", "README"):
        assert get(f"{url}runbooks/{name}")[0] == 404
    for name in runbook_names():
        page = get(f"{url}runbooks/{name}")[2].decode()
        for link in re.findall(r'href="([^"#:]+)"', page):
            assert link in ("../page.css", "../", "./") or link in runbook_names(), (name, link)
